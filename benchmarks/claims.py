"""Does the method work? Trains the arms of a recipe over several seeds and reports the results.

    python -m benchmarks.claims moss_chatv [--seeds=21,22,23,24,25] [--workdir=runs/claims] \\
      [--config.field=value …]

Each (arm, seed) is a run of the recipe at its tiny size, or at that of another network
(moss_chatv_phi2, moss_chatv_qwen3vl). Its result is a small JSON file under
docs/claims/<recipe>/. A run whose file exists is skipped, so an interrupted command continues where
it stopped. After each run it writes docs/claims/<recipe>.md.

Arms of one seed share the warm start and the data. Data and seeds differ from the recipe's
defaults, which the recipe was tuned on. Every arm is evaluated by the same rewards (the recipe's
own), whatever it was trained with.
"""

from collections.abc import Iterable, Sequence
import itertools
import json
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks import claims_arms, claims_page, claims_tracker, recorded_names
from vr_jax import atomic
from vr_jax.train import metrics

_TRAINING = (
  "frac_reward_zero_std",
  "rewards/",
  "retrieval_rate",
  "turns",
  "frame_recall",
  "episode_accuracy",
  "exploration/",
  "key_frame_",
  "box_iou",
  "sampling/sampling_logp_difference/",
  "sampling/reply_logp_difference/",
  "sampling/k3",
  "sampling/tis_capped_fraction",
)
_SPREADS = ("/std", "/zero_ratio")  # metrics of rewards that are not recorded
# Overrides of an arm that apply to its evaluation as well.
_SEEN = tuple(
  f"--config.{name}="
  for name in (
    "env.turns",
    "env.history_turns",
    "env.decompose",
    "rl.max_new_tokens",
    "sft.max_reply_tokens",
    "turns.episode_buckets",
  )
)


def main(argv: Sequence[str]) -> int:
  """Runs the missing runs, then writes the page."""
  recipes = [word for word in argv if not word.startswith("--")]
  options = dict(word[2:].split("=", 1) for word in argv if word.startswith("--") and "=" in word)
  if len(recipes) != 1 or recipes[0] not in claims_arms.CLAIMS:
    print(
      f"usage: python -m benchmarks.claims {'|'.join(claims_arms.CLAIMS)} [--seeds=21,22]",
      file=sys.stderr,
    )
    return 2
  recipe = recipes[0]
  claims = claims_arms.CLAIMS[recipe]
  numbers = options.pop("seeds", "")
  seeds = [int(seed) for seed in numbers.split(",")] if numbers else list(claims.seeds)
  # Some of the registered seeds: the page names those that are missing.
  shown = claims.seeds if {*seeds} <= {*claims.seeds} else seeds
  workdir = Path(options.pop("workdir", "runs/claims")) / recipe
  # All runs share one, or each arm would compile the same programs again.
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((workdir / "compilations").absolute()))
  extra = [f"--{name}={value}" for name, value in options.items()]
  results = Path("docs/claims") / recipe
  runs = {
    seed: [(arm, results / f"{arm.name}-seed{seed}.json") for arm in claims.arms] for seed in shown
  }
  for arm, path in itertools.chain(*runs.values()):
    flags = [*(arm.overrides or ()), *extra]
    if not path.exists():
      continue
    recorded = recorded_names.current(path.read_text())["flags"]
    if recorded != flags:
      print(f"{path}: a result with flags {recorded}, not {flags}; move it away", file=sys.stderr)
      return 2
  for seed in seeds:
    missing = [(arm, path) for arm, path in runs[seed] if not path.exists()]
    if missing:
      warm_start(recipe, seed, workdir, extra)
    for arm, path in missing:
      run_arm(recipe, arm, seed, workdir, extra, path)
      print(path.read_text().strip())
      claims_page.write(recipe, shown, results, results.with_suffix(".md"), extra)
  claims_page.write(recipe, shown, results, results.with_suffix(".md"), extra)
  return 0


def warm_start(recipe: str, seed: int, workdir: Path, extra: Sequence[str]) -> None:
  """Makes the data (the same for all seeds) and the warm start that the arms of a seed share."""
  for mode in ("data", "sft"):
    _launch(
      *_common(recipe, seed, workdir, extra), f"--workdir={_warm(workdir, seed)}", f"--mode={mode}"
    )


def _warm(workdir: Path, seed: int) -> Path:
  return workdir / f"seed{seed}" / "sft"


