"""All processes of a run have to run the same programs: they are compared before they first run.

Where one host compiles another program than the others, its collectives don't match theirs, and all
of them wait for ever, or compute something else. So before a program runs for the first time, each
process tells the others, through the coordinator, what it is about to run.
"""

from collections.abc import Callable
import functools
import hashlib
import json
import socket
from typing import Any

import jax
from jax import core

from vr_jax import errors
from vr_jax.parallel import processes

_WAIT = 86_400.0  # seconds: the watch over processes that hang is to end them, not this


def compared(function: Callable[..., Any]) -> "ComparedProgram":
  """Makes a jitted function compare its programs; a decorator. See `ComparedProgram`."""
  return ComparedProgram(function)


class ComparedProgram:
  """A jitted function whose programs all processes compare, each before its first run.

  Programs of one process alone are not compared: those of arrays on its own devices, as a judge
  has them, and those inside of another jitted function. A program is compared as it is before XLA
  compiles it; versions and flags of XLA are compared at the start (train/preflight.py).

  A call raises InputError, in all processes, if one of them is about to run another program. It
  waits as long as the others take to come; a watch (train/health.py) ends a process that hangs.
  """

  def __init__(self, function: Callable[..., Any]) -> None:
    functools.update_wrapper(self, function)
    self._function = function
    self._compared: set[Any] = set()  # what has been compared, see `_signature`

  def __call__(self, *arguments: Any, **keywords: Any) -> Any:
    """Runs the function, once its program has been compared."""
    if processes.count_joined() > 1:
      self._compare(arguments, keywords)
    return self._function(*arguments, **keywords)

  def __getattr__(self, name: str) -> Any:
    """What jitted functions have, such as `lower`."""
    return getattr(self._function, name)

  def _compare(self, arguments: Any, keywords: Any) -> None:
    leaves, structure = jax.tree.flatten((arguments, keywords))
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    if any(isinstance(x, core.Tracer) for x in arrays) or all(
      x.is_fully_addressable for x in arrays
    ):
      return
    signature = (structure, *map(_kind, leaves))
    if signature in self._compared:
      return
    # JAX keeps what it traces and lowers here, so that the call does not do it again.
    text = self._function.lower(*arguments, **keywords).as_text()
    check_same(getattr(self._function, "__name__", "a program"), text)
    self._compared.add(signature)


def check_same(name: str, text: str) -> None:
  """Raises InputError if the text of a program is not the same in all processes."""
  own = {"host": socket.gethostname(), "program": name, "hash": _digest(text)}
  texts = processes.gather_texts("programs", json.dumps(own), wait=_WAIT)
  everyone = [json.loads(each) for each in texts]
  first = everyone[0]
  for index, each in enumerate(everyone):
    if each["program"] != first["program"]:
      raise errors.InputError(
        f"{each['host']} (process {index}): is about to run {each['program']}, but {first['host']} "
        f"{first['program']}; the same command, data and code have to be on all hosts"
      )
    if each["hash"] != first["hash"]:
      raise errors.InputError(
        f"{each['host']} (process {index}): has made another program of {name} than "
        f"{first['host']}; the same packages, data and JAX_* settings have to be on all hosts "
        "(JAX_DUMP_IR_TO=DIRECTORY writes the programs of each)"
      )


def _kind(leaf: Any) -> Any:
  """What a jitted function makes a program for: the type of an array, else the value."""
  if isinstance(leaf, jax.Array):
    return jax.typeof(leaf), leaf.sharding
  return jax.typeof(leaf) if hasattr(leaf, "dtype") else leaf


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()
