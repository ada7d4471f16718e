"""Writes the results of benchmarks.claims as a page, docs/claims/<recipe>.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import claims_arms, recorded_names

TENTHS = 10  # of training
DATA_SEED = 5  # of the simulated videos; the recipe's default is 0


def write(
  recipe: str, seeds: Sequence[int], results: Path, page: Path, extra: Sequence[str] = ()
) -> None:
  """Writes docs/claims/<recipe>.md.

  It has means over seeds with their 95 % intervals (Student's t), and paired differences. Runs
  without a result are named.
  """
  arms, columns, pairs = (
    getattr(claims_arms.CLAIMS[recipe], name) for name in ("arms", "columns", "pairs")
  )
  found: dict[str, dict[int, dict[str, Any]]] = {
    arm.name: {
      seed: recorded_names.current(path.read_text())
      for seed in seeds
      if (path := results / f"{arm.name}-seed{seed}.json").exists()
    }
    for arm in arms
  }
  table = {
    name: {seed: run["metrics"] for seed, run in runs.items()} for name, runs in found.items()
  }
  titles = [title for title, _ in columns]
  command = " ".join([f"python -m benchmarks.claims {recipe}", *extra])
  lines = [
    f"# Claims of {recipe}: what came out",
    "",
    f"`{command}`: `{claims_arms.CLAIMS[recipe].config}`, seeds "
    f"{', '.join(map(str, seeds))}, simulated videos of data seed {DATA_SEED} (neither "
    "was used to tune the recipe), held-out videos, greedy "
    "decoding. Mean over seeds ± half the 95 % interval of that mean (Student's t). One JSON file "
    "a run stands beside this page.",
    "",
    "| arm | " + " | ".join(titles) + " |",
    "|---" * (len(titles) + 1) + "|",
  ]
  for arm in arms:
    runs = table[arm.name].values()
    cells = [_cell([m.get(name, np.nan) for m in runs]) for _, name in columns]
    lines.append(f"| {arm.title} | " + " | ".join(cells) + " |")
  missing = [f"{arm.name} {seed}" for arm in arms for seed in seeds if seed not in found[arm.name]]
  if missing:
    lines += ["", f"Not measured yet (arm, seed): {', '.join(missing)}."]
  lines += ["", "Differences between arms of the same seed:", ""]
  lines += ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
  for left, right in pairs:
    cells = [_cell(_difference(table, left, right, name), "+.3f") for _, name in columns]
    lines.append(f"| {left} - {right} | " + " | ".join(cells) + " |")
  for title, name in claims_arms.CLAIMS[recipe].curves:
    lines += _curves(title, name, arms, {arm: [*runs.values()] for arm, runs in found.items()})
  lines += _by_seed(arms, seeds, table)
  measured = [metrics for runs in table.values() for metrics in runs.values()]
  kinds = sorted({n for metrics in measured for n in metrics if n.startswith("accuracy/")})
  if kinds:
    lines += ["", "Accuracy by question type:", ""]
    lines += ["| arm | " + " | ".join(k.split("/")[1] for k in kinds) + " |"]
    lines += ["|---" * (len(kinds) + 1) + "|"]
    for arm in arms:
      cells = [_cell([m[kind] for m in table[arm.name].values()]) for kind in kinds]
      lines.append(f"| {arm.title} | " + " | ".join(cells) + " |")
  notes = results / "notes.md"
  if notes.exists():
    lines += ["", notes.read_text().strip()]
  page.write_text("\n".join(lines) + "\n")


def _curves(
  title: str,
  name: str,
  arms: Sequence[claims_arms.Arm],
  found: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[str]:
  """A table of a training metric: the mean over seeds in each tenth of training."""
  lines = ["", f"{title}, in each tenth of training:", ""]
  lines += ["| arm | " + " | ".join(map(str, range(1, TENTHS + 1))) + " |"]
  lines += ["|---" * (TENTHS + 1) + "|"]
  for arm in arms:
    tenths = [result["tenths"][name] for result in found[arm.name] if name in result["tenths"]]
    if tenths:
      cells = [f"{value:.2f}" for value in np.mean(tenths, axis=0)]
      lines.append(f"| {arm.title} | " + " | ".join(cells) + " |")
  return lines


def _by_seed(
  arms: Sequence[claims_arms.Arm],
  seeds: Sequence[int],
  table: Mapping[str, Mapping[int, Mapping[str, float]]],
) -> list[str]:
  """A table of each run's accuracy ± half its 95 % interval over questions."""
  lines = ["", "Accuracy of each run ± half its 95 % interval over questions:", ""]
  lines += ["| arm | " + " | ".join(f"seed {seed}" for seed in seeds) + " |"]
  lines += ["|---" * (len(seeds) + 1) + "|"]
  for arm in arms:
    runs = [table[arm.name].get(seed) for seed in seeds]
    cells = [f"{m['accuracy']:.3f} ± {m['accuracy_interval']:.3f}" if m else "–" for m in runs]
    lines.append(f"| {arm.title} | " + " | ".join(cells) + " |")
  return lines


def _difference(
  table: Mapping[str, Mapping[int, Mapping[str, float]]], left: str, right: str, name: str
) -> list[float]:
  """The difference in each seed that both arms have."""
  both = [seed for seed in table[left] if seed in table[right]]
  return [
    table[left][seed].get(name, np.nan) - table[right][seed].get(name, np.nan) for seed in both
  ]


def _cell(values: Sequence[float], form: str = ".3f") -> str:
  mean = np.mean(values) if values else np.nan
  if np.isnan(mean):  # the arm has no such metric, or no result
    return "–"
  if len(values) < 2:
    return f"{mean:{form}}"
  half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
  return f"{mean:{form}} ± {half:.3f}"
