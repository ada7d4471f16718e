"""Does the method work? Trains a recipe's arms over seeds and reports what came out.

    python -m benchmarks.claims moss_chatv [--seeds=21,22,23,24,25] [--workdir=runs/claims] [--config.field=value …]

Each (arm, seed) is a run of the recipe at its tiny size; its result is a small JSON file under docs/claims/<recipe>/, and one
that is there is not run again: the command goes on where it stopped. At the end it writes docs/claims/<recipe>.md.

Arms of one seed share the warm start and the data. Data and seeds are not those of the recipe's defaults, which the
recipe was tuned on. Every arm is evaluated by the same rewards (the recipe's own), whatever it was trained with.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import json
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import Any

import numpy as np
from scipy import stats

from vr_jax.train import metrics

DATA_SEED = 5  # of the simulated videos; the recipe's default is 0
_TRAINING = ("no_signal_share", "reward/", "retrieval_rate", "turns")
# Overrides of an arm that count when it is evaluated, too.
_SEEN = tuple(
  f"--config.{name}="
  for name in ("env.turns", "env.window", "rl.max_new_tokens", "sft.max_reply_tokens")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
  """One way to train: overrides of the recipe, or None for the warm start alone. fresh: from random weights.

  views: further ways to evaluate what was trained: (name, overrides); their accuracy is told as accuracy@name.
  """

  name: str
  title: str
  overrides: tuple[str, ...] | None
  fresh: bool = False
  views: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claims:
  """What a recipe is held to. seeds: of its runs; columns: (title, metric); pairs: arms whose differences are told."""

  seeds: tuple[int, ...]
  arms: tuple[Arm, ...]
  columns: tuple[tuple[str, str], ...]
  pairs: tuple[tuple[str, str], ...]


# One turn shows the whole budget, and thoughts tell of each frame.
SINGLE = (
  "--config.env.turns=1",
  "--config.env.window=0",
  "--config.rl.max_new_tokens=112",
  "--config.sft.max_reply_tokens=112",
)
TURNS = (
  ("1 turns", SINGLE),
  *(
    (f"{turns} turns", (f"--config.env.turns={turns}", f"--config.env.window={turns - 1}"))
    for turns in (2, 5)
  ),
)
CLAIMS = {
  "moss_chatv": Claims(
    seeds=(21, 22, 23, 24, 25),
    arms=(
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
    ),
    columns=(
      ("accuracy", "accuracy"),
      ("PRR", "process_reward"),
      ("true trace consistency", "trace_consistency"),
      ("think-answer mismatch", "think_answer_mismatch"),
      ("reply tokens", "reply_tokens"),
    ),
    pairs=(("grpo", "sft"), ("prr", "sft"), ("prr", "grpo"), ("prr", "naive")),
  ),
  "videop2r": Claims(
    seeds=(31, 32, 33),
    arms=(
      Arm(name="sft", title="SFT only", overrides=None),
      Arm(name="rl", title="RL only, from random weights", overrides=(), fresh=True),
      Arm(
        name="grpo",
        title="GRPO, one reward (reasoning's: answer, format, length)",
        overrides=("--config.env.credit=outcome",),
      ),
      Arm(name="pa", title="PA-GRPO", overrides=()),
      Arm(
        name="no_perception",
        title="PA-GRPO without the reward of perception",
        overrides=("--config.env.weights.perception=0.0",),
      ),
      Arm(
        name="no_reasoning",
        title="PA-GRPO without the reward of reasoning",
        overrides=("--config.env.weights.reasoning=0.0",),
      ),
      Arm(
        name="joint",
        title="both rewards on all tokens",
        overrides=("--config.env.credit=joint",),
      ),
      Arm(
        name="t_grpo",
        title="T-GRPO (the same one reward, and that of temporal order)",
        overrides=("--config.env.credit=outcome", "--config.rl.shuffled=4"),
      ),
    ),
    columns=(
      ("accuracy", "accuracy"),
      ("observation suffices", "observation_sufficiency"),
      ("think-answer mismatch", "think_answer_mismatch"),
      ("true trace consistency", "trace_consistency"),
      ("perception without signal", "training/no_signal_share/perception"),
      ("reasoning without signal", "training/no_signal_share/reasoning"),
      ("reply tokens", "reply_tokens"),
    ),
    pairs=(
      ("pa", "sft"),
      ("grpo", "sft"),
      ("pa", "rl"),
      ("pa", "grpo"),
      ("pa", "no_perception"),
      ("pa", "no_reasoning"),
      ("pa", "joint"),
      ("pa", "t_grpo"),
    ),
  ),
  "video_mtr": Claims(
    seeds=(41, 42, 43),
    arms=(
      Arm(name="sft", title="SFT only", overrides=None),
      Arm(
        name="single",
        title="one turn that shows the whole budget",
        overrides=SINGLE,
      ),
      Arm(
        name="no_turn_rewards",
        title="several turns, no reward of turns",
        overrides=("--config.env.relevance.relevance=0.0",),
      ),
      Arm(
        name="no_gate",
        title="rewards of turns without the gate",
        overrides=("--config.env.relevance.gate=False",),
      ),
      Arm(
        name="no_bootstrapping",
        title="without exploration bootstrapping",
        overrides=("--config.env.exploration.stages=()",),
      ),
      Arm(name="full", title="full (PPO, bi-level GAE)", overrides=(), views=TURNS),
      Arm(name="grpo", title="GRPO credit", overrides=("--config.rl.credit=episode",)),
    ),
    columns=(
      ("accuracy", "accuracy"),
      ("frame recall", "frame_recall"),
      ("turns", "turns"),
      ("retrieval rate at first", "first/retrieval_rate"),
      ("and at last", "last/retrieval_rate"),
      ("accuracy with 1 turn", "accuracy@1 turns"),
      ("2", "accuracy@2 turns"),
      ("5", "accuracy@5 turns"),
    ),
    pairs=(
      ("full", "sft"),
      ("full", "single"),
      ("full", "no_turn_rewards"),
      ("full", "no_gate"),
      ("full", "no_bootstrapping"),
      ("full", "grpo"),
    ),
  ),
}


def main(argv: Sequence[str]) -> int:
  """Runs what is missing, then writes the page."""
  recipes = [word for word in argv if not word.startswith("--")]
  options = dict(word[2:].split("=", 1) for word in argv if word.startswith("--") and "=" in word)
  if len(recipes) != 1 or recipes[0] not in CLAIMS:
    print(f"usage: python -m benchmarks.claims {'|'.join(CLAIMS)} [--seeds=21,22]", file=sys.stderr)
    return 2
  recipe = recipes[0]
  claims = CLAIMS[recipe]
  given = options.pop("seeds", "")
  seeds = [int(seed) for seed in given.split(",")] if given else list(claims.seeds)
  workdir = Path(options.pop("workdir", "runs/claims")) / recipe
  # One for all runs: each arm would otherwise compile the same programs.
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((workdir / "compilations").absolute()))
  extra = [f"--{name}={value}" for name, value in options.items()]
  results = Path("docs/claims") / recipe
  runs = {
    seed: [(arm, results / f"{arm.name}-seed{seed}.json") for arm in claims.arms] for seed in seeds
  }
  for arm, path in itertools.chain(*runs.values()):
    flags = [*(arm.overrides or ()), *extra]
    if path.exists() and (there := json.loads(path.read_text())["flags"]) != flags:
      print(f"{path}: a result with flags {there}, not {flags}; move it away", file=sys.stderr)
      return 2
  for seed, of_seed in runs.items():
    left = [(arm, path) for arm, path in of_seed if not path.exists()]
    if left:
      warm_start(recipe, seed, workdir, extra)
    for arm, path in left:
      run_arm(recipe, arm, seed, workdir, extra, path)
      print(path.read_text().strip())
  write_page(recipe, seeds, results, results.with_suffix(".md"), extra)
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
  training = {}
  if arm.overrides is not None:
    start = "--config.sft.steps=0" if arm.fresh else f"--config.rl.initial={checkpoints}"
    _launch(*common, *arm.overrides, start, f"--workdir={home / arm.name}", "--mode=rl")
    checkpoints = home / arm.name / "checkpoints" / "rl"
    training = _over_training(home / arm.name)
  seen = tuple(flag for flag in arm.overrides or () if flag.startswith(_SEEN))
  evaluation, record = _evaluated((*common, *seen), checkpoints, home / f"{arm.name}-eval")
  for name, flags in arm.views:
    where = home / f"{arm.name}-eval-{name.replace(' ', '-')}"
    view, _ = _evaluated((*common, *flags), checkpoints, where)
    training[f"accuracy@{name}"] = view["metrics"]["accuracy"]
  result = {
    "recipe": recipe,
    "arm": arm.name,
    "seed": seed,
    "data_seed": DATA_SEED,
    "flags": [*(arm.overrides or ()), *extra],
    "examples": evaluation["examples"],
    "metrics": evaluation["metrics"] | training,
    "seconds": round(time.perf_counter() - begun),
    "versions": record["versions"],
    "git_revision": record["git_revision"],
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  aside = path.with_suffix(".partial")
  aside.write_text(json.dumps(result, indent=1) + "\n")
  os.replace(aside, path)


def _evaluated(
  flags: Sequence[str], checkpoints: Path, workdir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(what an evaluation of checkpoints found, the config.json of its workdir)."""
  _launch(*flags, f"--config.rl.initial={checkpoints}", f"--workdir={workdir}", "--mode=eval")
  found = json.loads((workdir / "eval" / "before_rl.json").read_text())
  return found, json.loads((workdir / "config.json").read_text())


