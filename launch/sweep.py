"""Looks for the fastest mesh that fits, and for the largest load that fits on it. Every answer is compiled."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
from typing import Any

import ml_collections

from launch import analysis, report, topology
from vr_jax import errors
from vr_jax.models.qwen2_5_vl import config as model_config
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import loads, programs

MESHES = 4  # that are compiled: those that move the fewest bytes by a rough count
PREFIX_STEP = 512  # prompts of a sweep are padded to a multiple of it
DOUBLINGS = 4  # of frames or group that are tried at most

Measure = Callable[[ml_collections.ConfigDict], analysis.Plan]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """One compiled choice. rows: prompts of a micro-batch. seconds: of an RL step, 0 where it does not fit."""

  mesh: tuple[int, ...]
  frames: int
  group: int
  rows: int
  fits: bool
  seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What a sweep found: the fastest mesh at the config's load, and the largest load on it."""

  trials: Sequence[Trial]
  best: Trial | None
  largest: Trial | None
  plan: analysis.Plan | None  # of `best`


def search(
  config: ml_collections.ConfigDict,
  where: topology.Slice,
  *,
  progress: Callable[[str], None] = lambda line: None,
) -> Found:
  """Sweeps with the compiler. Raises InputError where no mesh divides model and batch."""
  meshes = candidates(config, where)
  if not meshes:
    raise errors.InputError(
      f"config.mesh: no mesh of {len(where.devices)} devices divides model and batch, or holds the parameters; "
      "change rl.prompts, rl.microbatches or the topology"
    )

  def measure(changed: ml_collections.ConfigDict) -> analysis.Plan:
    return analysis.analyse(changed, where, progress=progress)

  return walk(config, meshes[:MESHES], measure, progress=progress)


def walk(
  config: ml_collections.ConfigDict,
  meshes: Sequence[tuple[int, ...]],
  measure: Measure,
  *,
  progress: Callable[[str], None] = lambda line: None,
) -> Found:
  """Measures meshes at the config's load, then larger loads on the fastest: micro-batch, then frames, then group."""
  trials: list[Trial] = []

  def attempt(changed: ml_collections.ConfigDict) -> tuple[Trial, analysis.Plan] | None:
    try:
      plan = measure(changed)
    except errors.InputError as error:
      progress(f"left out: {error}")
      return None
    trial = _trial(changed, plan)
    progress(_line(trial))
    trials.append(trial)
    return trial, plan

  measured = [attempt(_changed(config, mesh=mesh)) for mesh in meshes]
  fitting = [pair for pair in measured if pair is not None and pair[0].fits]
  if not fitting:
    return Found(trials=trials, best=None, largest=None, plan=None)
  best, plan = min(fitting, key=lambda pair: pair[0].seconds)
  here, largest = _changed(config, mesh=best.mesh), best
  for grown in (_fewer_parts, _more_frames, _more_replies):
    for _ in range(DOUBLINGS):
      larger = grown(here)
      tried = attempt(larger) if larger is not None else None
      if tried is None or not tried[0].fits:
        break
      here, largest = larger, tried[0]
  return Found(trials=trials, best=best, largest=largest, plan=plan)


def candidates(config: ml_collections.ConfigDict, where: topology.Slice) -> list[tuple[int, ...]]:
  """Meshes that divide model and batch and hold what stays in memory; those that move least first."""
  model = programs.model_of(config)
  load = loads.load_of(config, model)
  ranked = []
  for shape in _shapes(len(where.devices)):
    mesh = mesh_lib.make_mesh(shape, where.devices)
    try:
      held = programs.resident(config, model, mesh, load)
    except errors.InputError:
      continue
    if held < where.chip.memory:
      ranked.append((moved(model, load, shape), shape))
  return [shape for _, shape in sorted(ranked)]


