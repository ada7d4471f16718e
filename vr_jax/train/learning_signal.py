"""Notices steps of RL that teach nothing, since all replies of each group earned the same.

Advantages compare the replies to one prompt, so replies that earn the same are neither encouraged
nor discouraged. With a critic (`rl.advantage_estimator="gae"`) they are compared with its values
instead, and nothing is said.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path

from vr_jax.parallel import processes
from vr_jax.train import console, metrics

METRIC = "frac_reward_zero_std"
_FIRST = 3  # steps in a row after which a line is printed; again after 10 times as many, and so on
_MOST = 0.9  # fraction of a run's steps from which on its summary has a sentence
_CURE = (
  "ask easier or harder questions, train a longer warm start (config.sft.steps), raise "
  "config.rl.temperature or config.rl.num_generations, or add a reward that differs more"
)


@dataclasses.dataclass
class SignalWatch:
  """Prints a line when groups stop to differ. in_a_row: steps of this kind so far."""

  estimator: str  # rl.advantage_estimator
  in_a_row: int = 0

  def note(self, step: int, values: Mapping[str, float]) -> None:
    """Takes the metrics of a step."""
    self.in_a_row = self.in_a_row + 1 if values.get(METRIC) == 1 else 0
    if console.is_power_of_ten(self.in_a_row / _FIRST) and self.estimator != "gae":
      console.print_note(
        f"rl {step}: in the last {self.in_a_row} steps all replies of each group earned the same, "
        f"so there was nothing to learn; look at rollouts/, then {_CURE}"
      )


def print_summary(workdir: Path, estimator: str) -> None:
  """Prints the sentence of `describe` about a run that has ended."""
  if processes.is_first():
    lines = metrics.read(workdir / "metrics.jsonl", complete=False)
    values = [line["values"] for line in lines if line["stage"] == "rl"]
    if text := describe([each[METRIC] for each in values if METRIC in each], estimator):
      console.print_line(f"rl: {text}")


def describe(fractions: Sequence[float], estimator: str) -> str:
  """A sentence about a run most of whose steps taught nothing; empty for any other run.

  fractions: METRIC of each step.
  estimator: rl.advantage_estimator.
  """
  equal = sum(value == 1 for value in fractions)
  if estimator == "gae" or not fractions or equal < _MOST * len(fractions):
    return ""
  return (
    f"{'nothing' if equal == len(fractions) else 'little'} was learned from the rewards: in "
    f"{equal} of {len(fractions)} steps all replies of each group earned the same; {_CURE}"
  )
