"""When a run has diverged."""

from collections.abc import Mapping

from vr_jax import errors


def check_finite(values: Mapping[str, float], most: int, stage: str, step: int) -> None:
  """Raises Diverged at the `most`-th void update in a row (0 is as 1: at the first), of the policy or of its critic."""
  own, of_critic = (
    values["consecutive_nonfinite_updates"],
    values.get("critic/consecutive_nonfinite_updates", 0),
  )
  section = "critic" if of_critic > own else stage
  void = int(max(own, of_critic))
  if 0 < void >= most:
    raise errors.Diverged(
      f"{stage} step {step}: {void} updates in a row had a loss or gradient that "
      f"is not finite (config.{stage}.max_consecutive_nonfinite={most}); lower config.{section}.learning_rate"
    )
