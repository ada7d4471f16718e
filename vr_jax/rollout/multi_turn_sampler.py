"""Rollouts of several turns, in which replies and observations alternate.

    reply 1 -> observation (encoded on threads) -> appended to the reply's cache -> reply 2 -> …

Encoding an observation may overlap with one decoding chunk; after that the devices block on it. If
more episodes await an observation than are decoding, the devices block at once. Observations are
appended in batches, padded to a few lengths, and their episodes go on decoding. The order of the
programs does not depend on how fast frames are read, so a run repeats bit for bit. A reply's random
key is folded from its prompt, index in the group, turn and step, so a reply does not depend on the
rest of the batch, up to rounding.

Several processes run the same programs. Each knows the tokens and sizes of all episodes; before
observations are appended, the processes exchange their sizes. Frames and texts stay with the
process that has the prompt. If an observation can't be made in one process, all of them stop. Where
the mesh does not split prompts, every process makes every observation, and they have to be equal.

What the indices of an episode range over (see `SlotLayout` for devices and blocks):

    row           prompts of the whole batch
    own_row       prompts of this process
    prompt_slot   prompts of the episode's block
    group_index   episodes of its prompt
    cache_slot    caches of its device; an episode keeps its own
    decode slot   the replies of a device that are decoded in this chunk
    batch slot    the episodes of a device to which an observation is appended now
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
import dataclasses
import time
from typing import cast

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree
import numpy as np

from vr_jax import records
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.models.common import slots as slots_lib
from vr_jax.parallel import processes
from vr_jax.rollout import episodes as episodes_lib
from vr_jax.rollout import sampler, turn_decode
from vr_jax.rollout import slot_layout as slot_layout_lib

# The size of an observation, and the observation itself in the process that has the prompt.
_Ready = tuple[episodes_lib.ObservationSize, episodes_lib.EncodedObservation | None]

# State of the observation that an episode awaits, as each process reports it. A process that does
# not have the prompt fills in _ELSEWHERE, for the sizes as well: it is above any size, so an
# elementwise minimum finds what those that have it report.
_FAILED, _OVER, _READY, _ELSEWHERE = -1, 0, 1, 2**30


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
  """Plays `decoding.group` episodes of up to `schedule.turns` replies to each prompt.

  A reply has up to `decoding.max_new_tokens` tokens. With one turn, the replies are those of
  `sampler.sample`. Log-probs are defined as there.

  Raises:
    InputError: an episode does not fit the largest bucket.
    RuntimeError: an observation could not be made in another process, or differs between processes.
    Exception: what `turns.observe` raised in this one.
  """
  batch = EpisodeBatch(graphdef, params, prompt, allowed_tokens, key, turns, decoding, schedule)
  decoding_episodes = list(batch.episodes)
  awaiting_observation: list[episodes_lib.EpisodeState] = []
  just_finished: list[episodes_lib.EpisodeState] = []  # their reply ended in the last chunk
  encoding: dict[
    episodes_lib.EpisodeState, futures.Future[episodes_lib.EncodedObservation | None]
  ] = {}
  idle = 0.0
  try:
    while decoding_episodes or awaiting_observation:
      # Wait for an observation once it has had one chunk of decoding, or at once if more episodes
      # wait than decode, because a step for few replies costs about as much as one for all.
      due = [
        episode
        for episode in awaiting_observation
        if episode not in just_finished or len(awaiting_observation) > len(decoding_episodes)
      ]
      begun = time.perf_counter()
      futures.wait([encoding[episode] for episode in due if episode in encoding])
      idle += time.perf_counter() - begun
      observations = {episode: encoding.pop(episode) for episode in due if episode in encoding}
      ready = batch.sync_observations(due, observations)
      batch.append(ready)
      awaiting_observation = [episode for episode in awaiting_observation if episode not in due]
      decoding_episodes += ready.keys()
      just_finished = batch.decode(decoding_episodes) if decoding_episodes else []
      decoding_episodes = [episode for episode in decoding_episodes if episode not in just_finished]
      for episode in just_finished:
        if len(episode.replies) < schedule.turns:
          awaiting_observation.append(episode)
          if episode.own_row is not None:
            replies = tuple(map(tuple, episode.replies))
            arguments = turns.observe, episode.own_row, episode.group_index, replies
            encoding[episode] = threads.submit(*arguments)
  finally:
    for future in encoding.values():
      future.cancel()
  return batch.finish(idle)


class EpisodeBatch:
  """The episodes of a batch on the devices.

  Each episode keeps a cache slot. It takes a decode slot while it is decoded, and a batch slot
  while an observation is appended.
  """

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
    self._cache_length, self._computed_tokens = min(schedule.episode_buckets), 0
    self._prefix, self._state = turn_decode.start(
      graphdef,
      params,
      prompt,
      group=decoding.group,
      length=self._cache_length,
      frames=max(schedule.frame_buckets),
      patches=schedule.patches,
    )
    # Each cache slot has room for the largest number of frames.
    self._tokens_per_frame = jax.tree.leaves(self._state.media)[0].shape[1] // max(
      *schedule.frame_buckets, 1
    )
    self._params = (
      sampler.decoding_params(graphdef, params) if decoding.replicate_weights else params
    )
    starts = jax.device_get(turn_decode.replicate(self._layout, prompt.next_position))
    self.episodes = self._make_episodes(starts)

  def _make_episodes(self, starts: Int[np.ndarray, "prompts"]) -> list[episodes_lib.EpisodeState]:
    """The episodes of all prompts, ordered by device and cache slot.

    `own_row` is None if another process has the prompt. If the mesh does not split prompts, each
    process has all of them, also those of other processes' slots.

    starts: position of the first token after each prompt.
    """
    places, group, episodes = self._places, self._decoding.group, []
    blocks = np.split(np.arange(len(starts)), places.blocks)
    parts = self._layout.parts_here("prompts") if places.blocks > 1 else (0,)
    here = np.concatenate([blocks[part] for part in parts])
    own_rows = {int(row): own_row for own_row, row in enumerate(here)}
    numbers = zip(places.reply().tolist(), places.block().tolist(), strict=True)
    for slot, (in_block, block) in enumerate(numbers):
      if in_block < places.replies:
        row = block * (places.replies // group) + in_block // group
        device, cache_slot = divmod(slot, places.slots)
        episodes.append(
          episodes_lib.EpisodeState(
            row=row,
            own_row=own_rows.get(row),
            group_index=in_block % group,
            device=device,
            cache_slot=cache_slot,
            prompt_slot=in_block // group,
            position=int(starts[row]),
            position_axes=self._turns.position_axes,
          )
        )
    return episodes

  def decode(
    self, decoding_episodes: Sequence[episodes_lib.EpisodeState]
  ) -> list[episodes_lib.EpisodeState]:
    """Decodes a chunk of steps for these episodes; returns those whose reply is finished."""
    places, decoding, schedule = self._places, self._decoding, self._schedule
    left = {one: decoding.max_new_tokens - len(one.replies[-1]) for one in decoding_episodes}
    self._grow(
      max(one.written + min(left[one], schedule.decode_chunk) for one in decoding_episodes)
    )
    sizes = sampler.slot_sizes(places.slots, decoding.slot_fractions)
    size = min(size for size in sizes if size >= self._most_per_device(decoding_episodes))
    all_slots = size == places.slots
    slots = self._arrange(decoding_episodes, size, by_cache_slot=all_slots)
    cache_rows = self._cache_rows(slots, lambda one: len(one.replies) - 1)
    if all_slots:
      # Decode slot i then has cache slot i, and the cache is used where it stands. Empty slots have
      # no tokens left to decode, so they write nothing.
      cache_slot = places.device_slot().astype(np.int32)
      cache_rows = dataclasses.replace(cache_rows, cache_slot=cache_slot)
    # The chunk ends early once the unfinished replies fit the next smaller number of slots.
    next_size = max((smaller for smaller in sizes if smaller < size), default=0)
    self._state, decoded = turn_decode.decode(
      self._graph,
      self._params,
      self._prefix,
      self._state,
      turn_decode.ChunkSlots(
        rows=cache_rows,
        row=_field_array(slots, lambda one: one.row),
        group_index=_field_array(slots, lambda one: one.group_index),
        step=_field_array(
          slots, lambda one: (len(one.replies) - 1) * decoding.max_new_tokens + len(one.replies[-1])
        ),
        left=_field_array(slots, lambda one: left[one]),
      ),
      self._allowed,
      self._key,
      jnp.int32(next_size),
      decoding=decoding,
      chunk=schedule.decode_chunk,
    )
    decoded = jax.device_get(decoded)
    self._computed_tokens += int(decoded.counts.max()) * len(slots)
    for slot, one in enumerate(slots):
      if one is not None:
        count = decoded.counts[slot]
        one.add_reply_tokens(decoded.tokens[slot, :count], decoded.log_probs[slot, :count])
    return [one for one, finished in zip(slots, decoded.ended, strict=True) if one and finished]

  def sync_observations(
    self,
    awaiting_observation: Sequence[episodes_lib.EpisodeState],
    observations: Mapping[
      episodes_lib.EpisodeState, futures.Future[episodes_lib.EncodedObservation | None]
    ],
  ) -> dict[episodes_lib.EpisodeState, _Ready]:
    """The observations of these episodes, without those of episodes that are over.

    Processes exchange the sizes.

    observations: those that this process makes; they are complete.

    Raises the first error of an observation that this process could not make; RuntimeError if
      another process could not, or if processes made different ones.
    """
    if not awaiting_observation:
      return {}
    made: dict[episodes_lib.EpisodeState, episodes_lib.EncodedObservation | None] = {}
    failure, sizes = None, len(episodes_lib.ObservationSize._fields)
    table = np.full((len(awaiting_observation), 1 + sizes), _ELSEWHERE, np.int32)
    for report, episode in zip(table, awaiting_observation, strict=True):
      if episode not in observations:
        continue
      try:
        observation = made[episode] = observations[episode].result()
        if observation is not None:
          episode.check_fits(observation, self._decoding.max_new_tokens, self._schedule)
      except Exception as error:  # others wait for this process's table: first they are told
        report[:] = _FAILED
        failure = failure or error
        continue
      report[:] = _OVER
      if observation is not None:
        report[:] = _READY, *episodes_lib.ObservationSize.from_encoded(observation)
    tables = processes.all_gather(table.reshape(-1)).reshape(-1, *table.shape)
    if failure is not None:
      raise failure
    combined = tables.min(axis=0)
    agree = ((tables == combined) | (tables == _ELSEWHERE)).all(axis=(0, 2))
    ready = {}
    for episode, (state, *size), agreed in zip(
      awaiting_observation, combined.tolist(), agree, strict=True
    ):
      wrong = {_FAILED: "failed in another process", _ELSEWHERE: "was made by no process"}
      if state in wrong or not agreed:
        what = wrong.get(state, "is another one in another process")
        raise RuntimeError(f"the next observation of prompt {episode.row} {what}")
      if state == _READY:
        ready[episode] = episodes_lib.ObservationSize(*size), made.get(episode)
    return ready

  def append(self, ready: dict[episodes_lib.EpisodeState, _Ready]) -> None:
    """Appends observations to their episodes, in batches of about the same length."""
    waiting = sorted(ready, key=lambda one: ready[one][0].tokens)
    most = self._schedule.append_batch_size
    while waiting:
      batch = [
        episode
        for device in range(self._places.devices)
        for episode in [one for one in waiting if one.device == device][:most]
      ]
      self._append(batch, ready)
      waiting = [episode for episode in waiting if episode not in batch]

  def _append(
    self,
    episodes: Sequence[episodes_lib.EpisodeState],
    ready: dict[episodes_lib.EpisodeState, _Ready],
  ) -> None:
    schedule = self._schedule
    self._grow(max(one.written + ready[one][0].tokens for one in episodes))
    per_device = 1
    while per_device < self._most_per_device(episodes):
      per_device = min(2 * per_device, schedule.append_batch_size)
    batch_slots = self._arrange(episodes, per_device)
    tokens = [("observation", ready[one][0].tokens) for one in episodes]
    frames = [("observation", ready[one][0].frames) for one in episodes]
    sizes = prompts_lib.PromptSizes(
      prefix=prompts_lib.smallest_bucket(tokens, schedule.observation_buckets, "tokens"),
      frames=prompts_lib.smallest_bucket(frames, schedule.frame_buckets, "frames"),
      patches=schedule.patches,
    )
    self._computed_tokens += len(batch_slots) * sizes.prefix
    parts = self._layout.parts_here("slots")
    here = [
      one for part in parts for one in batch_slots[part * per_device : (part + 1) * per_device]
    ]
    nothing = prompts_lib.nothing(self._turns.position_axes)
    # This process has made the observations of all episodes on its devices: none of them is None.
    encoded = [nothing if one is None else ready[one][1] for one in here]
    batch = self._turns.pad(cast(list[episodes_lib.EncodedObservation], encoded), sizes)
    self._state = turn_decode.append_observations(
      self._graph,
      self._params,
      self._prefix,
      self._state,
      slot_layout_lib.put_on_devices(self._layout, batch),
      self._cache_rows(batch_slots, lambda one: len(one.replies)),
      _field_array(batch_slots, lambda one: one.frames),
      stride=self._tokens_per_frame,
    )
    media_index = dict(zip(here, batch.media_index, strict=True))
    # Where the mesh does not split prompts, this process has also made those of episodes on other
    # processes' devices; its records of the episodes need them.
    absent = {one: ready[one][1] for one in episodes if one not in media_index}
    absent = {one: observation for one, observation in absent.items() if observation is not None}
    if absent:
      media_index |= zip(
        absent, self._turns.pad([*absent.values()], sizes).media_index, strict=True
      )
    for one in episodes:
      size, observation = ready[one]
      if observation is not None:
        index = media_index[one][: size.tokens]
        one.add_observation(observation, index, self._tokens_per_frame)
      one.start_next_turn(size)

  def finish(self, idle_seconds: float) -> episodes_lib.EpisodeRollout:
    """The rollout of all episodes, after they are over.

    idle_seconds: that this process waited for observations that it made itself.
    """
    group = self._decoding.group
    schedule, bucket = self._schedule, prompts_lib.smallest_bucket
    written = [("episode", one.written) for one in self.episodes]
    length = bucket(written, schedule.episode_buckets, "tokens")
    shown = [("episode", one.frames) for one in self.episodes]
    frames = bucket(shown, schedule.frame_buckets, "frames")
    shape = (len(self.episodes) // group, group)
    media = turn_decode.gather_media(
      self._layout, self._state, shape, frames * self._tokens_per_frame
    )
    own = [one for one in self.episodes if one.own_row is not None]
    groups = episodes_lib.in_groups(own, group)
    return episodes_lib.EpisodeRollout(
      rollout=slot_layout_lib.put_on_devices(
        self._layout, episodes_lib.rollout(groups, media, length, self._schedule), "prompts"
      ),
      shown=[[one.shown for one in of_prompt] for of_prompt in groups],
      frames=frames,
      computed_tokens=self._computed_tokens,
      idle_seconds=idle_seconds,
    )

  def _grow(self, length: int) -> None:
    if length > self._cache_length:
      self._cache_length = prompts_lib.smallest_bucket(
        [("episode", length)], self._schedule.episode_buckets, "tokens"
      )
      self._state = turn_decode.grow(self._layout, self._state, self._cache_length)

  def _most_per_device(self, episodes: Sequence[episodes_lib.EpisodeState]) -> int:
    """The largest number of these episodes on one device."""
    return int(np.bincount([one.device for one in episodes]).max())

  def _arrange(
    self, episodes: Sequence[episodes_lib.EpisodeState], size: int, *, by_cache_slot: bool = False
  ) -> list[episodes_lib.EpisodeState | None]:
    """Puts episodes into `size` slots of each device; None stands for an empty slot.

    by_cache_slot: slot i gets the episode of cache slot i; otherwise they follow one another.
    """
    slots: list[list[episodes_lib.EpisodeState | None]]
    slots = [[None] * size for _ in range(self._places.devices)]
    counts = [0] * self._places.devices
    for one in episodes:
      slots[one.device][one.cache_slot if by_cache_slot else counts[one.device]] = one
      counts[one.device] += 1
    return [one for of_device in slots for one in of_device]

  def _cache_rows(
    self,
    slots: Sequence[episodes_lib.EpisodeState | None],
    turn: Callable[[episodes_lib.EpisodeState], int],
  ) -> slots_lib.CacheRows:
    """Cache slots, prompts and progress of the episodes in some slots.

    An empty slot gets indices one past the last (see `CacheRows`); where all slots are decoded,
    `decode` gives it its own cache slot, and no tokens to decode.

    turn: number of the turn that is computed next.
    """
    window, visible_from = self._schedule.window, None
    if window is not None and self._schedule.forgets:
      visible_from = _field_array(slots, lambda one: one.visible_from(turn(one), cast(int, window)))
    no_slot, no_prompt = self._places.slots, self._places.replies // self._decoding.group
    return slots_lib.CacheRows(
      cache_slot=_field_array(slots, lambda one: one.cache_slot, no_slot),
      prompt_slot=_field_array(slots, lambda one: one.prompt_slot, no_prompt),
      written=_field_array(slots, lambda one: one.written),
      position=_field_array(slots, lambda one: one.position),
      visible_from=visible_from,
      kept=self._schedule.kept,
    )


def _field_array(
  slots: Sequence[episodes_lib.EpisodeState | None],
  field: Callable[[episodes_lib.EpisodeState], int],
  empty: int = 0,
) -> Int[np.ndarray, "slots"]:
  """An array with a number of each slot's episode; `empty` for empty slots."""
  return np.array([empty if one is None else field(one) for one in slots], np.int32)