def _over_training(workdir: Path) -> dict[str, float]:
  """Means over the RL steps of a run, and over its first and last tenth, of what tells how training went."""
  steps = [line["values"] for line in metrics.read(workdir / "metrics.jsonl")]
  tenth = -(-len(steps) // 10)
  names = [name for name in steps[0] if name.startswith(_TRAINING)]
  return {
    f"{when}/{name}": float(np.mean([step[name] for step in some if name in step]))
    for when, some in (("training", steps), ("first", steps[:tenth]), ("last", steps[-tenth:]))
    for name in names
  }


def write_page(
  recipe: str, seeds: Sequence[int], results: Path, page: Path, extra: Sequence[str] = ()
) -> None:
  """docs/claims/<recipe>.md: mean over seeds and the 95 % interval of that mean (Student's t), and paired differences."""
  arms, columns, pairs = (getattr(CLAIMS[recipe], name) for name in ("arms", "columns", "pairs"))
  table = {
    arm.name: [
      json.loads((results / f"{arm.name}-seed{seed}.json").read_text())["metrics"] for seed in seeds
    ]
    for arm in arms
  }
  titles = [title for title, _ in columns]
  command = " ".join([f"python -m benchmarks.claims {recipe}", *extra])
  lines = [
    f"# Claims of {recipe}: what came out",
    "",
    f"`{command}`: the tiny recipe, seeds {', '.join(map(str, seeds))}, simulated videos of "
    f"data seed {DATA_SEED} (neither was used to tune the recipe), held-out videos, greedy decoding. Mean over seeds ± "
    "half the 95 % interval of that mean (Student's t). One JSON file a run stands beside this page.",
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
  pairs = zip(table[left], table[right], strict=True)
  return [a.get(name, np.nan) - b.get(name, np.nan) for a, b in pairs]


def _cell(values: Sequence[float], form: str = ".3f") -> str:
  mean = np.mean(values)
  if np.isnan(mean):  # an arm of which this is not known
    return "–"
  if len(values) < 2:
    return f"{mean:{form}}"
  half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
  return f"{mean:{form}} ± {half:.3f}"


def _launch(*flags: str) -> None:
  subprocess.run([sys.executable, "-m", "vr_jax.main", *flags], check=True)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
