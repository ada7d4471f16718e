"""Costs of one run of a compiled program on one device.

They are matrix FLOPs, bytes of main memory, and bytes between devices. XLA's own `cost_analysis`
counts the body of a loop once; here it counts as often as it runs.
"""

from collections.abc import Sequence
import dataclasses
import math
import re

import numpy as np

from launch import exchanges, hlo, kernels, loops, products, schedule

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
)
_NO_TRAFFIC = frozenset(
  (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all"),
    *("while", "call", "conditional", "optimization-barrier", "partition-id", "replica-id"),
    *("add-dependency", "domain", "async-start", "async-update", "async-done"),
  )
)
_SLICES = ("dynamic-slice", "slice", "gather", "slice-start")
# A collective that overlaps with computation is in several fusions; only its first has no flag to
# wait for.
_CARRIED_ON = re.compile(r'"async_collective_fusion_config":\{"flag_start":"\d')
_NOTHING_MOVES = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast)"')


@dataclasses.dataclass(frozen=True)
class Transfer:
  """A collective operation.

  bytes: of its result (all-gather) or its operands (all others), on one device, in one run.
    Between slices, those of the operands.
  devices: indices in the mesh's order of the devices in the first device's group; () between
    slices, where each device exchanges with its counterparts.
  times: how often it runs.
  slices: how many exchange over the network of the data centre; 1: the chips of one, over links.
  """

  kind: str
  bytes: float
  devices: tuple[int, ...]
  times: int
  op_name: str = ""
  slices: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelCalls:
  """Calls of a kernel whose cycles the compiler does not state.

  times: number of calls.
  passes, bytes: as in `Costs`, of one call.
  """

  times: int
  passes: float
  bytes: float


@dataclasses.dataclass(frozen=True)
class Temporary:
  """An array that the program computes and does not return."""

  shape: hlo.Shape
  op_name: str


@dataclasses.dataclass
class Costs:
  """Costs of one device.

  flops: of matrix products, two for each multiply-add.
  passes: the same FLOPs, each times the bfloat16 passes that its precision takes.
  bytes: read from and written to main memory.
  cycles: of the compiler's own schedule, without collectives (launch/schedule.py).
  vector_cycles: of these, those of instructions without a matrix product.
  kernels: in `flops`, `passes` and `bytes`, but not in `cycles`.
  transfers: collectives.
  """

  flops: float = 0.0
  passes: float = 0.0
  bytes: float = 0.0
  cycles: float = 0.0
  vector_cycles: float = 0.0
  kernels: list[KernelCalls] = dataclasses.field(default_factory=list)
  transfers: list[Transfer] = dataclasses.field(default_factory=list)

  @property
  def kernel_bytes(self) -> float:
    """Of `bytes`, those of `kernels`."""
    return sum(each.times * each.bytes for each in self.kernels)

  def collectives(self, *, between_slices: bool = False) -> dict[str, float]:
    """Bytes by kind of collective: of those within a slice, or of those between slices."""
    those = [t for t in self.transfers if (t.slices > 1) == between_slices]
    kinds = {transfer.kind for transfer in those}
    return {
      kind: sum(t.bytes * t.times for t in those if t.kind == kind)
      for kind in COLLECTIVES
      if kind in kinds
    }

  @property
  def exchanges(self) -> int:
    """How often slices exchange something: each time, they wait for one another."""
    return sum(t.times for t in self.transfers if t.slices > 1)

  def plus(self, other: "Costs") -> "Costs":
    """The sum with other costs."""
    names = [field.name for field in dataclasses.fields(self)]
    return Costs(**{name: getattr(self, name) + getattr(other, name) for name in names})


def count(module: hlo.Module, *, turns: int | None) -> tuple[Costs, Costs]:
  """Costs of a program outside and inside its loops of unknown length.

  turns: how often such a loop runs; None where there should be none.
  Of a conditional, the costliest branch counts.
  Raises ValueError where there is such a loop and `turns` is None.
  """
  counter = _Counter(module, turns)
  counter.visit(loops.Scope(module.computations[module.entry]), 1, counter.once)
  return counter.once, counter.turned


