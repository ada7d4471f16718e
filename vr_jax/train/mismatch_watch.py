"""Notices steps of RL whose replies were sampled with other probabilities than the update has."""

from collections.abc import Mapping
import dataclasses

import ml_collections

from vr_jax.train import console

METRIC = "sampling/sampling_logp_difference/mean"
_OFF_POLICY = (
  "an update lies between them: lower config.rl.learning_rate, or set config.rl.{}=False"
)
_INT8 = (
  "config.rl.sampler_weights=int8 rounds weights: set as_trained, or config.rl.mismatch_warning "
  "above this if rewards grow as they did"
)
_ON_POLICY = (
  "on policy they should agree: see whether config.model.dtype=float32 makes them, and report it "
  "if not"
)


def off_policy_option(rl: ml_collections.ConfigDict) -> str:
  """The field of config.rl by which replies are older than the policy that they train; "": none."""
  return next((name for name in ("one_step_off_policy", "carry_over") if rl[name]), "")


@dataclasses.dataclass
class MismatchWatch:
  """Prints a line at the first step above a limit, the 10th, the 100th and so on.

  limit: config.rl.mismatch_warning; 0: nothing is printed.
  off_policy: the field of config.rl by which replies are older than the policy; "": none.
  int8_weights: whether config.rl.sampler_weights is int8.
  above: steps so far above the limit.
  """

  limit: float
  int8_weights: bool = False
  off_policy: str = ""
  above: int = 0

  def note(self, step: int, values: Mapping[str, float]) -> None:
    """Takes the metrics of a step."""
    if not self.limit or values.get(METRIC, 0.0) <= self.limit:
      return
    self.above += 1
    if console.is_power_of_ten(self.above):
      causes = [_OFF_POLICY.format(self.off_policy)] if self.off_policy else []
      causes += [_INT8] * self.int8_weights
      advice = "; ".join(causes or [_ON_POLICY])
      p99, k3 = values["sampling/sampling_logp_difference/p99"], values["sampling/k3"]
      console.print_note(
        f"rl {step}: {METRIC} is {values[METRIC]:.3g} nats a token, above "
        f"config.rl.mismatch_warning={self.limit:g} (p99 {p99:.3g}, k3 {k3:.3g}): sampler and "
        f"update differ; {advice}"
      )
