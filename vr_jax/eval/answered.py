"""What held-out examples were answered, and what is measured of them together."""

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

# Beside those that the environment declares.
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
class Answered:
  """One held-out example with its reply and scores.

  accuracy: the task metric of its answer. steps: of its trace. observation: what it says to have
  seen, None where the recipe doesn't ask for it. rewards: by name, of the segment that answers, the
  last. segment_rewards: of each segment by its name, where there are several. segment: that of each
  token, -1 where there is none.

  Of several turns `reply` is the last one, episode all of them, rewards what the whole episode came
  to, and of_segments has the turns.
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
  """Half-width of the 95 % interval of a mean."""
  return float(1.96 * np.std(values) / np.sqrt(len(values)))


def reward_means(answered: Sequence[Answered], declared: metric_lib.Metrics) -> dict[str, float]:
  """Means of what was earned, by the name of the metric that declares it, or else `rewards/<name>/mean`.

  Of several turns, of what the environment says of whole episodes, by its own names.
  """
  names = {each.reward: name for name, each in declared.items() if each.reward}
  values: dict[str, list[float]] = {}
  for a in answered:
    for name, value in a.rewards.items():
      known = name if a.episode or name in declared else names.get(name, f"rewards/{name}/mean")
      values.setdefault(known, []).append(value)
    for segment, rewards in [] if a.episode else list(a.segment_rewards.items())[:-1]:
      for name, value in rewards.items():
        values.setdefault(f"{segment}/{name}", []).append(value)
  return {name: float(np.mean(of_name)) for name, of_name in values.items()}


def chance_levels(answered: Sequence[Answered], declared: metric_lib.Metrics) -> dict[str, float]:
  """What guesses would get, `<metric>_chance`, of metrics that say it."""
  return {
    f"{name}_chance": float(np.mean([each.chance(a.example) for a in answered]))
    for name, each in declared.items()
    if each.chance
  }


def by_type(answered: Sequence[Answered]) -> dict[str, float]:
  """Accuracy on each problem type, and its interval."""
  values: dict[str, list[float]] = {}
  for a in answered:
    values.setdefault(a.example.problem_type, []).append(a.accuracy)
  means = {f"accuracy/{kind}": float(np.mean(v)) for kind, v in values.items()}
  return means | {f"accuracy_interval/{kind}": interval(v) for kind, v in values.items()}


def trace_metrics(answered: Sequence[Answered]) -> dict[str, float]:
  """Whether traces are true, by the states of simulated examples; {} without such."""
  known = [a for a in answered if has_truth(a.example)]
  if not known:
    return {}
  values = {"trace_consistency": float(np.mean([consistency(a).score for a in known]))}
  if known[0].observation is not None:
    enough = [sufficiency.sufficient(a.example, a.observation) for a in known]
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
  """Whether the states are the simulator's: traces are read in its words, which other data does not use."""
  return example.source == "simulator" and bool(example.states)


def _says(answered: Answered, value: str) -> bool:
  """Whether a reply answers `value` (a letter of a multiple choice, or a phrase)."""
  example = answered.example
  kind, options = example.problem_type, example.options
  return accuracy_lib.accuracy(answered.reply, value, kind, options) == 1


def consistency(answered: Answered) -> consistency_lib.Consistency:
  """The trace of a reply against the true states."""
  example = answered.example
  reference = [step.text for step in example.steps]
  return consistency_lib.trace_consistency(answered.steps, example.states, reference=reference)
