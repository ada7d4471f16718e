"""Times what the host does for a chunk of episodes of several turns, beside one object an episode.

    python -m benchmarks.episode_host [--prompts=1024] [--group=16] [--devices=64]

By default 16,384 episodes of three turns on 64 devices, in chunks of 32 steps; replies of random
lengths up to 256 tokens, observations of 20 to 60 tokens, all made up: nothing runs on a device. A
chunk's work is what `multi_turn_sampler` does between two programs: arrange the replies in slots,
make the inputs, add the tokens, find the observations that are due, arrange and count them.
Encoding observations (on threads) is not part of it. Both sides play the same
episodes in turn, and what each would send to the devices is compared to the bit, as are the
rollouts.

Prints one JSON line: milliseconds a chunk, median and largest, of each side; seconds to join the
rollout. Times are the thread's CPU time, as others may use the cores. The goal is a median of at
most 20 ms with the table. Exit code: 1 if it is missed, else 0.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import statistics
import sys
import time
from typing import Any

import jax
from jaxtyping import Bool, Int
import numpy as np

from benchmarks import episode_objects, measure
from vr_jax import records
from vr_jax.models.common import prompts
from vr_jax.rollout import episode_table, episodes, slot_layout

GOAL = 20.0  # milliseconds
STRIDE = 4  # media tokens of a frame


class Laps:
  """CPU seconds of each chunk's work, side by side."""

  def __init__(self):
    self.seconds: dict[str, list[float]] = {"table": [], "objects": []}

  def next_chunk(self) -> None:
    """Begins a chunk."""
    for laps in self.seconds.values():
      laps.append(0.0)

  def timed(self, side: str, work: Callable[[], Any]) -> Any:
    """Does the work, and adds its time to the chunk of a side."""
    begun = time.thread_time()
    result = work()
    self.seconds[side][-1] += time.thread_time() - begun
    return result


