"""Parses the text of a compiled program into computations and their instructions.

Only the fields that counting costs needs are kept.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import re
from typing import Any, cast

import jax
from jaxlib import _hlo  # pyright: ignore[reportAttributeAccessIssue] a C++ module, no public name

# Bytes of an element; tokens and opaque values take no memory.
ITEM_BYTES: Mapping[str, float] = {
  **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3b11fnuz"), 1),
  **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
  **dict.fromkeys(("s32", "u32", "f32"), 4),
  **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
  **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 0.5),
  **dict.fromkeys(("s2", "u2"), 0.25),
  "c128": 16,
  "token": 0,
  "opaque": 0,
}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.\-]+) = (.*)$", flags=re.DOTALL)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_OPERATION = re.compile(r"\s*([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_COMMENT = re.compile(r"/\*index=\d+\*/")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array: element type, sizes, and its memory space (0: the device's main memory, HBM)."""

  dtype: str
  sizes: tuple[int, ...]
  space: int = 0

  @property
  def bytes(self) -> float:
    """Size of the elements, padding of tiles not counted."""
    return math.prod(self.sizes) * ITEM_BYTES[self.dtype]

  def __str__(self) -> str:
    return f"{self.dtype}[{','.join(map(str, self.sizes))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  shapes: of its outputs, several for a tuple.
  attributes: the text after the operands.
  """

  name: str
  operation: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  attributes: str
  argument: str  # the text between the parentheses
  is_root: bool

  @property
  def op_name(self) -> str:
    """The place in the traced function that it comes from; "" where it states none."""
    match = _OP_NAME.search(self.attributes)
    return match.group(1) if match else ""

  def attribute(self, name: str) -> str:
    """The value of an attribute up to the next comma outside brackets; "" where it has none."""
    match = re.search(rf"(?:^|[ ,]){name}=", self.attributes)
    return "".join(_until_comma(self.attributes[match.end() :])) if match else ""

  @property
  def called(self) -> tuple[str, ...]:
    """The computations that it runs."""
    head = self.attributes.split(", metadata=", 1)[0]
    names = _CALLED.findall(head)
    for several, one in _BRANCHES.findall(head):
      names += [name.strip(" %") for name in several.split(",")] if several else [one]
    return tuple(names)


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in the order of the text."""

  name: str
  instructions: tuple[Instruction, ...]

  @functools.cached_property
  def by_name(self) -> Mapping[str, Instruction]:
    """Instructions by name."""
    return {instruction.name: instruction for instruction in self.instructions}

  @functools.cached_property
  def users(self) -> Mapping[str, Sequence[Instruction]]:
    """Which instructions read each one."""
    users: dict[str, list[Instruction]] = {}
    for instruction in self.instructions:
      for name in dict.fromkeys(instruction.operands):
        users.setdefault(name, []).append(instruction)
    return users

  @functools.cached_property
  def parameters(self) -> Sequence[Instruction]:
    """Parameters in order."""
    parameters = [i for i in self.instructions if i.operation == "parameter"]
    return sorted(parameters, key=lambda i: int(i.argument))

  @property
  def root(self) -> Instruction:
    """The instruction whose value the computation returns."""
    return next(i for i in self.instructions if i.is_root)

  def operand(self, instruction: Instruction, index: int) -> Instruction:
    """One operand of an instruction."""
    return self.by_name[instruction.operands[index]]


@dataclasses.dataclass(frozen=True)
class Module:
  """A program."""

  entry: str
  computations: Mapping[str, Computation]


def text_of(compiled: jax.stages.Compiled) -> str:
  """The text of a program with all its constants; `as_text` omits large ones."""
  module = cast(Any, compiled.runtime_executable()).hlo_modules()[0]
  options = _hlo.HloPrintOptions()
  options.print_large_constants = True
  return module.to_string(options)


def parse(text: str) -> Module:
  """Reads a module's text. Raises ValueError where it holds no entry computation."""
  computations, entry, name, lines = {}, None, None, []
  for line in text.splitlines():
    if name is None:
      header = _HEADER.match(line)
      if header:
        name, lines = header.group(2), []
        entry = name if header.group(1) else entry
    elif line == "}" or line.startswith("}, execution_thread="):
      matches = (_INSTRUCTION.match(_COMMENT.sub("", whole)) for whole in lines)
      computations[name] = Computation(name, tuple(_instruction(*f.groups()) for f in matches if f))
      name = None
    elif _INSTRUCTION.match(line):
      lines.append(line)
    elif lines:  # attributes may hold line breaks
      lines[-1] += line
  if entry is None:
    raise ValueError("the text holds no entry computation")
  return Module(entry, computations)


def numbers(text: str) -> list[int]:
  """The numbers in a text."""
  return [int(number) for number in re.findall(r"\d+", text)]


def _instruction(root: str | None, name: str, rest: str) -> Instruction:
  end = _type_end(rest)
  operation = _OPERATION.match(rest, end)
  if operation is None:
    raise ValueError(f"{name}: no operation in {rest[:80]}")
  close = _closing(rest, operation.end() - 1)
  argument = rest[operation.end() : close]
  operands = tuple(part.split()[-1].lstrip("%") for part in _split(argument) if "%" in part)
  return Instruction(
    name=name,
    operation=operation.group(1),
    shapes=tuple(_shapes(rest[:end])),
    operands=operands,
    attributes=rest[close + 1 :].lstrip(", "),
    argument=argument,
    is_root=root is not None,
  )


def _type_end(text: str) -> int:
  """The end of the type that a line starts with: after its tuple, or after its layout."""
  if text.startswith("("):
    return _closing(text, 0) + 1
  return text.index(" ")


def _closing(text: str, start: int) -> int:
  """The index of the parenthesis that closes the one at `start`."""
  depth = 0
  for place in re.finditer(r"[()]", text[start:]):
    depth += 1 if place.group() == "(" else -1
    if depth == 0:
      return start + place.start()
  raise ValueError(f"unclosed parenthesis: {text[start : start + 80]}")


def _shapes(text: str) -> Iterator[Shape]:
  for dtype, sizes, layout in _ARRAY.findall(text):
    space = re.search(r"S\((\d+)\)", layout)
    sizes = tuple(int(size) for size in sizes.split(",") if size)
    yield Shape(dtype, sizes, int(space.group(1)) if space else 0)


def _split(text: str) -> list[str]:
  """The parts of a text between commas outside brackets."""
  parts, depth, start = [], 0, 0
  for place in re.finditer(r"[()\[\]{},]", text):
    character = place.group()
    if character == "," and depth == 0:
      parts.append(text[start : place.start()])
      start = place.end()
    elif character in "([{":
      depth += 1
    elif character != ",":
      depth -= 1
  return [*parts, text[start:]] if text.strip() else []


def _until_comma(text: str) -> str:
  return _split(text)[0].strip() if text else ""
