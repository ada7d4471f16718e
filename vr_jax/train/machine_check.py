"""What --mode=check says of the devices: problems of the mesh, and estimates of memory and time."""

import bisect
from collections.abc import Iterator
import contextlib
import functools

import jax
import ml_collections

from vr_jax import durations, errors
from vr_jax.models.common import prompts
from vr_jax.train import config_checks, estimates, model_setup, step_shapes


def problems(
  config: ml_collections.ConfigDict, lines: list[str], taken: list[int]
) -> Iterator[str]:
  """Yields the problems of the devices.

  Adds estimates to `lines`, and to the bytes of disk that are `taken`.
  """
  try:
    mesh = model_setup.make_mesh(config)
  except errors.InputError as error:
    yield str(error)
    return
  if tuple(config.mesh)[1:3] == (-1, -1):
    lines.append(
      f"mesh: {' x '.join(map(str, mesh.devices.shape))} (data x fsdp x sequence x tensor), "
      "as config.mesh leaves fsdp and sequence open"
    )
  sections = [name for name in ("sft", "rl") if config[name].steps]
  for name in (*sections, "eval"):
    check = functools.partial(model_setup.check_batch, config, mesh, name)
    yield from map(str, config_checks.as_problems(check))
  if list(config_checks.as_problems(lambda: model_setup.model_of(config))):
    lines.append("memory, checkpoints and time: not estimated, as the model's sizes are not known")
    return
  try:
    estimate = estimates.estimate(config, mesh)
  except errors.InputError as error:
    yield str(error)
    return
  lines += _describe_steps(config, model_setup.model_of(config).vision_shapes)
  kind, memory = mesh.devices.flat[0].device_kind, estimate.memory
  available = estimate.available
  known = f" of {size_text(available)}" if available else ""
  either = {"gradient": memory.gradient, "sampling": memory.sampling}
  also = " or ".join(f"{name} {size_text(number)}" for name, number in either.items() if number)
  lines.append(
    f"memory: a device ({kind}, {mesh.size} of them) needs at least {size_text(memory.total)}"
    f"{known} in stage {memory.stage}: state {size_text(memory.state)}, and {also}; "
    "activations are not counted"
  )
  if available and memory.total > available:
    yield (
      f"{kind}: a device has {size_text(available)} of memory, and stage {memory.stage} needs at "
      f"least {size_text(memory.total)}; use "
      f"{_memory_advice(config, mesh, memory.stage, available)}"
    )
  taken[0] += estimate.checkpoint_bytes
  lines.append(f"disk: {size_text(estimate.checkpoint_bytes)} of checkpoints, while one is written")
  if estimate.feature_bytes:
    most = config.model.feature_cache_gib * estimates.GIB
    taken[0] += round(most)
    lines.append(
      f"disk: {size_text(estimate.feature_bytes)} of features a clip, at most {size_text(most)} "
      "(config.model.feature_cache_gib)"
    )
  for stage, step in (("sft", estimate.sft_step), ("rl", estimate.rl_step)):
    if steps := config[stage].steps:
      lines.append(
        f"time: {stage}: not known for {kind}; the first steps tell"
        if step is None
        else f"time: {stage}: at least {step:.3g} s a step by the device's peak rates, "
        f"{durations.as_text(step * steps)} for {steps} steps"
      )


def _describe_steps(
  config: ml_collections.ConfigDict, shapes: prompts.VisionShapes
) -> Iterator[str]:
  """What the run's steps come to: how many updates, of what size at the most."""
  sft, rl = config.sft, config.rl
  if sft.steps:
    yield (
      f"run: sft: {sft.steps} updates of {sft.batch_size} examples, replies of at most "
      f"{sft.max_reply_tokens} tokens"
    )
  if rl.steps:
    yield (
      f"run: rl: {rl.steps} steps of {rl.num_iterations} update{'s' * (rl.num_iterations != 1)}, "
      f"each of {rl.batch_size} prompts x {rl.num_generations} replies of at most "
      f"{rl.max_new_tokens} tokens"
    )
  frames = max(config.model.patch_buckets) // max(shapes.patches_per_image, 1)
  if shapes.images_per_frame:
    frames = max(config.model.frame_buckets) * shapes.images_per_frame
  pixels = step_shapes.frame_pixels(config.model, frames)
  yield (
    f"run: a prompt shows at most {frames} frames of at most {pixels} pixels, "
    f"and has at most {max(config.model.prefix_buckets)} tokens"
  )


def _memory_advice(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, stage: str, available: int
) -> str:
  """What makes a run fit its devices; each way but the first was estimated to be enough.

  stage: the one that needs most.
  available: bytes of a device.
  """
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  ways = ["a host with more memory" if on_cpu else "more devices (config.mesh)"]
  if not config.model.lora.rank and _fits(config, mesh, available, "model.lora.rank", 16):
    ways.append("adapters (config.model.lora.rank=16)")
  if stage != "sft" and (size := _largest_batch(config, mesh, available, stage)):
    ways.append(f"a smaller batch (config.{stage}.batch_size={size})")
  return " or ".join(ways)


def _largest_batch(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, available: int, stage: str
) -> int:
  """The largest smaller batch of a stage that the mesh divides, and that fits; 0 if none does."""
  field = f"{stage}.batch_size"

  def is_allowed(size: int) -> bool:
    changed = _changed(config, field, size)
    return not any(config_checks.as_problems(lambda: model_setup.check_batch(changed, mesh, stage)))

  sizes = [size for size in range(1, config[stage].batch_size) if is_allowed(size)]
  fitting = bisect.bisect_left(
    sizes, True, key=lambda size: not _fits(config, mesh, available, field, size)
  )
  return sizes[fitting - 1] if fitting else 0


def _fits(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  available: int,
  field: str,
  value: int,
) -> bool:
  """Whether a run with another value of a field would fit devices of `available` bytes."""
  with contextlib.suppress(errors.InputError):
    return estimates.estimate(_changed(config, field, value), mesh).memory.total <= available
  return False


def _changed(
  config: ml_collections.ConfigDict, field: str, value: int
) -> ml_collections.ConfigDict:
  """A copy of the config with another value of a field, as rl.batch_size."""
  changed = ml_collections.ConfigDict(config.to_dict(), type_safe=False)
  *sections, name = field.split(".")
  functools.reduce(getattr, sections, changed)[name] = value
  return changed


def size_text(number: float) -> str:
  """Bytes in GiB, or MiB."""
  return f"{number / estimates.GIB:.3g} GiB" if number >= 2**27 else f"{number / 2**20:.3g} MiB"