def moved(model: model_config.Config, load: loads.Load, shape: Sequence[int]) -> float:
  """Bytes between devices in a train step, roughly: weights gathered, activations reduced, keys and values exchanged."""
  text = model.text
  data, fsdp, sequence, tensor = shape
  tokens = load.prompts * (load.prefix + load.group * load.time) / (data * fsdp * sequence)
  kv = 2 * text.num_key_value_heads * text.head_dim
  heads = 2 * text.num_attention_heads * text.head_dim + kv
  weights = text.hidden_size * heads + 3 * text.hidden_size * text.intermediate_size
  passes = 3  # forward, once more for the backward pass, backward
  total = 0.0
  if data * fsdp * sequence > 1:
    total += passes * load.microbatches * 2 * weights / tensor
  if tensor > 1:
    total += passes * 4 * 2 * tokens * text.hidden_size
  if sequence > 1:
    total += passes * 2 * tokens * sequence * kv / tensor
  return text.num_hidden_layers * total


def _shapes(devices: int) -> Iterator[tuple[int, ...]]:
  """All (data, fsdp, sequence, tensor) of so many devices."""
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  for data in divisors:
    for fsdp in divisors:
      for sequence in divisors:
        tensor, left = divmod(devices, data * fsdp * sequence)
        if tensor and not left:
          yield data, fsdp, sequence, tensor


def _changed(config: ml_collections.ConfigDict, **fields: Any) -> ml_collections.ConfigDict:
  """A copy with another mesh, frames (and the buckets that hold them), group or microbatches."""
  copy = ml_collections.ConfigDict(config.to_dict(), type_safe=False)
  if "mesh" in fields:
    copy.mesh = fields["mesh"]
  if "frames" in fields:
    _show(copy, fields["frames"])
  for name in ("group", "microbatches"):
    copy.rl[name] = fields.get(name, copy.rl[name])
  return copy


def _show(config: ml_collections.ConfigDict, frames: int) -> None:
  """Sets the number of frames, and buckets that just hold them."""
  vision = programs.model_of(config).vision
  config.data.frames = config.data.max_frames = frames
  patches = config.model.max_pixels // vision.patch_size**2
  temporal = -(-frames // vision.temporal_patch_size)
  tokens = temporal * patches // vision.merge_unit + loads.TEXT_TOKENS
  config.model.frame_buckets = (temporal,)
  config.model.prefix_buckets = (PREFIX_STEP * math.ceil(tokens / PREFIX_STEP),)


def _fewer_parts(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict | None:
  parts = config.rl.microbatches
  return _changed(config, microbatches=parts // 2) if parts % 2 == 0 else None


def _more_frames(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict | None:
  if "turns" in config:  # how many each turn shows is the environment's
    return None
  return _changed(config, frames=2 * _frames(config))


def _more_replies(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  return _changed(config, group=2 * config.rl.group)


def _frames(config: ml_collections.ConfigDict) -> int:
  return config.data.max_frames if config.data.sampling == "fps" else config.data.frames


def _trial(config: ml_collections.ConfigDict, plan: analysis.Plan) -> Trial:
  return Trial(
    mesh=tuple(plan.mesh.values()),
    frames=_frames(config),
    group=config.rl.group,
    rows=config.rl.prompts // config.rl.microbatches,
    fits=plan.fits,
    seconds=plan.seconds if plan.fits else 0.0,
  )


def _line(trial: Trial) -> str:
  time = f"{trial.seconds:.2f} s a step" if trial.fits else "does not fit"
  return (
    f"mesh {'x'.join(map(str, trial.mesh))}, {trial.frames} frames, group {trial.group}, "
    f"{trial.rows} prompts a micro-batch: {time}"
  )


def as_text(found: Found) -> str:
  """What the command line prints."""
  lines = [_line(trial) for trial in found.trials]
  if found.best is None or found.plan is None or found.largest is None:
    return "\n".join([*lines, "", "no mesh fits; try microbatches, fewer frames or more chips"])
  return "\n".join(
    [
      *lines,
      "",
      f"fastest: {_line(found.best)}",
      f"largest: {_line(found.largest)}",
      "",
      report.as_text(found.plan),
    ]
  )


def as_json(found: Found) -> dict[str, Any]:
  """The trials, the fastest mesh with its plan, and the largest load."""
  as_dict = dataclasses.asdict
  return {
    "trials": [as_dict(trial) for trial in found.trials],
    "fastest": as_dict(found.best) if found.best else None,
    "largest": as_dict(found.largest) if found.largest else None,
    "plan": report.as_json(found.plan) if found.plan else None,
  }
