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

  It has means over seeds with their 95 % intervals (Student's t), and paired differences.
  """
  arms, columns, pairs = (
    getattr(claims_arms.CLAIMS[recipe], name) for name in ("arms", "columns", "pairs")
  )
  found = {
    arm.name: [
      recorded_names.current((results / f"{arm.name}-seed{seed}.json").read_text())
      for seed in seeds
    ]
    for arm in arms
  }
  table = {name: [run["metrics"] for run in runs] for name, runs in found.items()}
  titles = [title for title, _ in columns]
  command = " ".join([f"python -m benchmarks.claims {recipe}", *extra])
  lines = [
    f"# Claims of {recipe}: what came out",
    "",
    f"`{command}`: the tiny recipe, seeds {', '.join(map(str, seeds))}, simulated videos of "
    f"data seed {DATA_SEED} (neither was used to tune the recipe), held-out videos, greedy "
    "decoding. Mean over seeds ± half the 95 % interval of that mean (Student's t). One JSON file "
    "a run stands beside this page.",
    "",
    "| arm | " + " | ".join(titles) + " |",
    "|---" * (len(titles) + 1) + "|",
  ]
  for arm in arms:
    cells = [_cell([m.get(name, np.nan) for m in table[arm.name]]) for _, name in columns]
    lines.append(f"| {arm.title} | " + " | ".join(cells) + " |")
  lines += ["", "Differences between arms of the same seed:", ""]
  lines += ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
  for left, right in pairs:
    cells = [_cell(_difference(table, left, right, name), "+.3f") for _, name in columns]
    lines.append(f"| {left} - {right} | " + " | ".join(cells) + " |")
  for title, name in claims_arms.CLAIMS[recipe].curves:
    lines += _curves(title, name, arms, found)
  lines += _by_seed(arms, seeds, table)
  kinds = sorted(n for n in table[arms[0].name][0] if n.startswith("accuracy/"))
  lines += ["", "Accuracy by question type:", ""]
  lines += ["| arm | " + " | ".join(k.split("/")[1] for k in kinds) + " |"]
  lines += ["|---" * (len(kinds) + 1) + "|"]
  for arm in arms:
    cells = [_cell([m[kind] for m in table[arm.name]]) for kind in kinds]
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
  table: Mapping[str, Sequence[Mapping[str, float]]],
) -> list[str]:
  """A table of each run's accuracy ± half its 95 % interval over questions."""
  lines = ["", "Accuracy of each run ± half its 95 % interval over questions:", ""]
  lines += ["| arm | " + " | ".join(f"seed {seed}" for seed in seeds) + " |"]
  lines += ["|---" * (len(seeds) + 1) + "|"]
  for arm in arms:
    cells = [f"{m['accuracy']:.3f} ± {m['accuracy_interval']:.3f}" for m in table[arm.name]]
    lines.append(f"| {arm.title} | " + " | ".join(cells) + " |")
  return lines


def _difference(
  table: Mapping[str, Sequence[Mapping[str, float]]], left: str, right: str, name: str
) -> list[float]:
  pairs = zip(table[left], table[right], strict=True)
  return [a.get(name, np.nan) - b.get(name, np.nan) for a, b in pairs]


def _cell(values: Sequence[float], form: str = ".3f") -> str:
  mean = np.mean(values)
  if np.isnan(mean):  # the arm has no such metric
    return "–"
  if len(values) < 2:
    return f"{mean:{form}}"
  half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
  return f"{mean:{form}} ± {half:.3f}"
