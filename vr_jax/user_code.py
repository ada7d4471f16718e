"""Imports a user's own Python code, and reports its exceptions in one line.

A reference has the form `file.py:name`, or `package.module:name` for modules that Python can
import. A file may import other files in its directory.
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
  """Whether a name refers to a user's file or module, rather than to something registered."""
  return ":" in name


def absolute(name: str, folders: Sequence[Path]) -> str:
  """Makes the path in a reference absolute, using the first of `folders` that has the file.

  References to modules stay as they are, and so does a file that no folder has: `load` reports it.
  """
  path, _, attribute = name.rpartition(":")
  if not path.endswith(".py"):
    return name
  for folder in folders:
    if (file := folder / Path(path).expanduser()).is_file():
      return f"{file.resolve()}:{attribute}"
  return name


def load(name: str, where: str) -> Any:
  """Loads what a reference names. `where` is the config field that holds it, for messages.

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
  """Imports a file, once. Like a script, it may import other files in its directory.

  Raises:
    InputError: there is no such file, or importing it raises an exception; names the line.
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
  assert spec is not None and spec.loader is not None  # so for every path that ends with .py
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
  """Describes an exception in one line, with the file and line that raised it."""
  text = " ".join(str(error).split())
  if isinstance(error, SyntaxError):
    return f"{type(error).__name__}: {text}"  # its text names file and line
  frames = traceback.extract_tb(error.__traceback__)
  outside = [frame for frame in frames if "importlib" not in frame.filename]
  place = f" ({Path(outside[-1].filename).name}, line {outside[-1].lineno})" if outside else ""
  return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"
