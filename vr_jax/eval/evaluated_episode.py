"""Evaluated episodes about held-out examples, and what they contribute to metrics.

Segments are the parts of a reply that are rewarded apart; with several turns, the turns.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from jaxtyping import Int
import numpy as np

from vr_jax import records, run_length
from vr_jax.data import batches
from vr_jax.envs import environment
from vr_jax.envs import grounding as grounding_lib
from vr_jax.envs import metric as metric_lib
from vr_jax.eval import intervals as intervals_lib
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
  "j_and_f": metric_lib.Metric(
    title="J&F", note="mean of J and F of the tracked masks", headline=True
  ),
  "region_similarity": metric_lib.Metric(
    title="J", note="overlap of the tracked masks with the true ones"
  ),
  "boundary_f": metric_lib.Metric(title="F", note="accuracy of the tracked masks' boundaries"),
  "completions/mean_length": metric_lib.Metric(title="Reply tokens", unit="", better=0),
}
VIEWS = ("blind_accuracy", "shuffled_accuracy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackedObject:
  """The masks that a tracker found, and how right they are (segmentation.py).

  region_similarity, boundary_f: means over the annotated frames of what is shown.
  masks: by index in the clip; None where no pixel is marked.
  """

  region_similarity: float
  boundary_f: float
  masks: Mapping[int, run_length.RunLength | None]

  @property
  def metrics(self) -> dict[str, float]:
    """What it contributes to each metric."""
    mean = (self.region_similarity + self.boundary_f) / 2
    return {
      "j_and_f": mean,
      "region_similarity": self.region_similarity,
      "boundary_f": self.boundary_f,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedEpisode:
  """The episode about one held-out example, with its scores.

  reply: with several turns, the last one.
  tokens: number of sampled tokens, of all turns.
  truncated: whether a reply reached the token limit before it ended.
  problem: why the episode failed: its next turn was too large to show; "" if it did not.
  answer: the answer as it was read from the reply; None if the reply has none.
  accuracy: the task metric of the answer.
  steps: reasoning steps of the reply.
  observation: the part of the reply that describes the video; None if the recipe has none.
  rewards: by name, of the last segment, which answers; with several turns, metrics of the episode.
  segment_rewards: by segment, then by name; empty if there is only one segment.
  episode: all turns; None if there is only one.
  segment: index of each token's segment; -1 if it has none.
  grounding: the object that the episode found; None if the recipe does not look for one.
  tracked: its masks; None without a tracker.
  """

  example: records.Example
  clip: batches.Clip
  reply: str
  tokens: int
  truncated: bool
  answer: str | None
  accuracy: float
  steps: list[str]
  observation: str | None
  rewards: dict[str, float]
  segment_rewards: dict[str, dict[str, float]]
  problem: str = ""
  episode: environment.Episode | None = None
  segment: Int[np.ndarray, "time"] | None = None
  grounding: grounding_lib.Grounding | None = None
  tracked: TrackedObject | None = None


# The value of each metric for each episode that has one: metric -> index of the episode -> value.
Values = dict[str, dict[int, float]]


def values_by_metric(episodes: Sequence[EvaluatedEpisode], declared: metric_lib.Metrics) -> Values:
  """Lists what each episode contributes to each metric, which is the mean of these values.

  One that failed contributes 0 where higher is better.
  """
  by_type: Values = {}
  for index, each in enumerate(episodes):
    name = f"accuracy/{each.example.problem_type}"
    by_type.setdefault(name, {})[index] = each.accuracy
  values = {
    "accuracy": {index: each.accuracy for index, each in enumerate(episodes)},
    "completions/mean_length": {index: float(a.tokens) for index, a in enumerate(episodes)},
    **by_type,
    **_trace_values(episodes),
  }
  for index, each in enumerate(episodes):
    for name, value in each.tracked.metrics.items() if each.tracked else ():
      values.setdefault(name, {})[index] = value
  rewards = _reward_values(episodes, declared)
  values |= {name: each for name, each in rewards.items() if name not in values}
  failed = {index for index, each in enumerate(episodes) if each.problem}
  for name, by_index in values.items():
    if metric_lib.by_name(name, {**declared, **METRICS})[0].better > 0:
      by_index |= dict.fromkeys(failed & by_index.keys(), 0.0)
  return values


def _reward_values(episodes: Sequence[EvaluatedEpisode], declared: metric_lib.Metrics) -> Values:
  """Values of rewards, named after the metric that declares them, else `rewards/<name>/mean`.

  With several turns, the environment's episode metrics, under their own names.
  """
  names = {each.reward: name for name, each in declared.items() if each.reward}
  values: Values = {}
  for index, a in enumerate(episodes):
    for name, value in a.rewards.items():
      own = name if a.episode or name in declared else names.get(name, f"rewards/{name}/mean")
      values.setdefault(own, {})[index] = value
    for segment, rewards in [] if a.episode else list(a.segment_rewards.items())[:-1]:
      for name, value in rewards.items():
        values.setdefault(f"{segment}/{name}", {})[index] = value
  return values


def _trace_values(episodes: Sequence[EvaluatedEpisode]) -> Values:
  """Whether traces are true, by the states of simulated examples; {} if there are none."""
  known = {index: a for index, a in enumerate(episodes) if has_truth(a.example)}
  if not known:
    return {}
  values = {"trace_consistency": {index: consistency(a).score for index, a in known.items()}}
  if any(a.observation is not None for a in known.values()):
    values["observation_sufficiency"] = {
      index: float(sufficiency.sufficient(a.example, a.observation or ""))
      for index, a in known.items()
    }
  implied = {
    index: float(not _says(a, value))
    for index, a in known.items()
    if (value := consistency_lib.implied_answer(a.steps, a.example)) is not None
  }
  return values | ({"think_answer_mismatch": implied} if implied else {})


def with_chance_of_accuracy(shown_as: metric_lib.Metrics) -> metric_lib.Metrics:
  """Adds to accuracies of other views what guessing would score: as much as in accuracy itself."""
  chance = shown_as["accuracy"].chance if "accuracy" in shown_as else None
  return {
    name: dataclasses.replace(each, chance=chance) if name in VIEWS else each
    for name, each in shown_as.items()
  }


def intervals(
  values: Values, videos: Mapping[int, str], shown_as: metric_lib.Metrics
) -> dict[str, intervals_lib.Interval]:
  """Computes the 95 % confidence interval of each metric whose values are within [0, 1].

  videos: of the episodes, by index; those of one video are not independent.
  """
  found = {}
  for name, each in values.items():
    if metric_lib.by_name(name, shown_as)[0].is_fraction and all(
      0 <= x <= 1 for x in each.values()
    ):
      clusters = [videos[index] for index in each]
      found[name] = intervals_lib.mean_interval(list(each.values()), clusters)
  return found


def chances(
  episodes: Sequence[EvaluatedEpisode], values: Values, shown_as: metric_lib.Metrics
) -> Values:
  """Lists what guessing would score in each episode, for metrics that define it.

  Named `<metric>_chance`, or `<metric>_chance/<part>` for a part of a metric.
  """
  levels: Values = {}
  for name, each in values.items():
    chance = metric_lib.by_name(name, shown_as)[0].chance
    if chance:
      head, slash, part = name.partition("/")
      by_index = {index: float(chance(episodes[index].example)) for index in each}
      levels[f"{head}_chance{slash}{part}"] = by_index
  return levels


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