class _Counter:
  """The walk over a module."""

  def __init__(self, module: hlo.Module, turns: int | None):
    self.module, self.turns = module, turns
    self.once, self.turned = Costs(), Costs()

  def visit(self, scope: loops.Scope, times: int, costs: Costs, *, fused: bool = False) -> bool:
    """Adds the costs of a computation; returns whether it has a matrix product."""
    any_product = False
    for instruction in scope.computation.instructions:
      flops, passes = self._flops(scope, instruction)
      has_product = flops > 0
      costs.flops += times * flops
      costs.passes += times * passes
      moved_bytes = 0.0 if fused else traffic(self.module, scope.computation, instruction)
      costs.bytes += times * moved_bytes
      moved = transfer(scope.computation, instruction, times)
      if moved is not None:
        costs.transfers.append(moved)
      elif instruction.operation == "while":
        self._visit_loop(scope, instruction, times, costs)
      elif instruction.operation == "conditional":
        self._visit_costliest(scope, instruction, times, costs)
      elif instruction.operation in ("call", "async-start", "fusion"):
        within = fused or instruction.operation == "fusion"
        parameters = [(scope, operand) for operand in instruction.operands]
        for name in instruction.called:
          has_product |= self.visit(self._scope(name, parameters), times, costs, fused=within)
      if not fused and moved is None:
        cycles = times * schedule.cycles(instruction)
        costs.cycles += cycles
        costs.vector_cycles += 0.0 if has_product else cycles
        if kernels.is_kernel(instruction) and not cycles:
          costs.kernels.append(KernelCalls(times=times, passes=passes, bytes=moved_bytes))
      any_product |= has_product
    return any_product

  def _scope(self, name: str, parameters: Sequence[tuple[loops.Scope, str]]) -> loops.Scope:
    return loops.Scope(self.module.computations[name], parameters)

  def _flops(self, scope: loops.Scope, instruction: hlo.Instruction) -> tuple[float, float]:
    if kernels.is_kernel(instruction):
      flops = kernels.flops(self.module, scope, instruction)
      return flops, flops
    return products.flops(scope.computation, instruction)

  def _visit_costliest(
    self, scope: loops.Scope, instruction: hlo.Instruction, times: int, costs: Costs
  ) -> None:
    """Adds the costliest branch: devices may take different ones, and wait for the slowest."""
    branches = []
    for name, operand in zip(instruction.called, instruction.operands[1:], strict=True):
      branches.append(Costs())
      self.visit(self._scope(name, [(scope, operand)]), times, branches[-1])
    most = max(branches, key=lambda branch: (branch.passes, branch.bytes))
    for field in dataclasses.fields(Costs):
      setattr(costs, field.name, getattr(costs, field.name) + getattr(most, field.name))

  def _visit_loop(
    self, scope: loops.Scope, loop: hlo.Instruction, times: int, costs: Costs
  ) -> None:
    trips = loops.trip_count(self.module, scope, loop)
    if trips is None:
      if self.turns is None:
        raise ValueError(f"{loop.name}: how often the loop runs can't be read from its counter")
      trips, costs = self.turns, self.turned
    for name in loop.called:
      inner = loops.Scope(self.module.computations[name], loop=(scope, loop))
      self.visit(inner, times * trips, costs)


def transfer(
  computation: hlo.Computation, instruction: hlo.Instruction, times: int
) -> Transfer | None:
  """The collective that an instruction starts; None for other instructions.

  Raises ValueError where the text has an unknown form.
  """
  exchange = exchanges.read(instruction)
  if exchange is not None:
    size = computation.operand(instruction, 0).shapes[0].bytes
    kind, slices = exchange
    return Transfer(kind, size, (), times, instruction.op_name, slices)
  kind = instruction.operation.removesuffix("-start")
  if kind not in COLLECTIVES or _carries_on(instruction):
    return None
  if kind == "all-gather":
    # The start of an asynchronous one returns its operands and its results.
    results = instruction.shapes[len(instruction.operands) :] or instruction.shapes
    size = sum(shape.bytes for shape in results)
  else:
    size = sum(computation.by_name[name].shapes[0].bytes for name in instruction.operands)
  return Transfer(kind, size, first_group(instruction), times, instruction.op_name)


