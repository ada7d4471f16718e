"""Searches for the fastest mesh that fits, and for the largest load on it.

A load is the number of replies to a prompt, of frames and of prompts in a micro-batch.
Each answer is compiled.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import math
from typing import Any

import ml_collections

from launch import abstract_state, analysis, chips, programs, report, topology
from vr_jax import errors, optional_sections
from vr_jax.models import interface
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import estimates, model_setup, step_shapes

MESHES = 4  # compiled before the search stops; more while none fits
PREFIX_STEP = 512  # a sweep pads prompts to a multiple of it
DOUBLINGS = 4  # tried at most for each of micro-batch, frames and group; halvings too
HOW = (
  "a greedy search in powers of two: micro-batch, then frames, then group are doubled as long as "
  "it fits, each with the others as they are; where no mesh holds the config's load, they are "
  "halved until it fits"
)

Measure = Callable[[ml_collections.ConfigDict], analysis.SlicePlan]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """One compiled choice.

  rows: prompts of a micro-batch.
  seconds: of an RL step; 0 where it does not fit.
  """

  mesh: tuple[int, ...]
  frames: int
  group: int
  rows: int
  fits: bool
  seconds: float


Measured = tuple[Trial, analysis.SlicePlan]
Attempt = Callable[[ml_collections.ConfigDict], Measured | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepResult:
  """The results of a sweep: the fastest mesh at the config's load, and the largest load on it.

  best: None where no mesh holds that load; then `largest` is a smaller one, or None.
  plan: of `best`, or else of `largest`.
  """

  trials: Sequence[Trial]
  best: Trial | None
  largest: Trial | None
  plan: analysis.SlicePlan | None


def search(
  config: ml_collections.ConfigDict,
  where: topology.Slice,
  *,
  progress: Callable[[str], None] = lambda line: None,
) -> SweepResult:
  """Sweeps with the compiler. Raises InputError where no mesh divides model and batch."""
  meshes = candidates(config, where)
  if not meshes:
    raise errors.InputError(
      f"config.mesh: no mesh of {len(where.devices)} devices divides model and batch, or holds "
      "the parameters; change rl.batch_size, rl.microbatches or the topology"
    )

  def measure(changed: ml_collections.ConfigDict) -> analysis.SlicePlan:
    return analysis.analyse(changed, where, progress=progress, blame=False)

  return walk(config, meshes, measure, progress=progress)


def walk(
  config: ml_collections.ConfigDict,
  meshes: Sequence[tuple[int, ...]],
  measure: Measure,
  *,
  progress: Callable[[str], None] = lambda line: None,
) -> SweepResult:
  """Measures meshes at the config's load, best guess first, then loads on the fastest (`HOW`)."""
  trials: list[Trial] = []

  def attempt(changed: ml_collections.ConfigDict) -> Measured | None:
    try:
      plan = measure(changed)
    except errors.InputError as error:
      progress(f"left out: {error}")
      return None
    trial = _trial(changed, plan)
    progress(_line(trial))
    trials.append(trial)
    return trial, plan

  measured: list[Measured] = []
  for mesh in meshes:
    if len(measured) >= MESHES and any(trial.fits for trial, _ in measured):
      break
    tried = attempt(_changed(config, mesh=mesh))
    measured += [tried] if tried else []
  fitting = [pair for pair in measured if pair[0].fits]
  if not fitting:
    found = _shrink(config, measured, attempt)
    return SweepResult(
      trials=trials, best=None, largest=found and found[0], plan=found and found[1]
    )
  best, plan = min(fitting, key=lambda pair: pair[0].seconds)
  here, largest = _changed(config, mesh=best.mesh), best
  for grow in (_fewer_microbatches, _more_frames, _more_replies):
    for _ in range(DOUBLINGS):
      larger = grow(here)
      tried = attempt(larger) if larger is not None else None
      if larger is None or tried is None or not tried[0].fits:
        break
      here, largest = larger, tried[0]
  return SweepResult(trials=trials, best=best, largest=largest, plan=plan)


