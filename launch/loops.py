"""How often the loops of a compiled program run, read from their counters.

A JAX scan compiles to a `while` whose state holds a counter: it starts at a constant, the body
adds a constant to it, and the condition compares it with one. XLA may have wrapped any of these in
fusions or copies.
"""

from collections.abc import Sequence
import dataclasses

from launch import hlo

_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier")


@dataclasses.dataclass(frozen=True)
class _Linear:
  """A number: `offset`, plus the element `index` of the loop's state unless that is None."""

  offset: int
  index: int | None = None


class _LoopState:
  """The state of the loop as a whole."""


@dataclasses.dataclass(frozen=True)
class Scope:
  """A computation and the values of its parameters.

  parameters: instructions of the calling scope, each with that scope.
  loop: the `while` whose body it is, with the scope of that.
  """

  computation: hlo.Computation
  parameters: Sequence[tuple["Scope", str]] | None = None
  loop: tuple["Scope", hlo.Instruction] | None = None


def trip_count(module: hlo.Module, before: Scope, loop: hlo.Instruction) -> int | None:
  """How often a `while` in the scope `before` runs its body.

  None where more than a counter decides it.
  """
  condition = Scope(module.computations[loop.attribute("condition").lstrip("%")])
  body = Scope(module.computations[loop.attribute("body").lstrip("%")])
  scope, test = _resolve(module, condition, condition.computation.root.name)
  if test.operation != "compare":
    return None
  inside = body.computation.root.name

  def settled(side: object) -> object:
    """The value of a side in each iteration, where the body passes it on unchanged."""
    if not isinstance(side, _Linear) or side.index is None:
      return side
    if _element(module, body, inside, side.index) != _Linear(0, side.index):
      return side
    return _sum(
      _element(module, before, loop.operands[0], side.index), _Linear(side.offset), sign=1
    )

  left, right = (settled(_value(module, scope, name)) for name in test.operands)
  if not isinstance(left, _Linear) or not isinstance(right, _Linear):
    return None
  counter, limit = (left, right) if right.index is None else (right, left)
  if counter.index is None or limit.index is not None:
    return None
  start = _element(module, before, loop.operands[0], counter.index)
  after = _element(module, body, inside, counter.index)
  if not isinstance(start, _Linear) or start.index is not None:
    return None
  if not isinstance(after, _Linear) or after.index != counter.index or not after.offset:
    return None
  # As if the counter stood on the left and counted up.
  direction = test.attribute("direction")
  upwards = (direction in ("LT", "LE")) == (counter is left)
  distance = limit.offset - counter.offset - start.offset
  step = after.offset
  if not upwards:
    distance, step = -distance, -step
  if step < 0 or direction not in ("LT", "LE", "GT", "GE"):
    return None
  return max(0, -(-(distance + (direction in ("LE", "GE"))) // step))


def origin(module: hlo.Module, scope: Scope, name: str) -> hlo.Instruction:
  """The instruction that computes a value, found through (nested) loops that only pass it on.

  Of a slice whose place is computed, the one that computes what it is cut out of.
  """
  scope, instruction = _resolve(module, scope, name)
  if instruction.operation == "dynamic-slice":
    return origin(module, scope, instruction.operands[0])
  if instruction.operation != "get-tuple-element":
    return instruction
  index = int(instruction.attribute("index"))
  return _origin_of_element(module, scope, instruction.operands[0], index) or instruction


def _origin_of_element(
  module: hlo.Module, scope: Scope, name: str, index: int
) -> hlo.Instruction | None:
  """The instruction that computes an element of a tuple; None where that can't be followed."""
  scope, source = _resolve(module, scope, name)
  if source.operation == "tuple":
    return origin(module, scope, source.operands[index])
  if source.operation == "while" and _passes_on(module, source, index):  # the state behind a loop
    return _origin_of_element(module, scope, source.operands[0], index)
  if source.operation == "parameter" and scope.loop is not None:  # the state in its body
    outer, loop = scope.loop
    if _passes_on(module, loop, index):
      return _origin_of_element(module, outer, loop.operands[0], index)
  return None


def _passes_on(module: hlo.Module, loop: hlo.Instruction, index: int) -> bool:
  """Whether the body of a `while` leaves an element of its state as it is."""
  body = Scope(module.computations[loop.attribute("body").lstrip("%")])
  return _element(module, body, body.computation.root.name, index) == _Linear(0, index)


def _resolve(module: hlo.Module, scope: Scope, name: str) -> tuple[Scope, hlo.Instruction]:
  """The instruction that a name stands for, with its scope; looks through copies and fusions."""
  instruction = scope.computation.by_name[name]
  if instruction.operation in _SAME:
    return _resolve(module, scope, instruction.operands[0])
  if instruction.operation in ("fusion", "call"):
    inner = module.computations[instruction.called[0]]
    parameters = [(scope, operand) for operand in instruction.operands]
    return _resolve(module, Scope(inner, parameters), inner.root.name)
  if instruction.operation == "parameter" and scope.parameters is not None:
    return _resolve(module, *scope.parameters[int(instruction.argument)])
  return scope, instruction


def _value(module: hlo.Module, scope: Scope, name: str) -> _Linear | _LoopState | None:
  """The value of an instruction, as far as counting needs it."""
  scope, instruction = _resolve(module, scope, name)
  if instruction.operation == "parameter":
    return _LoopState()
  if instruction.operation == "constant":
    text = instruction.argument
    return _Linear(int(text)) if text.lstrip("-").isdigit() else None
  if instruction.operation == "get-tuple-element":
    index = int(instruction.attribute("index"))
    return _element(module, scope, instruction.operands[0], index)
  if instruction.operation in ("add", "subtract"):
    left, right = (_value(module, scope, operand) for operand in instruction.operands)
    return _sum(left, right, sign=1 if instruction.operation == "add" else -1)
  return None


def _element(
  module: hlo.Module, scope: Scope, name: str, index: int
) -> _Linear | _LoopState | None:
  """One element of a tuple."""
  instruction = scope.computation.by_name[name]
  if instruction.operation == "fusion":
    inner = module.computations[instruction.called[0]]
    if inner.root.operation == "tuple":
      parameters = [(scope, operand) for operand in instruction.operands]
      return _value(module, Scope(inner, parameters), inner.root.operands[index])
    return None
  scope, instruction = _resolve(module, scope, name)
  if instruction.operation == "tuple":
    return _value(module, scope, instruction.operands[index])
  if instruction.operation == "while" and _passes_on(module, instruction, index):
    return _element(module, scope, instruction.operands[0], index)
  if instruction.operation == "parameter":
    return _Linear(0, index)
  return None


def _sum(left: object, right: object, *, sign: int) -> _Linear | None:
  if not isinstance(left, _Linear) or not isinstance(right, _Linear):
    return None
  if right.index is None:
    return _Linear(left.offset + sign * right.offset, left.index)
  if left.index is None and sign > 0:
    return _Linear(left.offset + right.offset, right.index)
  return None
