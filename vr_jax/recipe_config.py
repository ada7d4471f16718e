"""Loads the config that --config= names: a recipe or a file, and a size.

moss_chatv:tiny              a recipe of this project, from any directory
configs/moss_chatv.py:tiny   a file; a user's file may import files of its own directory
"""

from collections.abc import Sequence
from pathlib import Path

import ml_collections

from vr_jax import errors, user_code


def configs_directory() -> Path:
  """The directory of this project's recipes: in the installed package, or next to its sources."""
  package = Path(__file__).resolve().parent
  installed = package / "configs"
  return installed if installed.is_dir() else package.parent / "configs"


def names() -> list[str]:
  """The names of this project's recipes."""
  return sorted(path.stem for path in configs_directory().glob("*.py"))


def load(recipe: str) -> ml_collections.ConfigDict:
  """Returns the complete config of a recipe at a size, locked.

  recipe: as in --config=.

  Raises:
    InputError: as `read` and `complete` do.
  """
  config, path = read(recipe)
  complete(config, (path.parent, Path.cwd()))
  return config


def read(recipe: str) -> tuple[ml_collections.ConfigDict, Path]:
  """Returns the config that a recipe's file makes, and the path of the file.

  The fields of config.env that the file does not set are missing; `complete` adds them.

  Raises:
    InputError: there is no such recipe or size, or its file raises an exception.
  """
  name, colon, size = recipe.partition(":")
  path = Path(name).expanduser()
  if path.suffix != ".py":
    path = configs_directory() / f"{name}.py"
    if name not in names():
      known = ", ".join(names())
      raise errors.InputError(f"--config={name}: no such recipe; one of {known}, or a file.py")
  module = user_code.load_file(path, f"--config={name}")
  if not hasattr(module, "get_config"):
    raise errors.InputError(f"{path}: has no function get_config")
  try:
    config = module.get_config(*([size] if colon else []))
  except errors.InputError:
    raise
  except ValueError as error:
    raise errors.InputError(f"--config={recipe}: {' '.join(str(error).split())}") from error
  except Exception as error:
    raise errors.InputError(f"{path}: {user_code.describe(error)}") from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise errors.InputError(f"{path}: get_config returns no ConfigDict")
  return config.lock(), path.resolve()


def complete(config: ml_collections.ConfigDict, folders: Sequence[Path]) -> None:
  """Adds the defaults of config.env, and makes the paths of a user's files absolute.

  folders: directories that are searched for a user's files, in this order.

  Raises:
    InputError: config.recipe names no environment, or config.env does not fit it.
  """
  from vr_jax.envs import registry  # here, because it imports JAX

  config.recipe = user_code.absolute(config.recipe, folders)
  registry.complete(config)
  if "rewards" in config.env:
    config.env.rewards = tuple(user_code.absolute(name, folders) for name in config.env.rewards)
