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
rollout; goal: at most 20 ms.
"""

import argparse
from collections.abc import Callable, Sequence
import json
import statistics
import time
from typing import Any

import jax
import numpy as np

from benchmarks import episode_objects, measure
from vr_jax import records
from vr_jax.models.common import prompts
from vr_jax.rollout import episode_table, episodes, slot_layout

GOAL = 20.0  # milliseconds
STRIDE = 4  # media tokens of a frame


class Laps:
  """Seconds of each chunk's work, side by side."""

  def __init__(self):
    self.seconds: dict[str, list[float]] = {"table": [], "objects": []}

  def next_chunk(self) -> None:
    """Begins a chunk."""
    for laps in self.seconds.values():
      laps.append(0.0)

  def timed(self, side: str, work: Callable[[], Any]) -> Any:
    """Does the work, and adds its time to the chunk of a side."""
    begun = time.perf_counter()
    result = work()
    self.seconds[side][-1] += time.perf_counter() - begun
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
  starts = rng.integers(10, 500, prompt_count)
  table = episode_table.EpisodeTable(
    places,
    starts,
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
  decoding, chunk = np.arange(len(table)), schedule.decode_chunk
  plain = list(objects.episodes)
  awaiting, awaiting_plain = decoding[:0], []
  while len(decoding):
    laps.next_chunk()
    size = table.most_per_device(decoding)
    slots = laps.timed("table", lambda d=decoding, s=size: table.arrange(d, s))
    inputs = laps.timed("table", lambda s=slots: table.chunk_inputs(s, all_slots=False))
    slots_plain = laps.timed("objects", lambda p=plain, s=size: objects.arrange(p, s))
    inputs_plain = laps.timed("objects", lambda s=slots_plain: objects.chunk_inputs(s))
    _check(jax.tree.leaves(inputs), inputs_plain)
    decoded = _draw(rng, inputs.left, chunk)
    ended = decoded[3]
    laps.timed("table", lambda s=slots, d=decoded: table.add_replies(s, *d[:3]))
    laps.timed("objects", lambda s=slots_plain, d=decoded: objects.add_replies(s, *d[:3]))

    def loop(slots=slots, ended=ended, decoding=decoding, awaiting=awaiting) -> Any:
      finished = slots[(slots >= 0) & ended]
      decoding = decoding[~np.isin(decoding, finished)]
      unfinished = finished[table.turn[finished] + 1 < schedule.turns]
      replies = [table.replies(one) for one in unfinished.tolist()]
      awaiting = np.concatenate([awaiting, unfinished])
      now = ~np.isin(awaiting, finished) | (len(awaiting) > len(decoding))
      return decoding, replies, awaiting[now], awaiting[~now]

    def loop_plain(slots=slots_plain, ended=ended, plain=plain, awaiting=awaiting_plain) -> Any:
      finished = [one for one, over in zip(slots, ended, strict=True) if one and over]
      plain = [one for one in plain if one not in finished]
      unfinished = [one for one in finished if len(one.replies) < schedule.turns]
      replies = [tuple(map(tuple, one.replies)) for one in unfinished]
      awaiting = [*awaiting, *unfinished]
      many = len(awaiting) > len(plain)
      due = [one for one in awaiting if one not in finished or many]
      return plain, replies, due, [one for one in awaiting if one not in due]

    decoding, replies, due, awaiting = laps.timed("table", loop)
    plain, replies_plain, due_plain, awaiting_plain = laps.timed("objects", loop_plain)
    assert replies == replies_plain
    assert due.tolist() == [one.number for one in due_plain]
    shown = {one: make_observation(rng, str(one), axes) for one in due.tolist()}
    sizes = np.array(
      [episodes.ObservationSize.from_encoded(one) for one in shown.values()], np.int32
    ).reshape(-1, 3)
    indices = {one: _media_index(rng, encoded) for one, encoded in shown.items()}

    def append(due=due, sizes=sizes, shown=shown, indices=indices) -> list[Any]:
      sent = []
      most = schedule.append_batch_size
      for batch in table.append_batches(due, sizes[:, 0], most):
        arranged = table.arrange(due[batch], most)
        rows = table.cache_rows(arranged, next_turn=True)
        sent.append((rows, episode_table.by_slot(table.frames, arranged)))
        for one in due[batch].tolist():
          table.add_observation(one, shown[one], indices[one], STRIDE)
        table.start_next_turn(due[batch], sizes[batch])
      return sent

    def append_plain(due=due_plain, sizes=sizes, shown=shown, indices=indices) -> list[Any]:
      sent = []
      most = schedule.append_batch_size
      for batch in objects.append_batches(due, sizes[:, 0].tolist(), most):
        arranged = objects.arrange(batch, most)
        rows = objects.cache_rows(arranged, lambda one: len(one.replies))
        seen = np.array([0 if one is None else one.frames for one in arranged], np.int32)
        sent.append([*rows, seen])
        for one in batch:
          one.add_observation(shown[one.number], indices[one.number], STRIDE)
      return sent

    sent = laps.timed("table", append)
    sent_plain = laps.timed("objects", append_plain)
    for ours, theirs in zip(sent, sent_plain, strict=True):
      _check(jax.tree.leaves(ours), theirs)
    decoding, plain = np.concatenate([decoding, due]), [*plain, *due_plain]
    if not len(decoding) and len(awaiting):
      raise AssertionError("episodes wait while none is decoded")
  found = {
    side: {
      "ms_per_chunk": round(1000 * statistics.median(seconds), 2),
      "most_ms": round(1000 * max(seconds), 2),
    }
    for side, seconds in laps.seconds.items()
  }
  length, each = int(table.written.max()) + 3, int(table.frames.max()) * STRIDE
  laps.next_chunk()
  made = laps.timed("table", lambda: table.rollout(None, each, length))
  wanted = laps.timed("objects", lambda: objects.rollout(each, length))
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


def main(argv: Sequence[str] | None = None) -> None:
  """Plays, and prints the line."""
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
  print(
    json.dumps({"benchmark": "episode_host", **size, **found, "goal_ms": GOAL, **about.fields()})
  )


if __name__ == "__main__":
  main()
