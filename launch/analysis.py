"""Compiles the programs of a config for a slice, and reads off memory, costs and time."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

import jax
import ml_collections

from launch import costs, expected_time, hlo, programs, roofline, topology
from vr_jax import errors, records
from vr_jax.models import interface, registry
from vr_jax.models.common import flops, rematerialisation
from vr_jax.parallel import compiler_options
from vr_jax.train import model_setup, step_shapes

LARGEST = 3  # temporaries that a plan names
# The compiler goes on where all temporaries together have no room, until a single array has none.
_ANYHOW: dict[str, str | bool] = {"xla_tpu_no_crash_on_oom": True}
_UNPLACED = re.compile(r"\[shape: (\w+)\[([\d,]*)\].* :: (\S+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes on one device.

  resident: arrays of the run that are in memory meanwhile, but are no arguments of the program.
  peak: all of it together; memory that the program reuses counts once.
  """

  arguments: float
  temporaries: float
  output: float
  resident: float
  peak: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramPart:
  """Prefill or decode of a one-turn rollout; of other programs, all. Costs are of one run."""

  name: str
  costs: costs.Costs
  roofline: roofline.Roofline
  work: "CountedFlops"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountedFlops:
  """FLOPs of a part on all devices together, counted from the model's sizes.

  model: of forward and backward passes.
  executed: the same with the second forward pass of rematerialisation.
  vision: of `model`, those of the vision tower.
  """

  model: float
  executed: float
  vision: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
  """An array that is in memory before a program runs.

  name: its path.
  shape: of all devices together.
  bytes: on one of them.
  """

  name: str
  shape: str
  bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
  """One program; without `parts` where it could not be compiled for lack of memory.

  runs: in one RL step.
  leaf: the largest array in memory before it runs.
  largest: its largest temporaries; without `parts` the array that was too large, if one was.
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
    """Whether the compiler found room for it."""
    return bool(self.parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlicePlan:
  """The analyses of a config's programs on a slice.

  model: that was compiled; shallower than the config's where a plan keeps few layers.
  layers: text layers that were compiled, and those of the config's model.
  left_out: names of the step's programs that were not compiled.
  """

  config: ml_collections.ConfigDict
  model: interface.ModelConfig
  slice: topology.Slice
  mesh: dict[str, int]
  step_shapes: step_shapes.StepShapes
  analyses: Sequence[Analysis]
  layers: tuple[int, int] = (0, 0)
  left_out: Sequence[str] = ()

  @property
  def is_whole(self) -> bool:
    """Whether all layers and all programs were compiled: else there is no total of a step."""
    return self.layers[0] == self.layers[1] and not self.left_out

  @property
  def fits(self) -> bool:
    """Whether every program that was compiled has room."""
    return all(analysis.fits for analysis in self.analyses)

  @property
  def seconds(self) -> float:
    """Seconds of one RL step by the roofline, without work on the host."""
    return sum(a.runs * p.roofline.seconds for a in self.analyses for p in a.parts)

  def seconds_of(self, resource: str) -> float:
    """Seconds of one RL step by a field of `roofline.Roofline`."""
    return sum(a.runs * getattr(p.roofline, resource) for a in self.analyses for p in a.parts)

  @property
  def chip_hours(self) -> float:
    """Chip-hours of one RL step."""
    return self.seconds * self.slice.chips / 3600


def analyse(
  config: ml_collections.ConfigDict,
  where: topology.Slice,
  *,
  names: Sequence[str] = (),
  progress: Callable[[str], None] = lambda line: None,
  options: dict[str, str] | None = None,
  layers: int = 0,
  blame: bool = True,
) -> SlicePlan:
  """Compiles and examines the programs of a step.

  names: of the programs; (): all.
  options: of the compiler; None: those of a run on the slice's chips.
  layers: of the text model that are kept; 0: all.
  blame: as in `examine`.
  Raises InputError where the config does not work on the slice, or its step has no such program.
  """
  if config.model.dtype not in where.chip.dtypes:
    raise errors.InputError(
      f"config.model.dtype={config.model.dtype}: {where.chip.name} has no such matrix products; "
      f"one of {', '.join(where.chip.dtypes)}"
    )
  mesh = model_setup.make_mesh(config, where.devices)
  every_layer = model_setup.model_of(config)
  model = _shallow(every_layer, layers) if layers else every_layer
  shapes = step_shapes.make_step_shapes(config, model, mesh)
  if options is None:
    options = compiler_options.options_for(where.devices[0].device_kind, config.compiler_options)
  analyses = []
  every = programs.programs_of_step(config, model, mesh, shapes)
  known = [program.name for program in every]
  if unknown := [name for name in names if name not in known]:
    raise errors.InputError(f"--programs={unknown[0]}: one of {', '.join(known)}")
  chosen = [program for program in every if not names or program.name in names]
  expected = expected_time.ExpectedTime([program.name for program in chosen])
  for program in chosen:
    progress(f"compiling {program.name} for {where.name} ({expected})")
    work = count_work(program, config, model, shapes)
    analyses.append(examine(program, where, mesh, work, options=options, blame=blame))
    expected.finish(program.name)
  return SlicePlan(
    config=config,
    model=model,
    slice=where,
    mesh=dict(mesh.shape),
    step_shapes=shapes,
    analyses=analyses,
    layers=(_depth(model), _depth(every_layer)),
    left_out=[name for name in known if names and name not in names],
  )


def _depth(model: Any) -> int:
  return model.text.num_hidden_layers


def _shallow(model: Any, layers: int) -> Any:
  """The config of a model of `layers` text layers, as wide as before.

  The first layers may each get features of the vision tower (DeepStack); these are kept.
  """
  least, most = max(1, getattr(model.vision, "levels", 1)), model.text.num_hidden_layers
  if not least <= layers <= most:
    why = f", as the first {least} get features of the vision tower" if least > 1 else ""
    raise errors.InputError(f"--layers={layers}: {least} to {most}{why}")
  return dataclasses.replace(model, text=dataclasses.replace(model.text, num_hidden_layers=layers))


def count_work(
  program: programs.Program,
  config: ml_collections.ConfigDict,
  model: interface.ModelConfig,
  shapes: step_shapes.StepShapes,
) -> dict[str, CountedFlops]:
  """The counted FLOPs of the parts of a program, by name."""
  forward = _forward(program, model, shapes.prefix, shapes.group, shapes.time)
  if program.name in ("decode", "append observations"):
    return {program.name: _continuing(program, model, shapes)}
  tower = dataclasses.replace(forward, prefix=0.0, replies=0.0, head=0.0)
  vision = _parts(program, config, tower)
  return {
    name: CountedFlops(
      model=shapes.prompts * plain,
      executed=shapes.prompts * executed,
      vision=shapes.prompts * vision[name][0],
    )
    for name, (plain, executed) in _parts(program, config, forward).items()
  }


def _parts(
  program: programs.Program, config: ml_collections.ConfigDict, forward: flops.Forward
) -> dict[str, tuple[float, float]]:
  """FLOPs of a row of the batch without and with rematerialisation, by the name of a part."""
  if program.name == "encoder":
    return {"encoder": (forward.vision, forward.vision)}
  if program.name == "rollout":
    decode = forward.replies + forward.head
    return {"prefill": (forward.prefix, forward.prefix), "decode": (decode, decode)}
  if program.name == "prefill":
    return {"prefill": (forward.prefix, forward.prefix)}
  if program.name == "train step":
    return {"train step": _training(forward, config)}
  if program.name == "critic step":
    return {"critic step": _training(dataclasses.replace(forward, head=0.0), config)}
  if program.name == "values":
    values = forward.total - forward.head
    return {"values": (values, values)}
  return {program.name: (forward.total, forward.total)}


def _forward(
  program: programs.Program, model: interface.ModelConfig, prefix: int, group: int, time: int
) -> flops.Forward:
  """FLOPs of a row of the batch, with all frames that the program sends through the tower."""
  count = functools.partial(
    registry.family_of(model).forward_flops, model, prefix=prefix, group=group, time=time
  )
  vision = [count(frames=frames, patches=patches).vision for frames, patches in program.frames]
  return dataclasses.replace(count(frames=0, patches=1), vision=float(sum(vision)))


def _continuing(
  program: programs.Program, model: interface.ModelConfig, shapes: step_shapes.StepShapes
) -> CountedFlops:
  """FLOPs of a chunk of decoding, or of observations appended for some replies.

  Each reply is taken to be behind its opening prompt and half of its episode.
  """
  rows, tokens = shapes.prompts * shapes.group, program.turns or 0
  if program.name == "append observations":
    (observation,) = (x for x in program.arguments if isinstance(x, records.Prompt))
    rows, tokens = observation.tokens.shape
  forward = _forward(program, model, shapes.prefix + shapes.time // 2, 1, tokens)
  head = forward.head if program.name == "decode" else 0.0
  total = rows * (forward.vision + forward.replies + head)
  return CountedFlops(model=total, executed=total, vision=rows * forward.vision)


def _training(forward: flops.Forward, config: ml_collections.ConfigDict) -> tuple[float, float]:
  """FLOPs of a train step without and with rematerialisation.

  A vision tower that is part of `forward` counts as trained.
  """
  adapters = config.model.lora.rank > 0
  plain, again = (
    flops.training(forward, vision_frozen=False, base_frozen=adapters, rematerialised=repeated)
    for repeated in (False, config.model.remat in rematerialisation.REPEATING)
  )
  return plain, again


def examine(
  program: programs.Program,
  where: topology.Slice,
  mesh: jax.sharding.Mesh,
  work: dict[str, CountedFlops],
  *,
  options: dict[str, str] | None = None,
  blame: bool = True,
) -> Analysis:
  """Compiles one program and reads off its memory, costs and roofline.

  work: counted FLOPs of its parts, by name.
  options: of the compiler.
  blame: where its temporaries have no room, compile once more to learn which array is too large.
  """
  resident = programs.bytes_per_device(program.resident_arrays)
  lowered = program.function.lower(*program.arguments, **program.keywords)
  try:
    compiled = lowered.compile(options)
  except jax.errors.JaxRuntimeError as error:
    failure = _too_large(program, resident, error)
    if blame and failure.memory.temporaries > failure.memory.arguments + resident:
      return dataclasses.replace(failure, largest=_find_unplaceable(lowered, options or {}))
    return failure
  module = hlo.parse(hlo.text_of(compiled))
  # Of several slices, the program is that of one: it counts the devices of its own.
  of_a_slice = mesh.devices.size // where.count
  places = [where.place(device) for device in mesh.devices.flat[:of_a_slice]]
  spent = costs.count(module, turns=program.turns)
  if len(work) == 1:
    spent = (spent[0].plus(spent[1]),)
  parts = [
    ProgramPart(
      name=name,
      costs=cost,
      roofline=roofline.estimate(cost, where.chip, places, where.sides),
      work=counted,
    )
    for (name, counted), cost in zip(work.items(), spent, strict=False)
  ]
  stats = compiled.memory_analysis()
  memory = Memory(
    arguments=stats.argument_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    output=stats.output_size_in_bytes - stats.alias_size_in_bytes,
    resident=resident,
    peak=stats.peak_memory_in_bytes + resident,
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


def _too_large(program: programs.Program, resident: float, error: Exception) -> Analysis:
  """The analysis of a program for which the compiler found no room in HBM.

  Raises InputError where that was not the reason.
  """
  text = str(error)
  size = re.search(r"([\d.]+)([KMGT])\b", text)
  if "RESOURCE_EXHAUSTED" not in text or "hbm" not in text.lower() or not size:
    raise errors.InputError(
      f"{program.name}: TPU's compiler refuses it: {text.splitlines()[0]}"
    ) from error
  unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  temporaries = float(size.group(1)) * unit[size.group(2)]
  arguments = programs.bytes_per_device(program.arguments)
  if "HLO temporaries" not in text:  # then the number includes the arguments
    temporaries = max(0.0, temporaries - arguments)
  return Analysis(
    name=program.name,
    runs=program.runs_per_step,
    memory=Memory(
      arguments=arguments,
      temporaries=temporaries,
      output=0,
      resident=resident,
      peak=arguments + temporaries + resident,
    ),
    fits=False,
    parts=(),
    leaf=largest_leaf(program),
    largest=(),
  )


def _find_unplaceable(
  lowered: jax.stages.Lowered, options: Mapping[str, str]
) -> list[costs.Temporary]:
  """The array that is too large for a device by itself, as its shard there; [] without one."""
  try:
    lowered.compile({**options, **_ANYHOW})
  except jax.errors.JaxRuntimeError as error:
    match = _UNPLACED.search(str(error))
    if match:
      dtype, sizes, place = match.groups()
      return [costs.Temporary(hlo.Shape(dtype, tuple(map(int, sizes.split(",")))), place)]
  return []


def largest_leaf(program: programs.Program) -> Leaf:
  """The array with the most bytes on a device, of a program's arguments and resident arrays."""
  leaves = jax.tree_util.tree_leaves_with_path((program.arguments, program.resident_arrays))
  path, leaf = max(leaves, key=lambda pair: programs.bytes_per_device(pair[1]))
  keys = [key for key in path if not isinstance(key, jax.tree_util.SequenceKey)]
  return Leaf(
    name=jax.tree_util.keystr(tuple(keys), simple=True, separator=".").removesuffix(".value"),
    shape=f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]",
    bytes=programs.bytes_per_device(leaf),
  )
