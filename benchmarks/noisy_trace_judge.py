"""What the numbers of `vr-jax judge` say of a judge whose errors are known: agreement with truth.

    python -m benchmarks.noisy_trace_judge

Traces are made of the reference steps of simulated questions: whole, in another order, with one
value changed, and without every other step. The judge `rule` grades them from the
true states, so its grades are the truth. A noisy judge gives the same grades, but each is replaced
with a chance of `noise` by one drawn evenly from 1 to 5, in three runs. So a judge that can't be
compared with truth, as on real videos, still shows its noise in how its own runs agree.

Prints a table in Markdown: for each scale the quadratic weighted kappa with the truth (mean of the
runs), Krippendorff's alpha of the runs, and Spearman's correlation of the mean grade with the
truth. They are computed by what `vr-jax judge` computes them with.
"""

from collections.abc import Iterator, Sequence
import random

from jaxtyping import Int
import numpy as np

from benchmarks import judge_agreement
from vr_jax import recipe_config
from vr_jax.eval.trace_judging import agreement, grade, rule_grader
from vr_jax.worlds import config as world_config
from vr_jax.worlds import write

NOISES = (0.0, 0.2, 0.5)
QUESTIONS, RUNS = 200, 3
SEED = 90_002  # no training set has it


def true_grades(questions: int = QUESTIONS) -> Int[np.ndarray, "traces scales"]:
  """The exact grades of four traces about each simulated question."""
  config = recipe_config.load("configs/moss_chatv.py:tiny")
  world = world_config.WorldConfig(**config.data.simulate.world)
  videos = write.distinct_videos(world, videos=questions, seed=SEED, questions=1)
  examples = [example for _, (example,) in videos]
  values, rng = judge_agreement.known_values(examples), random.Random(SEED)
  return np.array(
    [
      rule_grader.grade_question(example, trace).scores
      for example in examples
      for trace in _traces([step.text for step in example.steps], values, rng)
    ]
  )


def _traces(
  steps: list[str], values: dict[str, tuple[str, ...]], rng: random.Random
) -> Iterator[list[str]]:
  """The steps; in another order; with one value changed, if there is one; without every other."""
  yield steps
  yield rng.sample(steps, len(steps))
  yield judge_agreement.change_value(steps, values, rng) or steps
  yield steps[::2]


def add_noise(
  truth: Int[np.ndarray, "traces scales"], noise: float, *, runs: int = RUNS, seed: int = 0
) -> Int[np.ndarray, "runs traces scales"]:
  """Grades of several runs of a judge that errs with the chance `noise`."""
  rng = np.random.default_rng(seed)
  shape = (runs, *truth.shape)
  drawn = rng.integers(grade.LOWEST, grade.HIGHEST + 1, shape)
  return np.where(rng.random(shape) < noise, drawn, truth)


def measure(
  truth: Int[np.ndarray, "traces"], runs: Int[np.ndarray, "runs traces"]
) -> tuple[float, float, float]:
  """(kappa with the truth, alpha of the runs, Spearman's correlation) of one scale."""
  levels = grade.HIGHEST
  with_truth = [
    sum(agreement.confusion([int(a)], [int(b)], levels) for a, b in zip(run, truth, strict=True))
    for run in runs
  ]
  same = sum(agreement.coincidences([*map(int, column)], levels) for column in runs.T)
  correlation = agreement.spearman(runs.mean(axis=0), truth.astype(float), np.ones(len(truth)))
  kappa = float(np.mean(agreement.weighted_kappa(np.array(with_truth))))
  return kappa, float(agreement.ordinal_alpha(np.asarray(same))), float(correlation)


def main() -> Sequence[str]:
  """Prints the table, and returns its lines."""
  truth = true_grades()
  lines = [
    "| noise | scale | kappa with truth | alpha of runs | Spearman with truth |",
    "|---|---|---|---|---|",
  ]
  for noise in NOISES:
    runs = add_noise(truth, noise)
    for place, scale in enumerate(grade.SCALES):
      numbers = " | ".join(f"{each:.2f}" for each in measure(truth[:, place], runs[:, :, place]))
      lines.append(f"| {noise:g} | {scale} | {numbers} |")
  counts = {
    scale: np.bincount(truth[:, n], minlength=6)[1:].tolist()
    for n, scale in enumerate(grade.SCALES)
  }
  lines.append(f"\n{len(truth)} traces; true grades 1 to 5: {counts}")
  print("\n".join(lines))
  return lines


if __name__ == "__main__":
  main()
