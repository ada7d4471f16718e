"""Compiles the programs of a config for a slice, and says what they need of it."""

from collections.abc import Callable, Sequence
import dataclasses
import re

import jax
import ml_collections

from launch import costs, hlo, programs, roofline, step_shapes, topology
from vr_jax import errors, records
from vr_jax.models import interface, registry
from vr_jax.models.common import flops
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import model_setup

LARGEST = 3  # temporaries that are named
# Lets the compiler go on where the sum of all temporaries tells it that there is no room, until one array has none.
_ANYHOW = {"xla_tpu_no_crash_on_oom": True}
_UNPLACED = re.compile(r"\[shape: (\w+)\[([\d,]*)\].* :: (\S+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes on one device. resident: arrays of the run that are no arguments of the program, but lie there meanwhile.

  peak: all of it together, what the program reuses counted once.
  """

  arguments: float
  temporaries: float
  output: float
  resident: float
  peak: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramPart:
  """A stretch of a program: prefill or decode of a rollout of one turn; of the others, all of it. Costs are of one run."""

  name: str
  costs: costs.Costs
  roofline: roofline.Roofline
  work: "CountedFlops"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountedFlops:
  """FLOPs that a part is for, of all devices together, counted from the model's sizes.

  executed: with the second forward that rematerialisation asks for.
  """

  model: float
  executed: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
  """An array that is there before a program runs. name: its path. shape: of all devices together. bytes: on one of them."""

  name: str
  shape: str
  bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
  """One program. Where it can't be compiled for lack of memory, `parts` is empty.

  leaf: the largest array that is there before. largest: what it makes; without `parts` the array that was too large, if one was.
  """

  name: str
  runs: int
  memory: Memory
  fits: bool
  parts: Sequence[ProgramPart]
  leaf: Leaf
  largest: Sequence[costs.Temporary]

  @property
  def compiled(self) -> bool:
    """Whether the compiler made it."""
    return bool(self.parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlicePlan:
  """A config on a slice."""

  config: ml_collections.ConfigDict
  slice: topology.Slice
  mesh: dict[str, int]
  step_shapes: step_shapes.StepShapes
  analyses: Sequence[Analysis]

  @property
  def fits(self) -> bool:
    """Whether every program has room."""
    return all(analysis.fits for analysis in self.analyses)

  @property
  def seconds(self) -> float:
    """Of one RL step by the roofline, host work not counted."""
    return sum(a.runs * p.roofline.seconds for a in self.analyses for p in a.parts)

  @property
  def chip_hours(self) -> float:
    """Of one RL step."""
    return self.seconds * self.slice.chips / 3600


def analyse(
  config: ml_collections.ConfigDict,
  where: topology.Slice,
  *,
  only: Callable[[programs.Program], bool] = lambda program: True,
  progress: Callable[[str], None] = lambda line: None,
  blame: bool = True,
) -> SlicePlan:
  """Compiles what `only` lets through and reads it; `blame` as in `examine`.

  Raises InputError where config and slice don't go together.
  """
  if config.model.dtype not in where.chip.dtypes:
    raise errors.InputError(
      f"config.model.dtype={config.model.dtype}: {where.chip.name} has no such matrix products; "
      f"one of {', '.join(where.chip.dtypes)}"
    )
  mesh = mesh_lib.make_mesh(config.mesh, where.devices)
  model = model_setup.model_of(config)
  load = step_shapes.make_step_shapes(config, model)
  analyses = []
  for program in programs.programs_of_step(config, model, mesh, load):
    if only(program):
      progress(f"compiling {program.name} for {where.name}")
      work = _work(program, config, model, load)
      analyses.append(examine(program, where, mesh, work, blame=blame))
  return SlicePlan(
    config=config, slice=where, mesh=dict(mesh.shape), step_shapes=load, analyses=analyses
  )


def _work(
  program: programs.Program,
  config: ml_collections.ConfigDict,
  model: interface.ModelConfig,
  load: step_shapes.StepShapes,
) -> dict[str, CountedFlops]:
  """What the parts of a program are for, by name."""
  forward = registry.family_of(model).forward_flops(
    model,
    frames=program.frames,
    patches=load.patches,
    prefix=load.prefix,
    group=load.group,
    time=load.time,
  )
  if program.name == "encoder":
    parts = {"encoder": (forward.vision,) * 2}
  elif program.name == "rollout":
    parts = {"prefill": (forward.prefix,) * 2, "decode": (forward.replies + forward.head,) * 2}
  elif program.name == "prefill":
    parts = {"prefill": (forward.prefix,) * 2}
  elif program.name in ("decode", "append"):
    return {program.name: _continuing(program, model, load)}
  elif program.name == "train step":
    parts = {"train step": _training(forward, config)}
  elif program.name == "critic step":
    parts = {"critic step": _training(dataclasses.replace(forward, head=0.0), config)}
  elif program.name == "values":
    parts = {"values": (forward.total - forward.head,) * 2}
  else:
    parts = {program.name: (forward.total,) * 2}
  return {
    name: CountedFlops(model=load.prompts * plain, executed=load.prompts * executed)
    for name, (plain, executed) in parts.items()
  }


def _continuing(
  program: programs.Program, model: interface.ModelConfig, load: step_shapes.StepShapes
) -> CountedFlops:
  """A chunk of decoding, or what is shown to some replies: each behind its opening and half of its episode."""
  rows, tokens = load.prompts * load.group, program.turns
  if program.name == "append":
    (shown,) = (x for x in program.arguments if isinstance(x, records.Prompt))
    rows, tokens = shown.tokens.shape
  forward = registry.family_of(model).forward_flops(
    model,
    frames=program.frames,
    patches=load.patches,
    prefix=load.prefix + load.time // 2,
    group=1,
    time=tokens,
  )
  head = forward.head if program.name == "decode" else 0.0
  total = rows * (forward.vision + forward.replies + head)
  return CountedFlops(model=total, executed=total)


def _training(forward: flops.Forward, config: ml_collections.ConfigDict) -> tuple[float, float]:
  """FLOPs of a train step on that work, a tower that is part of it trained: without and with rematerialisation."""
  adapters = config.model.lora.rank > 0
  plain, again = (
    flops.training(forward, vision_frozen=False, base_frozen=adapters, rematerialised=repeated)
    for repeated in (False, config.model.remat != "none")
  )
  return plain, again


def examine(
  program: programs.Program,
  where: topology.Slice,
  mesh: jax.sharding.Mesh,
  work: dict[str, CountedFlops],
  *,
  blame: bool = True,
) -> Analysis:
  """Compiles one program and reads it. work: of its parts, by name.

  blame: where it has no room for what it makes, compile it once more to learn which array is too large.
  """
  held = programs.bytes_per_device(program.resident_arrays)
  lowered = program.function.lower(*program.arguments, **program.keywords)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    found = _too_large(program, held, error)
    if blame and found.memory.temporaries > found.memory.arguments + held:
      return dataclasses.replace(found, largest=_find_unplaceable(lowered))
    return found
  module = hlo.parse(hlo.text_of(compiled))
  places = [where.place(device) for device in mesh.devices.flat]
  spent = costs.count(module, turns=program.turns)
  if len(work) == 1:
    spent = (spent[0].with_turned(spent[1]),)
  parts = [
    ProgramPart(
      name=name,
      costs=cost,
      roofline=roofline.estimate(cost, where.chip, places, where.sides),
      work=wanted,
    )
    for (name, wanted), cost in zip(work.items(), spent, strict=False)
  ]
  stats = compiled.memory_analysis()
  memory = Memory(
    arguments=stats.argument_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    output=stats.output_size_in_bytes - stats.alias_size_in_bytes,
    resident=held,
    peak=stats.peak_memory_in_bytes + held,
  )
  return Analysis(
    name=program.name,
    runs=program.runs_per_step,
    memory=memory,
    fits=memory.peak <= where.chip.memory,
    parts=parts,
    leaf=largest_leaf(program),
    largest=costs.temporaries(module, count=LARGEST),
  )


def _too_large(program: programs.Program, held: float, error: Exception) -> Analysis:
  """What is known of a program for which the compiler found no room in HBM.

  Raises InputError where that was not the reason.
  """
  text = str(error)
  wanted = re.search(r"([\d.]+)([KMGT])\b", text)
  if "RESOURCE_EXHAUSTED" not in text or "hbm" not in text.lower() or not wanted:
    raise errors.InputError(
      f"{program.name}: TPU's compiler refuses it: {text.splitlines()[0]}"
    ) from error
  unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  temporaries = float(wanted.group(1)) * unit[wanted.group(2)]
  arguments = programs.bytes_per_device(program.arguments)
  if "HLO temporaries" not in text:  # then it is the sum of all
    temporaries = max(0.0, temporaries - arguments)
  return Analysis(
    name=program.name,
    runs=program.runs_per_step,
    memory=Memory(
      arguments=arguments,
      temporaries=temporaries,
      output=0,
      resident=held,
      peak=arguments + temporaries + held,
    ),
    fits=False,
    parts=(),
    leaf=largest_leaf(program),
    largest=(),
  )


def _find_unplaceable(lowered: jax.stages.Lowered) -> list[costs.Temporary]:
  """The array for which alone a device has no room, if there is one: a part, as it would lie on one device."""
  try:
    lowered.compile(_ANYHOW)
  except jax.errors.JaxRuntimeError as error:
    found = _UNPLACED.search(str(error))
    if found:
      dtype, sizes, place = found.groups()
      return [costs.Temporary(hlo.Shape(dtype, tuple(map(int, sizes.split(",")))), place)]
  return []


def largest_leaf(program: programs.Program) -> Leaf:
  """Of a program's arguments and what is held meanwhile, the array of which a device has most."""
  found = jax.tree_util.tree_leaves_with_path((program.arguments, program.resident_arrays))
  path, leaf = max(found, key=lambda one: programs.bytes_per_device(one[1]))
  named = [key for key in path if not isinstance(key, jax.tree_util.SequenceKey)]
  return Leaf(
    name=jax.tree_util.keystr(tuple(named), simple=True, separator=".").removesuffix(".value"),
    shape=f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]",
    bytes=programs.bytes_per_device(leaf),
  )
