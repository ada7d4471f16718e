"""Rollouts of several turns: replies, what their environment shows for them, replies to that, each at its own pace.

    reply 1 -> what is shown next (made on threads) -> appended to the reply's cache -> reply 2 -> …

While some replies are decoded, others wait for what they are shown. Every chunk of steps takes those that are there; what has
become ready meanwhile is appended in batches, padded to few lengths, and its replies rejoin. Neither when that is, nor what
stands beside a reply, changes what is drawn for it: its key is folded by prompt, member, turn and step alone.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import time

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree
import numpy as np

from vr_jax import errors, records
from vr_jax.models import seats as seats_lib
from vr_jax.models.qwen2_5_vl import prompts as prompts_lib
from vr_jax.rollout import episodes as episodes_lib
from vr_jax.rollout import places as places_lib
from vr_jax.rollout import sampler, suffixes

_Ready = tuple[episodes_lib.Episode, episodes_lib.Shown]


def play(
  graph: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  allowed: Bool[Array, "vocab"],
  key: Key[Array, ""],
  turns: episodes_lib.Turns,
  *,
  decoding: sampler.Decoding,
  schedule: episodes_lib.Schedule,
  threads: futures.Executor,
) -> episodes_lib.Played:
  """Plays `decoding.group` episodes of up to `schedule.turns` replies to each prompt, each of up to `decoding.max_new_tokens`.

  With one turn the replies are those of `sampler.sample`; log-probs as there.

  Raises:
    InputError: an episode outgrows the largest bucket, or the run has several processes.
  """
  if jax.process_count() > 1:
    raise errors.InputError("rollout of several turns: the run has several processes; use one")
  table = _Table(graph, params, prompt, allowed, key, turns, decoding, schedule)
  speaking = list(table.episodes)
  watching: dict[futures.Future[episodes_lib.Shown | None], episodes_lib.Episode] = {}
  pace = 0.0
  try:
    while speaking or watching:
      if not speaking:
        futures.wait(watching, return_when=futures.FIRST_COMPLETED)
      if len(watching) > len(speaking):  # a step for these few takes about as long as one for all
        futures.wait(watching, timeout=pace)
      done = [future for future in watching if future.done()]
      answered = [(watching.pop(future), future.result()) for future in done]
      ready = [(episode, shown) for episode, shown in answered if shown is not None]
      table.append(ready)
      speaking += [episode for episode, _ in ready]
      if not speaking:
        continue
      begun = time.perf_counter()
      ended = table.decode(speaking)
      pace = time.perf_counter() - begun
      speaking = [episode for episode in speaking if episode not in ended]
      for episode in ended:
        if len(episode.replies) < schedule.turns:
          said = tuple(map(tuple, episode.replies))
          watching[threads.submit(turns.observe, episode.row, episode.member, said)] = episode
  finally:
    for future in watching:
      future.cancel()
  return table.played()


class _Table:
  """The replies of a batch on the devices: each keeps its home there, and takes a slot or a row where it is computed."""

  def __init__(
    self,
    graph: nnx.GraphDef,
    params: PyTree,
    prompt: records.Prompt,
    allowed: Bool[Array, "vocab"],
    key: Key[Array, ""],
    turns: episodes_lib.Turns,
    decoding: sampler.Decoding,
    schedule: episodes_lib.Schedule,
  ):
    self._graph, self._allowed, self._key = graph, allowed, key
    self._turns, self._decoding, self._schedule = turns, decoding, schedule
    self._layout = nnx.merge(graph, params).layout
    self._places = places_lib.Places.of(self._layout, prompt.tokens.shape[0], decoding.group)
    self._length, self._decoded = min(schedule.time_buckets), 0
    self._prefix, self._state = suffixes.start(
      graph,
      params,
      prompt,
      group=decoding.group,
      length=self._length,
      frames=max(schedule.frame_buckets),
      patches=schedule.patches,
    )
    self._stride = self._state.media.shape[1] // max(*schedule.frame_buckets, 1)
    self._params = sampler.decoding_params(graph, params) if decoding.gather else params
    self.episodes = self._seated(np.asarray(prompt.next_position))

  def _seated(self, starts: Int[np.ndarray, "prompts"]) -> list[episodes_lib.Episode]:
    places, group, made = self._places, self._decoding.group, []
    numbers = zip(places.reply().tolist(), places.block().tolist(), strict=True)
    for slot, (reply, block) in enumerate(numbers):
      if reply < places.replies:
        row = block * (places.replies // group) + reply // group
        device, home = divmod(slot, places.slots)
        made.append(
          episodes_lib.Episode(
            row=row,
            member=reply % group,
            device=device,
            home=home,
            seat=reply // group,
            position=int(starts[row]),
          )
        )
    return made

  def decode(self, speaking: Sequence[episodes_lib.Episode]) -> list[episodes_lib.Episode]:
    """A chunk of steps for these; gives those whose reply has ended."""
    places, decoding, schedule = self._places, self._decoding, self._schedule
    left = {one: decoding.max_new_tokens - len(one.replies[-1]) for one in speaking}
    self._grow(max(one.written + min(left[one], schedule.chunk) for one in speaking))
    sizes = sampler.sizes_of(places.slots, decoding.rungs)
    size = min(size for size in sizes if size >= self._most(speaking))
    held = self._arranged(speaking, size, at_home=size == places.slots)
    rows = self._rows(held)
    if size == places.slots:
      rows.home[:] = places.home()
    self._state, said = suffixes.decode(
      self._graph,
      self._params,
      self._prefix,
      self._state,
      suffixes.Slots(
        rows=rows,
        prompt=_of(held, lambda one: one.row),
        member=_of(held, lambda one: one.member),
        step=_of(
          held, lambda one: (len(one.replies) - 1) * decoding.max_new_tokens + len(one.replies[-1])
        ),
        left=_of(held, lambda one: left[one]),
      ),
      self._allowed,
      self._key,
      jnp.int32(max((fewer for fewer in sizes if fewer < size), default=0)),
      decoding=decoding,
      chunk=schedule.chunk,
    )
    said = jax.device_get(said)
    self._decoded += int(said.counts.max()) * len(held)
    for slot, one in enumerate(held):
      if one is not None:
        count = said.counts[slot]
        one.say(said.tokens[slot, :count], said.log_probs[slot, :count])
    return [one for one, ended in zip(held, said.ended, strict=True) if one and ended]

  def append(self, ready: Sequence[_Ready]) -> None:
    """Shows replies what their environment made for them, in batches of about the same length."""
    for one, shown in ready:
      one.check_room(shown, self._decoding.max_new_tokens, self._schedule)
    shown = dict(ready)
    waiting = sorted(shown, key=lambda one: len(shown[one].tokens))
    while waiting:
      taken = [
        one
        for device in range(self._places.devices)
        for one in [one for one in waiting if one.device == device][: self._schedule.rows]
      ]
      self._append(taken, shown)
      waiting = [one for one in waiting if one not in taken]

  def _append(
    self,
    taken: Sequence[episodes_lib.Episode],
    shown: dict[episodes_lib.Episode, episodes_lib.Shown],
  ) -> None:
    schedule = self._schedule
    self._grow(max(one.written + len(shown[one].tokens) for one in taken))
    size = 1
    while size < self._most(taken):
      size *= 2
    held = self._arranged(taken, size)
    seen = [shown[one] if one else episodes_lib.NOTHING for one in held]
    tokens = [(one.name, len(one.tokens)) for one in seen]
    frames = [(one.name, len(one.frames)) for one in seen]
    sizes = prompts_lib.Sizes(
      prefix=prompts_lib.bucket(tokens, schedule.shown_buckets, "tokens"),
      frames=prompts_lib.bucket(frames, schedule.frame_buckets, "temporal patches"),
      patches=schedule.patches,
    )
    batch = self._turns.pad(seen, sizes)
    self._state = suffixes.append(
      self._graph,
      self._params,
      self._prefix,
      self._state,
      batch,
      self._rows(held),
      _of(held, lambda one: one.frames),
      stride=self._stride,
    )
    for row, one in enumerate(held):
      if one is not None:
        one.see(seen[row], batch.media_index[row, : len(seen[row].tokens)], self._stride)

  def played(self) -> episodes_lib.Played:
    """All that was said and shown."""
    schedule, group = self._schedule, self._decoding.group
    groups = episodes_lib.in_groups(self.episodes, group)
    longest = max(one.written for one in self.episodes)
    time = min(size for size in schedule.time_buckets if size >= longest)
    most = max(one.frames for one in self.episodes)
    frames = min(size for size in schedule.frame_buckets if size >= most)
    shape = (len(groups), group)
    media = suffixes.media_of(self._layout, self._state, shape, frames * self._stride)
    rollout = episodes_lib.rollout(groups, media, time)
    return episodes_lib.Played(
      rollout=suffixes.laid_out(self._layout, rollout),
      replies=[[tuple(map(tuple, one.replies)) for one in row] for row in groups],
      shown=[[one.shown for one in row] for row in groups],
      frames=frames,
      decoded=self._decoded,
    )

  def _grow(self, length: int) -> None:
    if length > self._length:
      buckets = self._schedule.time_buckets
      self._length = prompts_lib.bucket([("episode", length)], buckets, "tokens")
      self._state = suffixes.grow(self._layout, self._state, self._length)

  def _most(self, some: Sequence[episodes_lib.Episode]) -> int:
    """How many of these the device has that has most of them."""
    return int(np.bincount([one.device for one in some]).max())

  def _arranged(
    self, some: Sequence[episodes_lib.Episode], size: int, *, at_home: bool = False
  ) -> list[episodes_lib.Episode | None]:
    """`size` places of each device with these in them, each at its home or one after the other."""
    held = [[None] * size for _ in range(self._places.devices)]
    taken = [0] * self._places.devices
    for one in some:
      held[one.device][one.home if at_home else taken[one.device]] = one
      taken[one.device] += 1
    return [one for row in held for one in row]

  def _rows(self, held: Sequence[episodes_lib.Episode | None]) -> seats_lib.Rows:
    nobody, nowhere = self._places.slots, self._places.replies // self._decoding.group
    return seats_lib.Rows(
      home=_of(held, lambda one: one.home, nobody),
      prompt=_of(held, lambda one: one.seat, nowhere),
      written=_of(held, lambda one: one.written),
      position=_of(held, lambda one: one.position),
    )


def _of(
  held: Sequence[episodes_lib.Episode | None],
  field: Callable[[episodes_lib.Episode], int],
  otherwise: int = 0,
) -> Int[np.ndarray, "places"]:
  """A number of each that is held, and `otherwise` where there is none."""
  return np.array([otherwise if one is None else field(one) for one in held], np.int32)
