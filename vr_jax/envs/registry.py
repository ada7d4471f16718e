"""The registered environments, and the construction of one from a config.

config.recipe is a registered name, or `file.py:Class` or `module:Class` for a user's environment.
"""

from typing import Any

import ml_collections

from vr_jax import errors, schema, user_code
from vr_jax.envs import environment as environment_lib
from vr_jax.envs import moss_chatv, question_answer, revseg, video_mtr, videop2r

ENVIRONMENTS: dict[str, type] = {
  "grpo": question_answer.QuestionAnswer,
  "moss_chatv": moss_chatv.MossChatV,
  "revseg": revseg.ReVSeg,
  "videop2r": videop2r.VideoP2R,
  "video_mtr": video_mtr.VideoMTR,
}

# Services that an environment may take besides the fields of its config.
#   judge         the judge of config.judge, see rewards/judge.py
#   frame_reader  the frame store of the run; its `read(video, indices)` returns frames
#   step_embedder a `rewards.step_distance.StepEmbedder` of the parameters that RL starts from
#   box_scale     how the model writes boxes: `models.interface.Processor.box_scale`
NEEDS = ("judge", "frame_reader", "step_embedder", "box_scale")


def environment_class(recipe: str) -> type:
  """The class that config.recipe names.

  Raises:
    InputError: no environment has that name, the class is not an environment, or it needs an
      unknown service.
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
  """Fills in config.env with the defaults of the environment's fields."""
  schema.complete(config.env, environment_class(config.recipe), "config.env")


def make_environment(
  config: ml_collections.ConfigDict, **services: Any
) -> environment_lib.Environment:
  """Builds the environment of a recipe.

  services: by name, see `NEEDS`; None or left out if no replies are scored.

  Raises InputError if config.recipe names no environment, or a field of config.env is invalid.
  """
  cls = environment_class(config.recipe)
  given = {name: services.get(name) for name in cls.needs}
  return schema.build(cls, config.env, **given)


def _members(protocol: type) -> set[str]:
  """Names of a protocol's methods and attributes."""
  return {
    name
    for base in protocol.__mro__
    for name in (*vars(base), *vars(base).get("__annotations__", {}))
    if not name.startswith("_")
  }