def make_observation(rng: np.random.Generator, name: str, axes: int) -> prompts.EncodedPrompt:
  """Random tokens; its frames are counted only."""
  count = int(rng.integers(20, 61))
  return prompts.EncodedPrompt(
    name=name,
    tokens=rng.integers(1, 1000, count, np.int32),
    kind=np.full(count, int(records.Kind.ENVIRONMENT), np.int32),
    positions=np.repeat(np.arange(count, dtype=np.int32)[:, None], axes, 1),
    next_position=count - int(rng.integers(0, 5)),
    loss_mask=np.zeros(count, bool),
    grids=(),
    frames=(prompts.TemporalPatch(vision=None, patches=0),) * int(rng.integers(0, 3)),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observations:
  """What episodes are shown next, in the order in which they are due.

  sizes: as `episodes.ObservationSize`, a row each.
  media_index: by episode, of each token.
  """

  shown: Mapping[int, prompts.EncodedPrompt]
  sizes: Int[np.ndarray, "due 3"]
  media_index: Mapping[int, Int[np.ndarray, "tokens"]]

  @classmethod
  def draw(cls, rng: np.random.Generator, due: Sequence[int], axes: int) -> "Observations":
    """Random ones for some episodes."""
    shown = {one: make_observation(rng, str(one), axes) for one in due}
    sizes = [episodes.ObservationSize.from_encoded(one) for one in shown.values()]
    return cls(
      shown=shown,
      sizes=np.array(sizes, np.int32).reshape(-1, 3),
      media_index={one: _media_index(rng, encoded) for one, encoded in shown.items()},
    )


Due = tuple[list[tuple[tuple[int, ...], ...]], list[int]]  # replies of episodes; who is due


class TableSide:
  """The table's work for a chunk."""

  def __init__(self, table: episode_table.EpisodeTable, schedule: episodes.Schedule):
    self.table, self._schedule = table, schedule
    self.decoding, self.awaiting = np.arange(len(table)), np.arange(0)
    self._slots = self._due = self.decoding

  def begin_chunk(self, size: int) -> Any:
    """Arranges the replies in slots; returns the chunk's inputs."""
    self._slots = self.table.arrange(self.decoding, size)
    return self.table.chunk_inputs(self._slots, all_slots=False)

  def add_replies(self, decoded: Sequence[np.ndarray]) -> None:
    """Adds the tokens of a chunk: tokens, log-probs and counts."""
    self.table.add_replies(self._slots, *decoded)

  def find_due(self, ended: Bool[np.ndarray, "slots"]) -> Due:
    """Finds whose observation is due."""
    finished = self._slots[(self._slots >= 0) & ended]
    self.decoding = self.decoding[~np.isin(self.decoding, finished)]
    unfinished = finished[self.table.turn[finished] + 1 < self._schedule.turns]
    replies = self.table.replies(unfinished)
    awaiting = np.concatenate([self.awaiting, unfinished])
    now = ~np.isin(awaiting, finished) | (len(awaiting) > len(self.decoding))
    self._due, self.awaiting = awaiting[now], awaiting[~now]
    return replies, self._due.tolist()

  def append(self, new: Observations) -> list[Any]:
    """Arranges and counts the observations; returns what each batch sends to the devices."""
    sent, most = [], self._schedule.append_batch_size
    for batch in self.table.append_batches(self._due, new.sizes[:, 0], most):
      arranged = self.table.arrange(self._due[batch], most)
      rows = self.table.cache_rows(arranged, next_turn=True)
      sent.append((rows, episode_table.by_slot(self.table.frames, arranged)))
      own = self._due[batch].tolist()
      self.table.add_observations({one: new.shown[one] for one in own}, new.media_index, STRIDE)
      self.table.start_next_turn(self._due[batch], new.sizes[batch])
    return sent

  def go_on(self) -> None:
    """Lets those that were shown something decode again."""
    self.decoding = np.concatenate([self.decoding, self._due])

  def rollout(self, media: int, length: int) -> records.Rollout:
    """Joins the rollout. media: most media tokens of an episode; length: its tokens."""
    return self.table.rollout(None, media, length)


class ObjectsSide:
  """The same with one Python object an episode."""

  def __init__(self, objects: episode_objects.EpisodeObjects, schedule: episodes.Schedule):
    self._objects, self._schedule = objects, schedule
    self._decoding: list[episode_objects.EpisodeObject] = list(objects.episodes)
    self._awaiting: list[episode_objects.EpisodeObject] = []
    self._due: list[episode_objects.EpisodeObject] = []
    self._slots: episode_objects.Slots = []

  def begin_chunk(self, size: int) -> list[np.ndarray]:
    """As `TableSide.begin_chunk`."""
    self._slots = self._objects.arrange(self._decoding, size)
    return self._objects.chunk_inputs(self._slots)

  def add_replies(self, decoded: Sequence[np.ndarray]) -> None:
    """As `TableSide.add_replies`."""
    self._objects.add_replies(self._slots, *decoded)

  def find_due(self, ended: Bool[np.ndarray, "slots"]) -> Due:
    """As `TableSide.find_due`."""
    finished = [one for one, over in zip(self._slots, ended, strict=True) if one and over]
    self._decoding = [one for one in self._decoding if one not in finished]
    unfinished = [one for one in finished if len(one.replies) < self._schedule.turns]
    replies = [tuple(map(tuple, one.replies)) for one in unfinished]
    awaiting = [*self._awaiting, *unfinished]
    many = len(awaiting) > len(self._decoding)
    self._due = [one for one in awaiting if one not in finished or many]
    self._awaiting = [one for one in awaiting if one not in self._due]
    return replies, [one.number for one in self._due]

  def append(self, new: Observations) -> list[Any]:
    """As `TableSide.append`."""
    sent, most = [], self._schedule.append_batch_size
    for batch in self._objects.append_batches(self._due, new.sizes[:, 0].tolist(), most):
      arranged = self._objects.arrange(batch, most)
      rows = self._objects.cache_rows(arranged, lambda one: len(one.replies))
      seen = np.array([0 if one is None else one.frames for one in arranged], np.int32)
      sent.append([*rows, seen])
      for one in batch:
        one.add_observation(new.shown[one.number], new.media_index[one.number], STRIDE)
    return sent

  def go_on(self) -> None:
    """As `TableSide.go_on`."""
    self._decoding = [*self._decoding, *self._due]

  def rollout(self, media: int, length: int) -> list[np.ndarray]:
    """As `TableSide.rollout`."""
    return self._objects.rollout(media, length)


def play(
  places: slot_layout.SlotLayout,
  *,
  prompt_count: int,
  group: int,
  schedule: episodes.Schedule,
  max_new_tokens: int,
  axes: int = 3,
  seed: int = 0,
) -> dict[str, Any]:
  """Plays random episodes with both sides; raises AssertionError where they differ.

  Returns milliseconds a chunk and seconds of the rollout, by side, and the number of chunks.
  """
  rng, laps = np.random.default_rng(seed), Laps()
  table = episode_table.EpisodeTable(
    places,
    rng.integers(10, 500, prompt_count),
    np.arange(prompt_count),
    group=group,
    max_new_tokens=max_new_tokens,
    schedule=schedule,
    position_axes=axes,
  )
  objects = episode_objects.EpisodeObjects(
    table,
    devices=places.devices,
    slots=places.slots,
    prompts_per_block=places.replies // group,
    group=group,
    max_new_tokens=max_new_tokens,
    schedule=schedule,
    axes=axes,
  )
  ours, theirs = TableSide(table, schedule), ObjectsSide(objects, schedule)

  def both(step: str, *arguments: Any) -> list[Any]:
    """Times the same step of both sides."""
    sides = {"table": ours, "objects": theirs}
    return [laps.timed(name, lambda s=s: getattr(s, step)(*arguments)) for name, s in sides.items()]

  while len(ours.decoding):
    laps.next_chunk()
    inputs, plain = both("begin_chunk", table.most_per_device(ours.decoding))
    _check(jax.tree.leaves(inputs), plain)
    *decoded, ended = _draw(rng, inputs.left, schedule.decode_chunk)
    both("add_replies", decoded)
    due, due_plain = both("find_due", ended)
    assert due == due_plain
    sent, sent_plain = both("append", Observations.draw(rng, due[1], axes))
    for one, other in zip(sent, sent_plain, strict=True):
      _check(jax.tree.leaves(one), other)
    ours.go_on()
    theirs.go_on()
    if not len(ours.decoding) and len(ours.awaiting):
      raise AssertionError("episodes wait while none is decoded")
  found = {
    side: {
      "ms_per_chunk": round(1000 * statistics.median(seconds), 2),
      "most_ms": round(1000 * max(seconds), 2),
    }
    for side, seconds in laps.seconds.items()
  }
  laps.next_chunk()
  made, wanted = both("rollout", int(table.frames.max()) * STRIDE, int(table.written.max()) + 3)
  _check(_leaves(made), wanted)
  for side, seconds in laps.seconds.items():
    found[side]["rollout_seconds"] = round(seconds[-1], 3)
  return {"chunks": len(laps.seconds["table"]) - 1, **found}


def _draw(
  rng: np.random.Generator, left: np.ndarray, chunk: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Tokens, log-probs, counts and ends, as a chunk's program returns them."""
  counts = np.minimum(left, np.where(rng.random(len(left)) < 0.3, rng.integers(0, chunk), chunk))
  ended = (counts < chunk) | (counts == left)
  counts = np.where(left > 0, np.maximum(counts, 1), 0).astype(np.int32)
  valid = np.arange(chunk) < counts[:, None]
  tokens = np.where(valid, rng.integers(1, 1000, valid.shape), 0).astype(np.int32)
  log_probs = np.where(valid, -rng.random(valid.shape), 0).astype(np.float32)
  return tokens, log_probs, counts, ended


def _media_index(rng: np.random.Generator, shown: prompts.EncodedPrompt) -> np.ndarray:
  index = np.full(len(shown.tokens), -1, np.int32)
  media = len(shown.frames) * STRIDE
  first = int(rng.integers(0, len(index) - media))
  index[first : first + media] = np.arange(media)
  return index


def _leaves(rollout: records.Rollout) -> list[Any]:
  inputs = rollout.episode_inputs
  assert inputs is not None
  found = [rollout.tokens, rollout.log_probs, rollout.kind, rollout.turn]
  found += [inputs.positions, inputs.media_index]
  return [*found, *([] if inputs.visible_from is None else [inputs.visible_from])]


def _check(ours: Sequence[Any], theirs: Sequence[Any]) -> None:
  for one, other in zip(ours, theirs, strict=True):
    assert one.dtype == other.dtype, (one.dtype, other.dtype)
    np.testing.assert_array_equal(one, other)


def main(argv: Sequence[str] | None = None) -> int:
  """Plays, and prints the line. Returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.episode_host", description=__doc__)
  parser.add_argument("--prompts", type=int, default=1024)
  parser.add_argument("--group", type=int, default=16)
  parser.add_argument("--devices", type=int, default=64)
  options = parser.parse_args(argv)
  about = measure.About("numpy")
  replies = options.prompts // options.devices * options.group
  places = slot_layout.SlotLayout(
    devices=options.devices, blocks=options.devices, replies=replies, slots=replies
  )
  schedule = episodes.Schedule(turns=3, patches=0, window=1, episode_buckets=(256, 512, 1024))
  found = play(
    places,
    prompt_count=options.prompts,
    group=options.group,
    schedule=schedule,
    max_new_tokens=256,
  )
  size = {"episodes": options.prompts * options.group, "devices": options.devices}
  met = found["table"]["ms_per_chunk"] <= GOAL
  line = {**size, **found, "goal_ms": GOAL, "met": met, **about.fields()}
  print(json.dumps({"benchmark": "episode_host", **line}))
  return 0 if met else 1


if __name__ == "__main__":
  sys.exit(main())