def _shrink(
  config: ml_collections.ConfigDict, measured: Sequence[Measured], attempt: Attempt
) -> Measured | None:
  """The first load that fits, from larger to smaller, on the mesh that needs least memory.

  None where none fits.
  """
  if not measured:
    return None
  trial, _ = min(measured, key=lambda pair: max(one.memory.peak for one in pair[1].analyses))
  here = _changed(config, mesh=trial.mesh)
  for shrink in (_more_microbatches, _fewer_frames, _fewer_replies):
    for _ in range(DOUBLINGS):
      smaller = shrink(here)
      tried = attempt(smaller) if smaller is not None else None
      if smaller is None or tried is None:
        break
      if tried[0].fits:
        return tried
      here = smaller
  return None


def candidates(config: ml_collections.ConfigDict, where: topology.Slice) -> list[tuple[int, ...]]:
  """Meshes that divide model and batch and have room for the state that stays in memory.

  The config's own comes first, then the others, fastest by `estimate` first. Of meshes that
  differ in data and fsdp alone, only the one that needs least memory is listed.
  """
  model = model_setup.model_of(config)
  shapes = step_shapes.make_step_shapes(config, model)
  least: dict[tuple[int, ...], tuple[int, tuple[int, ...], model_setup.ModelSetup]] = {}
  wanted, own = tuple(config.mesh), []
  with contextlib.suppress(errors.InputError):  # it does not go with the slice
    wanted = model_setup.mesh_shape(config, where.devices)
  for shape in _shapes(len(where.devices)):
    try:
      mesh = mesh_lib.make_mesh(shape, where.devices)
      run = abstract_state.make_abstract_state(config, model, mesh, shapes)
    except errors.InputError:
      continue
    if all(size in (-1, one) for size, one in zip(wanted, shape, strict=True)):
      own.append(shape)
    resident = programs.resident_bytes(run)
    if resident < where.chip.memory:
      found = resident, shape, run.net
      least[shape[2:]] = min(found, least.get(shape[2:], found), key=lambda found: found[:2])
  ranked = sorted(least.values(), key=lambda found: estimate(found[-1], shapes, where.chip))
  return list(dict.fromkeys([*own, *(shape for _, shape, _ in ranked)]))


def estimate(
  net: model_setup.ModelSetup, shapes: step_shapes.StepShapes, chip: chips.Chip
) -> float:
  """Roughly, the seconds of a step that depend on the mesh.

  These are what each token reads of the weights, in the layout of decoding, and receives of them,
  and the traffic between chips in training.
  """
  read, received = (shapes.time * one for one in estimates.decode_bytes(net))
  sent = received + moved(net.model, shapes, net.mesh.devices.shape)
  return read / chip.bandwidth + sent / (chip.dimensions * chip.link)


def moved(
  model: interface.ModelConfig, shapes: step_shapes.StepShapes, shape: Sequence[int]
) -> float:
  """Roughly, the bytes that move between devices in a train step.

  Weights are gathered, activations reduced, keys and values exchanged.
  """
  text = model.text_sizes
  data, fsdp, sequence, tensor = shape
  tokens = shapes.prompts * (shapes.prefix + shapes.group * shapes.time) / (data * fsdp * sequence)
  passes = 3  # forward, once more for the backward pass, backward
  total = 0.0
  if data * fsdp * sequence > 1:
    total += passes * shapes.microbatches * 2 * text.layer_weights / tensor
  if tensor > 1:
    total += passes * 4 * 2 * tokens * model.hidden_size
  if sequence > 1:
    total += passes * 2 * tokens * sequence * text.kv_width / tensor
  return text.layers * total


def _shapes(devices: int) -> Iterator[tuple[int, ...]]:
  """All mesh shapes (data, fsdp, sequence, tensor) of this many devices."""
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  for data in divisors:
    for fsdp in divisors:
      for sequence in divisors:
        tensor, left = divmod(devices, data * fsdp * sequence)
        if tensor and not left:
          yield data, fsdp, sequence, tensor


