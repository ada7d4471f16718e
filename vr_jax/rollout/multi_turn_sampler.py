"""Rollouts of several turns: replies, what their environment shows for them, replies to that, each at its own pace.

    reply 1 -> what is shown next (made on threads) -> appended to the reply's cache -> reply 2 -> …

While some replies are decoded, what others are shown next is made: it has a chunk of steps for that, then the devices wait for
it, or at once where more replies watch than speak. It is appended in batches, padded to few lengths, and its replies rejoin.
So the same programs run in the same order however fast frames come, and an episode is the same to the bit. What stands beside a
reply changes nothing of what is drawn for it but rounding: its key is folded by prompt, member, turn and step alone.

Several processes go through the same programs too: each knows how far every episode has come, and before more is appended, they
tell each other how much there is. Frames and texts stay with the process that has the prompt.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import time

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree
import numpy as np

from vr_jax import records
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.models.common import slots as slots_lib
from vr_jax.parallel import processes
from vr_jax.rollout import episodes as episodes_lib
from vr_jax.rollout import sampler, turn_decode
from vr_jax.rollout import slot_layout as slot_layout_lib

# How much an episode is shown, and what, where its prompt is.
_Ready = tuple[episodes_lib.ObservationSize, episodes_lib.EncodedObservation | None]

# Of what an episode is shown next, in the order in which processes that have it count: the first that any says holds.
_OVER, _READY, _ELSEWHERE = 0, 1, 2**30


def play(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  allowed_tokens: Bool[Array, "vocab"],
  key: Key[Array, ""],
  turns: episodes_lib.Turns,
  *,
  decoding: sampler.Decoding,
  schedule: episodes_lib.Schedule,
  threads: futures.Executor,
) -> episodes_lib.EpisodeRollout:
  """Plays `decoding.group` episodes of up to `schedule.turns` replies to each prompt, each of up to `decoding.max_new_tokens`.

  With one turn the replies are those of `sampler.sample`; log-probs as there.

  Raises:
    InputError: an episode outgrows the largest bucket.
  """
  table = EpisodeScheduler(graphdef, params, prompt, allowed_tokens, key, turns, decoding, schedule)
  decoding_episodes = list(table.episodes)
  awaiting_observation: list[episodes_lib.EpisodeState] = []
  ended: list[episodes_lib.EpisodeState] = []
  asked: dict[
    episodes_lib.EpisodeState, futures.Future[episodes_lib.EncodedObservation | None]
  ] = {}
  waited = 0.0
  try:
    while decoding_episodes or awaiting_observation:
      # A step for few takes about as long as one for all.
      now = [
        one
        for one in awaiting_observation
        if one not in ended or len(awaiting_observation) > len(decoding_episodes)
      ]
      begun = time.perf_counter()
      answers = {one: asked.pop(one).result() for one in now if one in asked}
      waited += time.perf_counter() - begun
      ready = table.sync_observations(now, answers)
      table.append(ready)
      awaiting_observation = [episode for episode in awaiting_observation if episode not in now]
      decoding_episodes += ready
      ended = table.decode(decoding_episodes) if decoding_episodes else []
      decoding_episodes = [episode for episode in decoding_episodes if episode not in ended]
      for episode in ended:
        if len(episode.replies) < schedule.turns:
          awaiting_observation.append(episode)
          if episode.own_row is not None:
            said = tuple(map(tuple, episode.replies))
            arguments = turns.observe, episode.own_row, episode.group_index, said
            asked[episode] = threads.submit(*arguments)
  finally:
    for future in asked.values():
      future.cancel()
  return table.finish(waited)


class EpisodeScheduler:
  """The replies of a batch on the devices: each keeps its home there, and takes a slot or a row where it is computed."""

  def __init__(
    self,
    graphdef: nnx.GraphDef,
    params: PyTree,
    prompt: records.Prompt,
    allowed_tokens: Bool[Array, "vocab"],
    key: Key[Array, ""],
    turns: episodes_lib.Turns,
    decoding: sampler.Decoding,
    schedule: episodes_lib.Schedule,
  ):
    self._graph, self._allowed, self._key = graphdef, allowed_tokens, key
    self._turns, self._decoding, self._schedule = turns, decoding, schedule
    self._layout = nnx.merge(graphdef, params).layout
    self._places = slot_layout_lib.SlotLayout.for_groups(
      self._layout, prompt.tokens.shape[0], decoding.group
    )
    self._length, self._computed = min(schedule.episode_buckets), 0
    self._prefix, self._state = turn_decode.start(
      graphdef,
      params,
      prompt,
      group=decoding.group,
      length=self._length,
      frames=max(schedule.frame_buckets),
      patches=schedule.patches,
    )
    self._stride = jax.tree.leaves(self._state.media)[0].shape[1] // max(*schedule.frame_buckets, 1)
    self._params = (
      sampler.decoding_params(graphdef, params) if decoding.replicate_weights else params
    )
    starts = jax.device_get(turn_decode.replicate(self._layout, prompt.next_position))
    self.episodes = self._make_episodes(starts)

  def _make_episodes(self, starts: Int[np.ndarray, "prompts"]) -> list[episodes_lib.EpisodeState]:
    places, group, made = self._places, self._decoding.group, []
    blocks = np.split(np.arange(len(starts)), places.blocks)
    parts = self._layout.parts_here("prompts") if places.blocks > 1 else (0,)
    here = np.concatenate([blocks[part] for part in parts])
    own = {int(row): number for number, row in enumerate(here)}
    numbers = zip(places.reply().tolist(), places.block().tolist(), strict=True)
    for slot, (reply, block) in enumerate(numbers):
      if reply < places.replies:
        row = block * (places.replies // group) + reply // group
        device, cache_slot = divmod(slot, places.slots)
        made.append(
          episodes_lib.EpisodeState(
            row=row,
            own_row=own.get(row),
            group_index=reply % group,
            device=device,
            cache_slot=cache_slot,
            prompt_slot=reply // group,
            position=int(starts[row]),
            axes=self._turns.axes,
          )
        )
    return made

  def decode(
    self, decoding_episodes: Sequence[episodes_lib.EpisodeState]
  ) -> list[episodes_lib.EpisodeState]:
    """A chunk of steps for these; gives those whose reply has ended."""
    places, decoding, schedule = self._places, self._decoding, self._schedule
    left = {one: decoding.max_new_tokens - len(one.replies[-1]) for one in decoding_episodes}
    self._grow(
      max(one.written + min(left[one], schedule.decode_chunk) for one in decoding_episodes)
    )
    sizes = sampler.slot_sizes(places.slots, decoding.slot_fractions)
    size = min(size for size in sizes if size >= self._most(decoding_episodes))
    held = self._arrange(decoding_episodes, size, at_home=size == places.slots)
    rows = self._rows(held, lambda one: len(one.replies) - 1)
    if size == places.slots:
      rows.cache_slot[:] = places.device_slot()
    self._state, said = turn_decode.decode(
      self._graph,
      self._params,
      self._prefix,
      self._state,
      turn_decode.ChunkSlots(
        rows=rows,
        prompt=_of(held, lambda one: one.row),
        group_index=_of(held, lambda one: one.group_index),
        step=_of(
          held, lambda one: (len(one.replies) - 1) * decoding.max_new_tokens + len(one.replies[-1])
        ),
        left=_of(held, lambda one: left[one]),
      ),
      self._allowed,
      self._key,
      jnp.int32(max((fewer for fewer in sizes if fewer < size), default=0)),
      decoding=decoding,
      chunk=schedule.decode_chunk,
    )
    said = jax.device_get(said)
    self._computed += int(said.counts.max()) * len(held)
    for slot, one in enumerate(held):
      if one is not None:
        count = said.counts[slot]
        one.add_reply_tokens(said.tokens[slot, :count], said.log_probs[slot, :count])
    return [one for one, ended in zip(held, said.ended, strict=True) if one and ended]

  def sync_observations(
    self,
    awaiting_observation: Sequence[episodes_lib.EpisodeState],
    observations: dict[episodes_lib.EpisodeState, episodes_lib.EncodedObservation | None],
  ) -> dict[episodes_lib.EpisodeState, _Ready]:
    """What these are shown next, those that are over left out. observations: of this process."""
    if not awaiting_observation:
      return {}
    table = np.full(
      (len(awaiting_observation), 1 + len(episodes_lib.ObservationSize._fields)),
      _ELSEWHERE,
      np.int32,
    )
    for row, one in zip(table, awaiting_observation, strict=True):
      if one not in observations:
        continue
      shown, row[:] = observations[one], _OVER
      if shown is not None:
        one.check_fits(shown, self._decoding.max_new_tokens, self._schedule)
        row[:] = _READY, *episodes_lib.ObservationSize.from_encoded(shown)
    found = processes.all_gather(table.reshape(-1)).min(axis=0).reshape(table.shape).tolist()
    return {
      one: (episodes_lib.ObservationSize(*size), observations.get(one))
      for one, (state, *size) in zip(awaiting_observation, found, strict=True)
      if state == _READY
    }

  def append(self, ready: dict[episodes_lib.EpisodeState, _Ready]) -> None:
    """Shows replies what their environment made for them, in batches of about the same length."""
    waiting = sorted(ready, key=lambda one: ready[one][0].tokens)
    while waiting:
      taken = [
        one
        for device in range(self._places.devices)
        for one in [one for one in waiting if one.device == device][
          : self._schedule.append_batch_size
        ]
      ]
      self._append(taken, ready)
      waiting = [one for one in waiting if one not in taken]

  def _append(
    self, taken: Sequence[episodes_lib.EpisodeState], ready: dict[episodes_lib.EpisodeState, _Ready]
  ) -> None:
    schedule = self._schedule
    self._grow(max(one.written + ready[one][0].tokens for one in taken))
    count = 1
    while count < self._most(taken):
      count *= 2
    held = self._arrange(taken, count)
    sizes = prompts_lib.PromptSizes(
      prefix=_fitting(schedule.observation_buckets, max(ready[one][0].tokens for one in taken)),
      frames=_fitting(schedule.frame_buckets, max(ready[one][0].frames for one in taken)),
      patches=schedule.patches,
    )
    self._computed += len(held) * sizes.prefix
    parts = self._layout.parts_here("slots")
    here = [one for part in parts for one in held[part * count : (part + 1) * count]]
    nothing = prompts_lib.nothing(self._turns.axes)
    batch = self._turns.pad([ready[one][1] if one else nothing for one in here], sizes)
    self._state = turn_decode.append(
      self._graph,
      self._params,
      self._prefix,
      self._state,
      _on_devices(self._layout, batch),
      self._rows(held, lambda one: len(one.replies)),
      _of(held, lambda one: one.frames),
      stride=self._stride,
    )
    index = dict(zip(here, batch.media_index, strict=True))
    for one in taken:
      size, shown = ready[one]
      if shown is not None:
        one.add_observation(shown, index[one][: size.tokens], self._stride)
      one.start_next_turn(size)

  def finish(self, waited: float) -> episodes_lib.EpisodeRollout:
    """All that was said and shown. waited: seconds, as `Played` has them."""
    group = self._decoding.group
    time = _fitting(self._schedule.episode_buckets, max(one.written for one in self.episodes))
    frames = _fitting(self._schedule.frame_buckets, max(one.frames for one in self.episodes))
    shape = (len(self.episodes) // group, group)
    media = turn_decode.gather_media(self._layout, self._state, shape, frames * self._stride)
    own = [one for one in self.episodes if one.own_row is not None]
    groups = episodes_lib.in_groups(own, group)
    return episodes_lib.EpisodeRollout(
      rollout=_on_devices(
        self._layout, episodes_lib.rollout(groups, media, time, self._schedule), "prompts"
      ),
      shown=[[one.shown for one in row] for row in groups],
      frames=frames,
      computed_tokens=self._computed,
      idle_seconds=waited,
    )

  def _grow(self, length: int) -> None:
    if length > self._length:
      buckets = self._schedule.episode_buckets
      self._length = prompts_lib.smallest_bucket([("episode", length)], buckets, "tokens")
      self._state = turn_decode.grow(self._layout, self._state, self._length)

  def _most(self, some: Sequence[episodes_lib.EpisodeState]) -> int:
    """How many of these the device has that has most of them."""
    return int(np.bincount([one.device for one in some]).max())

  def _arrange(
    self, some: Sequence[episodes_lib.EpisodeState], size: int, *, at_home: bool = False
  ) -> list[episodes_lib.EpisodeState | None]:
    """`size` places of each device with these in them, each at its home or one after the other."""
    held = [[None] * size for _ in range(self._places.devices)]
    taken = [0] * self._places.devices
    for one in some:
      held[one.device][one.cache_slot if at_home else taken[one.device]] = one
      taken[one.device] += 1
    return [one for row in held for one in row]

  def _rows(
    self,
    held: Sequence[episodes_lib.EpisodeState | None],
    turn: Callable[[episodes_lib.EpisodeState], int],
  ) -> slots_lib.CacheRows:
    """turn: of the tokens that are computed next."""
    window, forgotten = self._schedule.window, None
    if self._schedule.forgets:
      forgotten = _of(held, lambda one: one.forgotten(turn(one), window))
    nobody, nowhere = self._places.slots, self._places.replies // self._decoding.group
    return slots_lib.CacheRows(
      cache_slot=_of(held, lambda one: one.cache_slot, nobody),
      prompt=_of(held, lambda one: one.prompt_slot, nowhere),
      written=_of(held, lambda one: one.written),
      position=_of(held, lambda one: one.position),
      forgotten=forgotten,
      kept=self._schedule.kept,
    )


def _on_devices(layout: layout_lib.Layout, tree: PyTree, axis: str = "slots") -> PyTree:
  """What this process has of host arrays, whose rows are split along that axis."""

  def put(x: np.ndarray | Array) -> Array:
    if isinstance(x, jax.Array):
      return x
    return layout.from_host(x, (axis, *[None] * (x.ndim - 1)))

  return jax.tree.map(put, tree)


def _fitting(buckets: tuple[int, ...], most: int) -> int:
  return min(size for size in buckets if size >= most)


def _of(
  held: Sequence[episodes_lib.EpisodeState | None],
  field: Callable[[episodes_lib.EpisodeState], int],
  otherwise: int = 0,
) -> Int[np.ndarray, "places"]:
  """A number of each that is held, and `otherwise` where there is none."""
  return np.array([otherwise if one is None else field(one) for one in held], np.int32)
