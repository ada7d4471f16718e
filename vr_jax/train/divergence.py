"""Ends a run that has diverged."""

from collections.abc import Mapping

from vr_jax import errors


def check_finite(values: Mapping[str, float], most: int, stage: str, step: int) -> None:
  """Raises Diverged if too many updates in a row were not finite, of the policy or of its critic.

  most: the number of updates at which it raises; 0 means 1.
  """
  own = values["consecutive_nonfinite_updates"]
  critic = values.get("critic/consecutive_nonfinite_updates", 0)
  section = "critic" if critic > own else stage
  void = int(max(own, critic))
  if 0 < void >= most:
    raise errors.Diverged(
      f"{stage} step {step}: {void} updates in a row had a loss or gradient that "
      f"is not finite (config.{stage}.max_consecutive_nonfinite={most}); "
      f"lower config.{section}.learning_rate"
    )
