"""Evaluated episodes about held-out examples, and metrics over all of them.

Segments are the parts of a reply that are rewarded apart; with several turns, the turns.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Int
import numpy as np

from vr_jax import records
from vr_jax.data import batches
from vr_jax.envs import environment
from vr_jax.envs import metric as metric_lib
from vr_jax.rewards import accuracy as accuracy_lib
from vr_jax.worlds import consistency as consistency_lib
from vr_jax.worlds import sufficiency

# In addition to those that the environment declares.
METRICS: metric_lib.Metrics = {
  "trace_consistency": metric_lib.Metric(
    title="Trace consistency",
    note="claims of the trace that the true states confirm",
    headline=True,
  ),
  "think_answer_mismatch": metric_lib.Metric(
    title="Think-answer mismatch", note="answers that their own trace contradicts", better=-1
  ),
  "blind_accuracy": metric_lib.Metric(title="Blind accuracy", note="no frames shown", better=0),
  "shuffled_accuracy": metric_lib.Metric(
    title="Shuffled-frame accuracy", note="frames out of order", better=0
  ),
  "completions/mean_length": metric_lib.Metric(title="Reply tokens", unit="", better=0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedEpisode:
  """The episode about one held-out example, with its scores.

  reply: with several turns, the last one.
  tokens: number of sampled tokens, of all turns.
  accuracy: the task metric of the answer.
  steps: reasoning steps of the reply.
  observation: the part of the reply that describes the video; None if the recipe has none.
  rewards: by name, of the last segment, which answers; with several turns, metrics of the episode.
  segment_rewards: by segment, then by name; empty if there is only one segment.
  episode: all turns; None if there is only one.
  segment: index of each token's segment; -1 if it has none.
  """

  example: records.Example
  clip: batches.Clip
  reply: str
  tokens: int
  accuracy: float
  steps: list[str]
  observation: str | None
  rewards: dict[str, float]
  segment_rewards: dict[str, dict[str, float]]
  episode: environment.Episode | None = None
  segment: Int[np.ndarray, "time"] | None = None


def interval(values: Sequence[float]) -> float:
  """Half-width of the 95 % confidence interval of a mean."""
  return float(1.96 * np.std(values) / np.sqrt(len(values)))


def reward_means(
  episodes: Sequence[EvaluatedEpisode], declared: metric_lib.Metrics
) -> dict[str, float]:
  """Computes the mean of each reward.

  Named after the metric that declares the reward, else `rewards/<name>/mean`. With several turns,
  the means of the environment's episode metrics, under their own names.
  """
  names = {each.reward: name for name, each in declared.items() if each.reward}
  values: dict[str, list[float]] = {}
  for a in episodes:
    for name, value in a.rewards.items():
      own = name if a.episode or name in declared else names.get(name, f"rewards/{name}/mean")
      values.setdefault(own, []).append(value)
    for segment, rewards in [] if a.episode else list(a.segment_rewards.items())[:-1]:
      for name, value in rewards.items():
        values.setdefault(f"{segment}/{name}", []).append(value)
  return {name: float(np.mean(each)) for name, each in values.items()}


def chance_levels(
  episodes: Sequence[EvaluatedEpisode], declared: metric_lib.Metrics
) -> dict[str, float]:
  """Computes `<metric>_chance`, what guessing would score, for metrics that define it."""
  return {
    f"{name}_chance": float(np.mean([each.chance(a.example) for a in episodes]))
    for name, each in declared.items()
    if each.chance
  }


def by_type(episodes: Sequence[EvaluatedEpisode]) -> dict[str, float]:
  """Accuracy of each problem type, and the half-width of its confidence interval."""
  values: dict[str, list[float]] = {}
  for a in episodes:
    values.setdefault(a.example.problem_type, []).append(a.accuracy)
  means = {f"accuracy/{kind}": float(np.mean(v)) for kind, v in values.items()}
  return means | {f"accuracy_interval/{kind}": interval(v) for kind, v in values.items()}


def trace_metrics(episodes: Sequence[EvaluatedEpisode]) -> dict[str, float]:
  """Measures whether traces are true, by the states of simulated examples; {} if there are none."""
  known = [a for a in episodes if has_truth(a.example)]
  if not known:
    return {}
  values = {"trace_consistency": float(np.mean([consistency(a).score for a in known]))}
  if known[0].observation is not None:
    enough = [sufficiency.sufficient(a.example, a.observation or "") for a in known]
    values["observation_sufficiency"] = float(np.mean(enough))
  implied = [
    (a, value)
    for a in known
    if (value := consistency_lib.implied_answer(a.steps, a.example)) is not None
  ]
  if implied:
    values["think_answer_mismatch"] = float(np.mean([not _says(a, value) for a, value in implied]))
  return values


def has_truth(example: records.Example) -> bool:
  """Whether true states are known. We can parse only traces phrased as the simulator's are."""
  return example.source == "simulator" and bool(example.states)


def _says(evaluated: EvaluatedEpisode, value: str) -> bool:
  """Whether a reply answers `value` (a letter of a multiple choice, or a phrase)."""
  example = evaluated.example
  kind, options = example.problem_type, example.options
  return accuracy_lib.accuracy(evaluated.reply, value, kind, options) == 1


def consistency(evaluated: EvaluatedEpisode) -> consistency_lib.Consistency:
  """Compares the trace of a reply with the true states."""
  example = evaluated.example
  reference = [step.text for step in example.steps]
  return consistency_lib.trace_consistency(evaluated.steps, example.states, reference=reference)
