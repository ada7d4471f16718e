"""Does the method work? Trains a recipe's arms over seeds and reports what came out.

    python -m benchmarks.claims moss_chatv [--seeds=21,22,23,24,25] [--workdir=runs/claims] [--config.field=value …]

Each (arm, seed) is a run of the recipe at its tiny size; its result is a small JSON file under docs/claims/, and one that
is there is not run again: the command goes on where it stopped. At the end it writes docs/claims.md.

Arms of one seed share the warm start and the data. Data and seeds are not those of the recipe's defaults, which the
recipe was tuned on. Every arm is evaluated by the same rewards (the recipe's own), whatever it was trained with.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from pathlib import Path
import subprocess
import sys
import time

import numpy as np
from scipy import stats

DATA_SEED = 5  # of the simulated videos; the recipe's default is 0
COLUMNS = (
  ("accuracy", "accuracy"),
  ("PRR", "process_reward"),
  ("true trace consistency", "trace_consistency"),
  ("think-answer mismatch", "think_answer_mismatch"),
  ("reply tokens", "reply_tokens"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
  """One way to train: overrides of the recipe, or None for the warm start alone."""

  name: str
  title: str
  overrides: tuple[str, ...] | None


ARMS = {
  "moss_chatv": (
    Arm(name="sft", title="SFT only", overrides=None),
    Arm(
      name="grpo",
      title="GRPO, accuracy + format",
      overrides=("--config.env.weights.process=0.0",),
    ),
    Arm(name="prr", title="the same + PRR (jump)", overrides=()),
    Arm(
      name="naive",
      title="the same + PRR, naive whole-sequence DTW",
      overrides=("--config.env.alignment=naive",),
    ),
  )
}


def main(argv: Sequence[str]) -> int:
  """Runs what is missing, then writes the page."""
  recipes = [word for word in argv if not word.startswith("--")]
  options = dict(word[2:].split("=", 1) for word in argv if word.startswith("--") and "=" in word)
  if len(recipes) != 1 or recipes[0] not in ARMS:
    print(
      f"usage: python -m benchmarks.claims {'|'.join(ARMS)} [--seeds=21,22,23,24,25]",
      file=sys.stderr,
    )
    return 2
  recipe = recipes[0]
  seeds = [int(seed) for seed in options.pop("seeds", "21,22,23,24,25").split(",")]
  workdir = Path(options.pop("workdir", "runs/claims")) / recipe
  extra = [f"--{name}={value}" for name, value in options.items()]
  results = Path("docs/claims") / recipe
  for seed in seeds:
    warm_start(recipe, seed, workdir, extra)
    for arm in ARMS[recipe]:
      path = results / f"{arm.name}-seed{seed}.json"
      flags = [*(arm.overrides or ()), *extra]
      if not path.exists():
        run_arm(recipe, arm, seed, workdir, extra, path)
      elif (there := json.loads(path.read_text())["flags"]) != flags:
        print(f"{path}: a result with flags {there}, not {flags}; move it away", file=sys.stderr)
        return 2
      print(path.read_text().strip())
  write_page(recipe, seeds, results, Path("docs/claims.md"))
  return 0


def warm_start(recipe: str, seed: int, workdir: Path, extra: Sequence[str]) -> None:
  """Data (one for all seeds) and the warm start that the arms of a seed share."""
  for mode in ("data", "sft"):
    _launch(
      *_common(recipe, seed, workdir, extra), f"--workdir={_warm(workdir, seed)}", f"--mode={mode}"
    )


def _warm(workdir: Path, seed: int) -> Path:
  return workdir / f"seed{seed}" / "sft"


def _common(recipe: str, seed: int, workdir: Path, extra: Sequence[str]) -> tuple[str, ...]:
  """Flags of every run of a seed."""
  return (
    f"--config=configs/{recipe}.py:tiny",
    f"--config.seed={seed}",
    f"--config.data.simulate.seed={DATA_SEED}",
    f"--config.data.directory={workdir / 'data'}",
    "--config.eval.blind=False",
    "--config.eval.shuffled=False",
    *extra,
  )


def run_arm(
  recipe: str, arm: Arm, seed: int, workdir: Path, extra: Sequence[str], path: Path
) -> None:
  """Trains and evaluates one arm of one seed; writes its result."""
  home = workdir / f"seed{seed}"
  common = _common(recipe, seed, workdir, extra)
  begun = time.perf_counter()
  checkpoints = _warm(workdir, seed) / "checkpoints" / "sft"
  if arm.overrides is not None:
    start = f"--config.rl.initial={checkpoints}"
    _launch(*common, *arm.overrides, start, f"--workdir={home / arm.name}", "--mode=rl")
    checkpoints = home / arm.name / "checkpoints" / "rl"
  judged = home / f"{arm.name}-eval"
  _launch(*common, f"--config.rl.initial={checkpoints}", f"--workdir={judged}", "--mode=eval")
  evaluation = json.loads((judged / "eval" / "before_rl.json").read_text())
  record = json.loads((judged / "config.json").read_text())
  result = {
    "recipe": recipe,
    "arm": arm.name,
    "seed": seed,
    "data_seed": DATA_SEED,
    "flags": [*(arm.overrides or ()), *extra],
    "examples": evaluation["examples"],
    "metrics": evaluation["metrics"],
    "seconds": round(time.perf_counter() - begun),
    "versions": record["versions"],
    "git_revision": record["git_revision"],
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  aside = path.with_suffix(".partial")
  aside.write_text(json.dumps(result, indent=1) + "\n")
  os.replace(aside, path)


def write_page(recipe: str, seeds: Sequence[int], results: Path, page: Path) -> None:
  """docs/claims.md: mean over seeds and the 95 % interval of that mean (Student's t), and paired differences."""
  arms = ARMS[recipe]
  table = {
    arm.name: [
      json.loads((results / f"{arm.name}-seed{seed}.json").read_text())["metrics"] for seed in seeds
    ]
    for arm in arms
  }
  titles = [title for title, _ in COLUMNS]
  lines = [
    "# Claims: what came out",
    "",
    f"`python -m benchmarks.claims {recipe}`: the tiny recipe, seeds {', '.join(map(str, seeds))}, simulated videos of "
    f"data seed {DATA_SEED} (neither was used to tune the recipe), held-out videos, greedy decoding. Mean over seeds ± "
    "half the 95 % interval of that mean (Student's t). One JSON file a run stands under docs/claims/.",
    "",
    f"## {recipe}",
    "",
    "| arm | " + " | ".join(titles) + " |",
    "|---" * (len(titles) + 1) + "|",
  ]
  for arm in arms:
    cells = [_cell([m[name] for m in table[arm.name]]) for _, name in COLUMNS]
    lines.append(f"| {arm.title} | " + " | ".join(cells) + " |")
  lines += ["", "Differences between arms of the same seed:", ""]
  lines += ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
  for left, right in (("grpo", "sft"), ("prr", "sft"), ("prr", "grpo"), ("prr", "naive")):
    cells = [_cell(_difference(table, left, right, name), "+.3f") for _, name in COLUMNS]
    lines.append(f"| {left} - {right} | " + " | ".join(cells) + " |")
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


def _by_seed(
  arms: Sequence[Arm], seeds: Sequence[int], table: Mapping[str, Sequence[Mapping[str, float]]]
) -> list[str]:
  """Accuracy of each run, and half the 95 % interval that its number of questions leaves open."""
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
  return [a[name] - b[name] for a, b in zip(table[left], table[right], strict=True)]


def _cell(values: Sequence[float], form: str = ".3f") -> str:
  mean = np.mean(values)
  if len(values) < 2:
    return f"{mean:{form}}"
  half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
  return f"{mean:{form}} ± {half:.3f}"


def _launch(*flags: str) -> None:
  subprocess.run([sys.executable, "-m", "vr_jax.main", *flags], check=True)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
