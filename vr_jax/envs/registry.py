"""Environments by name, and from a config to its environment.

config.recipe is a registered name, or `file.py:Class` or `module:Class` of a user.
"""

from typing import Any

import ml_collections

from vr_jax import errors, schema, user_code
from vr_jax.envs import environment as environment_lib
from vr_jax.envs import moss_chatv, question_answer, video_mtr, videop2r

ENVIRONMENTS: dict[str, type] = {
  "grpo": question_answer.QuestionAnswer,
  "moss_chatv": moss_chatv.MossChatV,
  "videop2r": videop2r.VideoP2R,
  "video_mtr": video_mtr.VideoMTR,
}

# What an environment may need beside its config. judge: see rewards/judge.py, that of config.judge;
# frame_reader: the frame store of the run, whose `read(video, indices)` gives frames.
NEEDS = ("judge", "frame_reader")


def environment_class(recipe: str) -> type:
  """The class that config.recipe names.

  Raises:
    InputError: there is none of that name, or it is no environment, or needs what nobody gives.
  """
  if not user_code.is_reference(recipe):
    if recipe not in ENVIRONMENTS:
      known = ", ".join(ENVIRONMENTS)
      raise errors.InputError(f"--config.recipe={recipe}: one of {known}, or file.py:Class")
    return ENVIRONMENTS[recipe]
  cls = user_code.load(recipe, "--config.recipe")
  if not isinstance(cls, type):
    raise errors.InputError(f"--config.recipe={recipe}: is no class")
  if missing := sorted(
    _members(environment_lib.Environment) - {*dir(cls), *getattr(cls, "__annotations__", {})}
  ):
    raise errors.InputError(
      f"--config.recipe={recipe}: lacks {missing[0]}, which environments have (docs/own_recipe.md)"
    )
  if unknown := [need for need in cls.needs if need not in NEEDS]:
    raise errors.InputError(
      f"--config.recipe={recipe}: needs {unknown[0]!r}; only {', '.join(NEEDS)} can be given"
    )
  return cls


def complete(config: ml_collections.ConfigDict) -> None:
  """Adds to config.env the defaults of its environment's fields."""
  schema.complete(config.env, environment_class(config.recipe), "config.env")


def make_environment(
  config: ml_collections.ConfigDict, **services: Any
) -> environment_lib.Environment:
  """The environment of a recipe.

  services: what environments may need, by name (`NEEDS`); None or left out where nothing is scored.

  Raises InputError where config.recipe names no environment, or its fields are no good.
  """
  cls = environment_class(config.recipe)
  given = {name: services.get(name) for name in cls.needs}
  return schema.build(cls, config.env, **given)


def _members(protocol: type) -> set[str]:
  """Names of the methods and attributes of a protocol."""
  return {
    name
    for base in protocol.__mro__
    for name in (*vars(base), *vars(base).get("__annotations__", {}))
    if not name.startswith("_")
  }