def _common(recipe: str, seed: int, workdir: Path, extra: Sequence[str]) -> tuple[str, ...]:
  """Flags of every run of a seed."""
  return (
    f"--config={claims_arms.CLAIMS[recipe].config}",
    f"--config.seed={seed}",
    f"--config.data.simulate.seed={claims_page.DATA_SEED}",
    f"--config.data.directory={workdir / 'data'}",
    "--config.eval.blind=False",
    "--config.eval.shuffled_frames=False",
    *extra,
  )


def run_arm(
  recipe: str, arm: claims_arms.Arm, seed: int, workdir: Path, extra: Sequence[str], path: Path
) -> None:
  """Trains and evaluates one arm of one seed; writes its result."""
  home, claims = workdir / f"seed{seed}", claims_arms.CLAIMS[recipe]
  common = _common(recipe, seed, workdir, extra)
  begun = time.perf_counter()
  own = {"shared": _warm(workdir, seed), "own": home / arm.name}
  warm = own.get(arm.start, home / arm.start)
  checkpoints = warm / "checkpoints" / "sft"
  training, tenths = {}, {}
  if arm.overrides is not None:
    flags = [*common, *arm.overrides]
    if arm.start not in ("shared", "none"):  # ends at once if it is there
      _launch(*flags, f"--workdir={warm}", "--mode=sft")
    if arm.rl:
      starts = {"none": ["--config.sft.steps=0"], "own": []}
      start = starts.get(arm.start, [f"--config.rl.init_checkpoint={checkpoints}"])
      _launch(*flags, f"--workdir={home / arm.name}", *start, "--mode=rl")
      checkpoints = home / arm.name / "checkpoints" / "rl"
      training, tenths = _over_training(home / arm.name)
  seen = tuple(flag for flag in arm.overrides or () if flag.startswith(_SEEN))
  common = (*common, *claims.evaluation)
  evaluation, record = _evaluated((*common, *seen), checkpoints, home / f"{arm.name}-eval")
  if claims.tracks:
    score = claims_tracker.score(home / f"{arm.name}-eval", claims_tracker.weights(workdir))
    training["j_and_f@sam2"] = score
  for name, flags in arm.views:
    where = home / f"{arm.name}-eval-{name.replace(' ', '-')}"
    view, _ = _evaluated((*common, *flags), checkpoints, where)
    training[f"accuracy@{name}"] = view["metrics"]["accuracy"]
  result = {
    "recipe": recipe,
    "arm": arm.name,
    "seed": seed,
    "data_seed": claims_page.DATA_SEED,
    "flags": [*(arm.overrides or ()), *extra],
    "examples": evaluation["examples"],
    "metrics": evaluation["metrics"] | training,
    "tenths": tenths,
    "seconds": round(time.perf_counter() - begun),
    "versions": record["versions"],
    "git_revision": record["git_revision"],
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  with atomic.file(path) as partial:
    partial.write_text(json.dumps(result, indent=1) + "\n")


def _evaluated(
  flags: Sequence[str], checkpoints: Path, workdir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(the result of an evaluation of checkpoints, the config.json of its workdir)."""
  _launch(
    *flags, f"--config.rl.init_checkpoint={checkpoints}", f"--workdir={workdir}", "--mode=eval"
  )
  found = json.loads((workdir / "eval" / "before_rl.json").read_text())
  return found, json.loads((workdir / "config.json").read_text())


def _over_training(workdir: Path) -> tuple[dict[str, float], dict[str, list[float]]]:
  """Metrics of a run's RL steps.

  Returns:
    means: over all steps (training/<name>), the first tenth (first/<name>), the last (last/<name>).
    tenths: by name, the mean over each tenth.
  """
  steps = [m["values"] for m in metrics.read(workdir / "metrics.jsonl") if m["stage"] == "rl"]
  names = [name for name in steps[0] if name.startswith(_TRAINING) and not name.endswith(_SPREADS)]

  def mean(name: str, some: Iterable[int]) -> float:
    return float(np.mean([steps[step][name] for step in some if name in steps[step]] or np.nan))

  parts = np.array_split(np.arange(len(steps)), claims_page.TENTHS)
  tenths = {name: [mean(name, part) for part in parts] for name in names}
  means = {f"training/{name}": mean(name, range(len(steps))) for name in names}
  means |= {f"first/{name}": values[0] for name, values in tenths.items()}
  means |= {f"last/{name}": values[-1] for name, values in tenths.items()}
  return means, tenths


def _launch(*flags: str) -> None:
  subprocess.run([sys.executable, "-m", "vr_jax.main", *flags], check=True)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