def _changed(config: ml_collections.ConfigDict, **fields: Any) -> ml_collections.ConfigDict:
  """A copy with another mesh, number of frames (and buckets), num_generations or microbatches."""
  copy = ml_collections.ConfigDict(config.to_dict(), type_safe=False)
  if "mesh" in fields:
    copy.mesh = fields["mesh"]
  if "frames" in fields:
    _show(copy, fields["frames"])
  for name in ("num_generations", "microbatches"):
    copy.rl[name] = fields.get(name, copy.rl[name])
  return copy


def _show(config: ml_collections.ConfigDict, frames: int) -> None:
  """Sets the number of frames, and the smallest buckets with room for them."""
  vision = model_setup.model_of(config).vision_shapes
  config.data.frames = config.data.max_frames = frames
  if config.model.max_video_pixels:
    config.model.max_video_pixels = frames * config.model.max_pixels
  patches = vision.most_patches(frames, config.model.max_pixels)
  temporal = vision.count_frames(frames)
  tokens = temporal * vision.media_tokens(patches) + step_shapes.TEXT_TOKENS
  config.model.frame_buckets = (temporal,)
  config.model.prefix_buckets = (PREFIX_STEP * math.ceil(tokens / PREFIX_STEP),)


def _fewer_microbatches(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict | None:
  count = config.rl.microbatches
  return _changed(config, microbatches=count // 2) if count % 2 == 0 else None


def _more_microbatches(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict | None:
  count = 2 * config.rl.microbatches
  return _changed(config, microbatches=count) if config.rl.batch_size % count == 0 else None


def _more_frames(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict | None:
  if optional_sections.takes_turns(config):  # the environment chooses the frames of a turn
    return None
  return _changed(config, frames=2 * _frames(config))


def _fewer_frames(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict | None:
  frames = _frames(config)
  if optional_sections.takes_turns(config) or frames % 4:  # a temporal patch holds two
    return None
  return _changed(config, frames=frames // 2)


def _more_replies(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  return _changed(config, num_generations=2 * config.rl.num_generations)


def _fewer_replies(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict | None:
  group = config.rl.num_generations // 2
  # One reply alone has no advantage.
  return _changed(config, num_generations=group) if group > 1 else None


def _frames(config: ml_collections.ConfigDict) -> int:
  return config.data.max_frames if config.data.sampling == "fps" else config.data.frames


def _trial(config: ml_collections.ConfigDict, plan: analysis.SlicePlan) -> Trial:
  return Trial(
    mesh=tuple(plan.mesh.values()),
    frames=_frames(config),
    group=config.rl.num_generations,
    rows=config.rl.batch_size // config.rl.microbatches,
    fits=plan.fits,
    seconds=plan.seconds if plan.fits else 0.0,
  )


def _line(trial: Trial) -> str:
  time = f"{trial.seconds:.2f} s a step" if trial.fits else "does not fit"
  return (
    f"mesh {'x'.join(map(str, trial.mesh))}, {trial.frames} frames, group {trial.group}, "
    f"{trial.rows} prompts a micro-batch: {time}"
  )


def as_text(found: SweepResult) -> str:
  """What the command line prints."""
  nothing = "none fits"
  return "\n".join(
    [
      *map(_line, found.trials),
      "",
      f"fastest at the config's load: {_line(found.best) if found.best else nothing}",
      f"largest load: {_line(found.largest) if found.largest else nothing}; {HOW}",
      "",
      report.as_text(found.plan) if found.plan else "try more chips, or a smaller model",
    ]
  )


def as_json(found: SweepResult) -> dict[str, Any]:
  """The trials, the fastest mesh with its plan, and the largest load."""
  as_dict = dataclasses.asdict
  return {
    "trials": [as_dict(trial) for trial in found.trials],
    "fastest": as_dict(found.best) if found.best else None,
    "largest": as_dict(found.largest) if found.largest else None,
    "search": HOW,
    "plan": report.as_json(found.plan) if found.plan else None,
  }
