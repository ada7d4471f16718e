"""The type checker that the tests put on every function of the package."""

import functools
import inspect
import typing

import beartype
import jaxtyping

# PEP 484: where a float is asked for, an int will do. beartype alone would refuse it.
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

_jaxtyped = jaxtyping.jaxtyped


def install(packages: list[str]) -> None:
  """Checks, in modules of `packages` imported from now on, all that functions get and return."""
  jaxtyping.jaxtyped = _of_arrays_or_not
  jaxtyping.install_import_hook(packages, "shape_checks.check")


def _of_arrays_or_not(fn=None, *, typechecker):
  """jaxtyping's decorator where an annotation has axes to compare; beartype alone elsewhere.

  jaxtyping binds the arguments of each call and checks them twice, which is a third of the time
  that a step takes to trace.
  """
  if fn is None:
    return functools.partial(_of_arrays_or_not, typechecker=typechecker)
  if inspect.isfunction(fn) and not any(map(_has_axes, fn.__annotations__.values())):
    return typechecker(fn)
  return _jaxtyped(fn, typechecker=typechecker)


def _has_axes(annotation) -> bool:
  if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
    return True
  return isinstance(annotation, str) or any(map(_has_axes, typing.get_args(annotation)))