def _carries_on(instruction: hlo.Instruction) -> bool:
  """Whether it continues or ends a collective that another fusion has started."""
  text = instruction.attributes
  return 'custom_call_target="AsyncCollectiveDone"' in text or bool(_CARRIED_ON.search(text))


def first_group(instruction: hlo.Instruction) -> tuple[int, ...]:
  """The devices in the group of the program's first device.

  For a permutation, all sources and targets: source, target, source, target, …
  Raises ValueError where the text has an unknown form.
  """
  pairs = instruction.attribute("source_target_pairs")
  if pairs:
    return tuple(hlo.numbers(pairs))
  text = instruction.attribute("replica_groups")
  axes = re.search(r"replica_groups=mesh\[[^{]*\{(.*?)\}", instruction.attributes)
  if axes:
    return _first_along(text, instruction.attribute("device_ids").split(" ")[0], axes.group(1))
  listed = re.match(r"\{\{([\d,]*)\}", text)
  if listed:
    return tuple(hlo.numbers(listed.group(1)))
  tiled = re.match(r"\[([\d,]+)\]<=(.*)", text)
  if tiled:
    devices = _device_grid(tiled.group(2)).reshape(hlo.numbers(tiled.group(1)))
    return tuple(devices[0].ravel().tolist())
  raise ValueError(f"{instruction.name}: unknown form of replica_groups: {text[:80]}")


def _first_along(mesh: str, order: str, axes: str) -> tuple[int, ...]:
  """The devices of a named mesh that share all its axes but `axes` with the first one."""
  sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
  shape = tuple(sizes.values())
  devices = _device_grid(order or f"[{math.prod(shape)}]").reshape(shape)
  along = re.findall(r"'(\w+)'", axes)
  return tuple(devices[tuple(slice(None) if n in along else 0 for n in sizes)].ravel().tolist())


def _device_grid(text: str) -> np.ndarray:
  """Devices counted through a grid, its axes then reordered: `[2,4]T(1,0)`."""
  sizes, _, order = text.strip("()").partition("T(")
  grid = hlo.numbers(sizes)
  return np.arange(math.prod(grid)).reshape(grid).transpose(hlo.numbers(order) or None)


