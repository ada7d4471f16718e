"""Python files of a user: found, imported with the files beside them, and their mistakes told in a line.

A name is `file.py:name`, or `package.module:name` of what Python can import.
"""

from collections.abc import Sequence
import hashlib
import importlib
import importlib.util
from pathlib import Path
import sys
import traceback
import types
from typing import Any

from vr_jax import errors


def is_reference(name: str) -> bool:
  """Whether a name is that of a file or module and something in it, and not a registered one."""
  return ":" in name


def absolute(name: str, folders: Sequence[Path]) -> str:
  """The name with the whole path of its file, which the first of `folders` that has it holds.

  Names of modules stay as they are, and so does a file that no folder has: `load` says so.
  """
  path, _, attribute = name.rpartition(":")
  if not path.endswith(".py"):
    return name
  for folder in folders:
    if (found := folder / Path(path).expanduser()).is_file():
      return f"{found.resolve()}:{attribute}"
  return name


def load(name: str, where: str) -> Any:
  """What a name stands for. `where` is the config field that has it.

  Raises:
    InputError: there is no such file, module or attribute, or it can't be imported.
  """
  path, _, attribute = name.rpartition(":")
  if path.endswith(".py"):
    module = load_file(Path(path).expanduser(), f"{where}={name}")
  else:
    module = _load_module(path, f"{where}={name}")
  if not attribute or not hasattr(module, attribute):
    raise errors.InputError(f"{where}={name}: {path} has no {attribute or 'name behind the colon'}")
  return getattr(module, attribute)


def load_file(path: Path, where: str) -> types.ModuleType:
  """The module of a file, imported once. It may import the files beside it, as a script may.

  Raises:
    InputError: there is no such file, or importing it raises; names the line.
  """
  if not path.is_file():
    raise errors.InputError(f"{where}: no such file")
  path = path.resolve()
  digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
  module_name = f"vr_jax_user_{path.stem}_{digest}"
  if module_name in sys.modules:
    return sys.modules[module_name]
  if str(path.parent) not in sys.path:
    sys.path.insert(0, str(path.parent))
  spec = importlib.util.spec_from_file_location(module_name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[module_name] = module  # dataclasses look their module up
  try:
    spec.loader.exec_module(module)
  except Exception as error:
    del sys.modules[module_name]
    if isinstance(error, errors.InputError):
      raise
    raise errors.InputError(f"{path}: {describe(error)}") from error
  return module


def _load_module(name: str, where: str) -> types.ModuleType:
  if str(Path.cwd()) not in sys.path:
    sys.path.append(str(Path.cwd()))
  try:
    return importlib.import_module(name)
  except Exception as error:
    raise errors.InputError(f"{where}: can't be imported: {describe(error)}") from error


def describe(error: BaseException) -> str:
  """An exception in one line, with the file and line that raised it."""
  text = " ".join(str(error).split())
  if isinstance(error, SyntaxError):
    return f"{type(error).__name__}: {text}"  # which names file and line itself
  frames = traceback.extract_tb(error.__traceback__)
  outside = [frame for frame in frames if "importlib" not in frame.filename]
  place = f" ({Path(outside[-1].filename).name}, line {outside[-1].lineno})" if outside else ""
  return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"
