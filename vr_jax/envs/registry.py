"""The environments that a config can name."""

from collections.abc import Callable

import ml_collections

from vr_jax import errors, records
from vr_jax.envs import environment as environment_lib
from vr_jax.envs import moss_chatv, video_mtr, videop2r
from vr_jax.rewards import judge as judge_lib

AnyEnvironment = environment_lib.Environment | environment_lib.TurnsEnvironment
ENVIRONMENTS: dict[str, Callable[..., AnyEnvironment]] = {
  "moss_chatv": moss_chatv.MossChatV,
  "videop2r": videop2r.VideoP2R,
  "video_mtr": video_mtr.VideoMTR,
}


def make_environment(
  config: ml_collections.ConfigDict, *, judge: judge_lib.Judge | None = None
) -> AnyEnvironment:
  """The environment of a recipe.

  judge: used by recipes whose config has a section `judge`; None if nothing will be scored.

  Raises InputError where config.recipe names no environment.
  """
  if config.recipe not in ENVIRONMENTS:
    raise errors.InputError(f"config.recipe={config.recipe}: one of {', '.join(ENVIRONMENTS)}")
  judged = {"judge": judge} if "judge" in config else {}
  return ENVIRONMENTS[config.recipe](**config.env.to_dict(), **judged)


def opening_texts(
  environment: AnyEnvironment, example: records.Example, frames: int
) -> tuple[str, ...]:
  """The texts of the first user turn. frames: size of the pool, for environments of several turns."""
  if environment_lib.has_turns(environment):
    shown = environment.observe(example, frames, ()).parts
    return tuple(part for part in shown if isinstance(part, str))
  return (example.question, *example.options)