def traffic(
  module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> float:
  """Bytes of main memory that an instruction reads and writes.

  Of slices and updates in place, only the slice counts. Of a kernel, what it says.
  """
  if (stated := kernels.stated_bytes(instruction)) is not None:
    return stated
  if instruction.operation in _NO_TRAFFIC or instruction.operation.endswith("-done"):
    return 0.0
  if _NOTHING_MOVES.search(instruction.attributes):
    return 0.0
  if instruction.operation in _SLICES:
    source = computation.operand(instruction, 0).shapes[0]
    part = instruction.shapes[1 if instruction.operation == "slice-start" else 0]
    return part.bytes * ((source.space == 0) + (part.space == 0))
  if instruction.operation == "dynamic-update-slice":
    part = computation.operand(instruction, 1).shapes[0]
    return part.bytes * ((part.space == 0) + (instruction.shapes[0].space == 0))
  if instruction.operation == "copy-start":
    return _main(instruction.shapes[:2])
  if instruction.operation == "send":
    return _main(computation.operand(instruction, 0).shapes[:1])
  if instruction.operation == "recv":
    return _main(instruction.shapes[:1])
  if instruction.operation == "fusion":
    inner = module.computations[instruction.called[0]]
    operands = [computation.by_name[name].shapes for name in instruction.operands]
    read = sum(
      min(_main(shapes), _read(module, inner, inner.parameters[i]))
      for i, shapes in enumerate(operands)
    )
    return read + _written(inner, instruction)
  read = sum(_main(computation.by_name[name].shapes) for name in instruction.operands)
  return read + _main(instruction.shapes)


def _main(shapes: Sequence[hlo.Shape]) -> float:
  """Bytes in main memory."""
  return sum(shape.bytes for shape in shapes if shape.space == 0)


def _read(module: hlo.Module, computation: hlo.Computation, value: hlo.Instruction) -> float:
  """Bytes of `value` that a fusion reads: of slices the slice; infinity where it reads all."""
  total = 0.0
  for user in computation.users.get(value.name, ()):
    if user.operation == "tuple" or _carries_on(user):  # passed on, not read
      continue
    if user.operation in _SLICES and user.operands[0] == value.name:
      total += sum(shape.bytes for shape in user.shapes)
    elif user.operation == "dynamic-update-slice" and user.operands[0] == value.name:
      continue
    elif user.operation == "bitcast":
      total += _read(module, computation, user)
    elif user.operation == "fusion":
      inner = module.computations[user.called[0]]
      places = [i for i, name in enumerate(user.operands) if name == value.name]
      if _views(inner, user):
        total += _read(module, computation, user)
        continue
      total += sum(_read(module, inner, inner.parameters[i]) for i in places)
      if any(inner.parameters[i] is _behind_bitcasts(inner, inner.root) for i in places):
        total += _read(module, computation, user)
    else:
      return math.inf
  return total


def _written(inner: hlo.Computation, fusion: hlo.Instruction) -> float:
  """Bytes that a fusion writes: of an update in place, the update; 0 for operands passed on."""
  root = inner.root
  if root.operation == "tuple":
    roots = [inner.by_name[name] for name in root.operands]
  else:
    roots = [root] * len(fusion.shapes)
  aliases = fusion.attribute("output_to_operand_aliasing")
  total = 0.0
  for index, (shape, output) in enumerate(zip(fusion.shapes, roots, strict=False)):
    source = _behind_bitcasts(inner, output)
    if source.operation == "dynamic-update-slice":
      size = sum(s.bytes for s in inner.operand(source, 1).shapes)
    elif f"{{{index}}}: " in aliases or "{}: " in aliases:
      size = 0.0
    else:
      size = shape.bytes
    total += size if shape.space == 0 else 0.0
  return total


def _views(inner: hlo.Computation, fusion: hlo.Instruction) -> bool:
  """Whether a fusion inside of another one only has its operand in other tiles, in its place."""
  aliases, root = fusion.attribute("output_to_operand_aliasing"), inner.root
  is_copy = root.operation == "copy" and inner.operand(root, 0).operation == "parameter"
  return is_copy and "{}: (0, {})" in aliases


def _behind_bitcasts(computation: hlo.Computation, instruction: hlo.Instruction) -> hlo.Instruction:
  """The instruction that a bitcast is a view of; other instructions unchanged."""
  while instruction.operation == "bitcast":
    instruction = computation.operand(instruction, 0)
  return instruction


def temporaries(module: hlo.Module, *, count: int) -> list[Temporary]:
  """The largest temporary arrays in main memory, largest first.

  Each pair of a shape and a place in the traced function is listed once.
  """
  entry = module.computations[module.entry]
  results = set(entry.root.operands)
  found: dict[tuple[str, str], Temporary] = {}
  for computation in _scheduled(module):
    for instruction in computation.instructions:
      if instruction.operation in _NO_TRAFFIC or instruction.operation.endswith("-done"):
        continue
      if computation is entry and instruction.name in results:
        continue
      for shape in instruction.shapes:
        if shape.space == 0:
          found.setdefault((str(shape), instruction.op_name), Temporary(shape, instruction.op_name))
  return sorted(found.values(), key=lambda temporary: -temporary.shape.bytes)[:count]


def _scheduled(module: hlo.Module) -> list[hlo.Computation]:
  """The computations whose instructions have memory of their own: all that are not fused."""
  names, seen = [module.entry], []
  while names:
    name = names.pop()
    if name in seen:
      continue
    seen.append(name)
    for instruction in module.computations[name].instructions:
      if instruction.operation in ("while", "call", "conditional"):
        names.extend(instruction.called)
  return [module.computations[name] for name in seen]
