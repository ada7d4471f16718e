"""The memory bank: which frames' memories and pointers a frame attends to, planned on the host.

A frame attends to all frames that the user prompted, wherever they are; to the memories of the
`memories - 1` frames just before it; and to pointers: of prompted frames that are not ahead, and of
the `pointers - 1` frames just before. In the backward pass, before means after.

The device has slots. Frames take turns in some of them (the ring), so that their number does not
depend on the video's length; the frames just after the forward pass's start have slots of their
own, since the backward pass begins with them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

from vr_jax.models.sam2 import config as config_lib


class MemoryPlan(NamedTuple):
  """One pass over a video, or several videos, one row a step.

  Slots count prompted frames first, then those of the ring.

  slot, valid, age, pointer_slot, pointer_valid, pointer_age: see `memory_attention.Choice`.
  write, pointer_write: where the frame's own memory and pointer go. The last slot is never read.
  prompted: which of the object's prompted frames this is, or -1.
  """

  slot: Int[np.ndarray, "steps objects memories"]
  valid: Bool[np.ndarray, "steps objects memories"]
  age: Int[np.ndarray, "steps objects memories"]
  pointer_slot: Int[np.ndarray, "steps objects pointers"]
  pointer_valid: Bool[np.ndarray, "steps objects pointers"]
  pointer_age: Float[np.ndarray, "steps objects pointers"]
  write: Int[np.ndarray, "steps objects"]
  pointer_write: Int[np.ndarray, "steps objects"]
  prompted: Int[np.ndarray, "steps objects"]


class Pass(NamedTuple):
  """The order in which a pass goes through a video.

  frames: indices, in order.
  step: 1 forwards, -1 backwards.
  start: first frame of the forward pass.
  known: frames that the forward pass has left for this one: from `start` to before `known`.
  """

  frames: range
  step: int
  start: int
  known: int


NO_PASS = Pass(range(0), 1, 0, 0)


def passes(start: int, count: int, *, fresh_reverse: bool) -> list[Pass]:
  """The passes over a video of `count` frames: forwards from `start`, then backwards from it.

  The backward pass sees `start` again: an object that is prompted later is tracked there once more.
  """
  forward = Pass(range(start, count), 1, start, start)
  if start == 0:
    return [forward]
  return [forward, Pass(range(start, -1, -1), -1, start, start if fresh_reverse else count)]


def ring_sizes(config: config_lib.Sam2Config) -> tuple[int, int]:
  """Slots of the ring for memories and for pointers, with one that is never read."""
  return 2 * (config.memories - 1) + 1, 2 * (config.pointers - 1) + 1


def plan(
  one: Pass,
  prompted: Sequence[Sequence[int]],
  count: int,
  config: config_lib.Sam2Config,
  *,
  most_prompted: int,
) -> MemoryPlan:
  """Plans a pass.

  prompted: ascending frames of each object's prompts, at least one.
  count: frames of the video.
  most_prompted: slots for prompted frames, at least as many as an object has.
  """
  frames = np.array(one.frames)[:, None, None]
  given = np.full((len(prompted), most_prompted), -1)
  for number, each in enumerate(prompted):
    given[number, : len(each)] = each
  is_given = given >= 0
  steps, objects = len(frames), len(prompted)
  pointers = min(count, config.pointers) - 1
  ring, pointer_ring = config.memories - 1, config.pointers - 1
  ages, pointer_ages = np.arange(1, ring + 1), np.arange(1, pointer_ring + 1)

  def along(values: np.ndarray) -> np.ndarray:
    return np.broadcast_to(values, (steps, objects, values.shape[-1]))

  def tracked(ages: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames of these ages, and whether the object was tracked there."""
    before = along(frames - one.step * ages)
    passed = np.where(one.step > 0, (before >= one.start) & (before < frames), before <= one.start)
    passed &= (one.step > 0) | (before > frames)
    left = (one.step < 0) & (before > one.start) & (before < one.known)
    own = (before[..., None] == given[None, :, None]).any(axis=-1)
    return before, (passed | left) & (ages <= most) & (before < count) & (before >= 0) & ~own

  before, valid = tracked(ages, ring)
  before_pointer, pointer_valid = tracked(pointer_ages, pointers)
  since = (frames - given) * one.step
  offset = np.arange(most_prompted)
  age = np.concatenate([along(np.full(most_prompted, config.memories - 1)), along(ages - 1)], -1)
  pointer_age = np.concatenate([along(since), along(pointer_ages)], -1) / max(pointers, 1)
  here = frames == given
  position = np.where(here.any(-1), here.argmax(-1), -1)
  return MemoryPlan(
    slot=np.concatenate([along(offset), most_prompted + _slot(before, one.start, ring)], -1).astype(
      np.int32
    ),
    valid=np.concatenate([along(is_given), valid], -1),
    age=age.astype(np.int32),
    pointer_slot=np.concatenate(
      [along(offset), most_prompted + _slot(before_pointer, one.start, pointer_ring)], -1
    ).astype(np.int32),
    pointer_valid=np.concatenate([is_given & (since >= 0), pointer_valid], -1),
    pointer_age=pointer_age.astype(np.float32),
    write=np.where(position < 0, _slot(frames[..., 0], one.start, ring), 2 * ring).astype(np.int32),
    pointer_write=np.where(
      position < 0, _slot(frames[..., 0], one.start, pointer_ring), 2 * pointer_ring
    ).astype(np.int32),
    prompted=position.astype(np.int32),
  )


def _slot(frame: np.ndarray, start: int, ring: int) -> np.ndarray:
  """The ring's slot of a frame: one of its own just after the start, else one in turn."""
  after = frame - start
  return np.where((after >= 1) & (after <= ring), ring + after - 1, frame % ring)


def join(
  plans: Sequence[MemoryPlan], config: config_lib.Sam2Config, *, objects: int, steps: int
) -> MemoryPlan:
  """Plans of several videos as one, padded to `objects` each and to `steps`.

  Padding attends to nothing, and writes where nobody reads.
  """
  ring, pointer_ring = ring_sizes(config)
  filler = {"write": ring - 1, "pointer_write": pointer_ring - 1, "prompted": -1}

  def fill(name: str, parts: list[np.ndarray]) -> np.ndarray:
    padded = []
    for part in parts:
      room = [(0, steps - len(part)), (0, objects - part.shape[1]), *[(0, 0)] * (part.ndim - 2)]
      padded.append(np.pad(part, room, constant_values=filler.get(name, 0)))
    return np.concatenate(padded, axis=1)

  return MemoryPlan(*(fill(name, [getattr(p, name) for p in plans]) for name in MemoryPlan._fields))


def slice_plan(plan_: MemoryPlan, start: int, stop: int) -> MemoryPlan:
  """Some steps of a plan."""
  return MemoryPlan(*(array[start:stop] for array in plan_))
