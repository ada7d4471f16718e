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
process that has the prompt. If an observation can't be made in one process, all of them stop; one
that does not fit may end its episode alone (`ends_outgrown`). Where the mesh does not split
prompts, every process makes every observation, and they have to be equal.

What the indices of an episode range over (see `SlotLayout` for devices and blocks):

    row           prompts of the whole batch
    own_row       prompts of this process
    prompt_slot   prompts of the episode's block
    group_index   episodes of its prompt
    cache_slot    caches of its device; an episode keeps its own
    decode slot   the replies of a device that are decoded in this chunk
    batch slot    the episodes of a device to which an observation is appended now
"""

from collections.abc import Mapping
from concurrent import futures
import time
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree
import numpy as np

from vr_jax import errors, records
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.parallel import processes
from vr_jax.rollout import episode_table, sampler, turn_decode
from vr_jax.rollout import episodes as episodes_lib
from vr_jax.rollout import slot_layout as slot_layout_lib

# State of the observation that an episode awaits, as each process reports it. A process that does
# not have the prompt fills in _ELSEWHERE, for the sizes as well: it is above any size, so an
# elementwise minimum finds what those that have it report.
_FAILED, _OVER, _READY, _ELSEWHERE = -1, 0, 1, 2**30


class ReadyObservations(NamedTuple):
  """The observations that are appended next.

  sizes: `ObservationSize` of each, known to all processes.
  made: those that this process has made, by episode.
  """

  episodes: Int[np.ndarray, "ready"]
  sizes: Int[np.ndarray, "ready sizes"]
  made: Mapping[int, episodes_lib.EncodedObservation]


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
  ends_outgrown: bool = False,
) -> episodes_lib.EpisodeRollout:
  """Plays `decoding.group` episodes of up to `schedule.turns` replies to each prompt.

  A reply has up to `decoding.max_new_tokens` tokens. With one turn, the replies are those of
  `sampler.sample`. Log-probs are defined as there.

  ends_outgrown: whether an episode whose next turn does not fit the largest buckets ends before it
    (`EpisodeRollout.outgrown`), as in evaluations. The others do not change.

  Raises:
    InputError: an episode does not fit the largest buckets, and may not end.
    RuntimeError: an observation could not be made in another process, or differs between processes.
    Exception: what `turns.observe` raised in this one.
  """
  batch = EpisodeBatch(
    graphdef, params, prompt, allowed_tokens, key, turns, decoding, schedule, ends_outgrown
  )
  table = batch.table
  own = table.has_own()
  decoding_episodes, awaiting = np.arange(len(table)), np.arange(0)
  just_finished = awaiting  # their reply ended in the last chunk
  encoding: dict[int, futures.Future[episodes_lib.EncodedObservation | None]] = {}
  idle = 0.0
  try:
    while len(decoding_episodes) or len(awaiting):
      # Wait for an observation once it has had one chunk of decoding, or at once if more episodes
      # wait than decode, because a step for few replies costs about as much as one for all.
      now = np.full(len(awaiting), len(awaiting) > len(decoding_episodes))
      now |= ~np.isin(awaiting, just_finished)
      due, awaiting = awaiting[now], awaiting[~now]
      begun = time.perf_counter()
      observations = {one: encoding.pop(one) for one in due.tolist() if one in encoding}
      futures.wait(observations.values())
      idle += time.perf_counter() - begun
      ready = batch.sync_observations(due, observations)
      batch.append(ready)
      decoding_episodes = np.concatenate([decoding_episodes, ready.episodes])
      just_finished = batch.decode(decoding_episodes) if len(decoding_episodes) else due[:0]
      decoding_episodes = decoding_episodes[~np.isin(decoding_episodes, just_finished)]
      unfinished = just_finished[table.turn[just_finished] + 1 < schedule.turns]
      awaiting = np.concatenate([awaiting, unfinished])
      mine = unfinished[own[unfinished]]
      rows, indices = table.own_row[mine].tolist(), table.group_index[mine].tolist()
      asked = zip(mine.tolist(), rows, indices, table.replies(mine), strict=True)
      for one, row, group_index, replies in asked:
        encoding[one] = threads.submit(turns.observe, row, group_index, replies)
  finally:
    for future in encoding.values():
      future.cancel()
  return batch.finish(idle)


class EpisodeBatch:
  """The episodes of a batch on the devices; `table` has their progress.

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
    ends_outgrown: bool,
  ):
    self._graph, self._allowed, self._key = graphdef, allowed_tokens, key
    self._turns, self._decoding, self._schedule = turns, decoding, schedule
    self._ends_outgrown = ends_outgrown
    self._outgrown: dict[tuple[int, int], str] = {}
    self._training_layout = nnx.merge(graphdef, params).layout
    self._layout = self._training_layout.decoding
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
      window=decoding.repetition_stop.window,
    )
    # Each cache slot has room for the largest number of frames.
    self._tokens_per_frame = jax.tree.leaves(self._state.media)[0].shape[1] // max(
      *schedule.frame_buckets, 1
    )
    self._params = sampler.decoding_params(graphdef, params, int8_weights=decoding.int8_weights)
    starts = jax.device_get(turn_decode.replicate(self._layout, prompt.next_position))
    blocks = np.split(np.arange(len(starts)), self._places.blocks)
    # If the mesh does not split prompts, each process has all of them, also those of other
    # processes' slots.
    parts = self._layout.parts_here("prompts") if self._places.blocks > 1 else (0,)
    self.table = episode_table.EpisodeTable(
      self._places,
      starts,
      np.concatenate([blocks[part] for part in parts]),
      group=decoding.group,
      max_new_tokens=decoding.max_new_tokens,
      schedule=schedule,
      position_axes=turns.position_axes,
    )

  def decode(self, episodes: Int[np.ndarray, "some"]) -> Int[np.ndarray, "finished"]:
    """Decodes a chunk of steps for these episodes; returns those whose reply is finished."""
    table, places, schedule = self.table, self._places, self._schedule
    steps = np.minimum(table.left(episodes), schedule.decode_chunk)
    self._grow(int((table.written[episodes] + steps).max()))
    sizes = sampler.slot_sizes(places.slots, self._decoding.slot_fractions)
    size = min(size for size in sizes if size >= table.most_per_device(episodes))
    all_slots = size == places.slots
    slots = table.arrange(episodes, size, by_cache_slot=all_slots)
    # The chunk ends early once the unfinished replies fit the next smaller number of slots.
    next_size = max((smaller for smaller in sizes if smaller < size), default=0)
    self._state, decoded = turn_decode.decode(
      self._graph,
      self._params,
      self._prefix,
      self._state,
      table.chunk_inputs(slots, all_slots=all_slots),
      self._allowed,
      self._key,
      jnp.int32(next_size),
      decoding=self._decoding,
      chunk=schedule.decode_chunk,
    )
    decoded = jax.device_get(decoded)
    self._computed_tokens += int(decoded.counts.max()) * len(slots)
    table.add_replies(slots, decoded.tokens, decoded.log_probs, decoded.counts)
    return slots[(slots >= 0) & decoded.ended]

  def sync_observations(
    self,
    awaiting: Int[np.ndarray, "awaiting"],
    observations: Mapping[int, futures.Future[episodes_lib.EncodedObservation | None]],
  ) -> ReadyObservations:
    """The observations of these episodes, without those of episodes that are over.

    Processes exchange the sizes.

    observations: those that this process makes, by episode; they are complete.

    Raises the first error of an observation that this process could not make; RuntimeError if
      another process could not, or if processes made different ones.
    """
    made: dict[int, episodes_lib.EncodedObservation] = {}
    failure, sizes = None, len(episodes_lib.ObservationSize._fields)
    table = np.full((len(awaiting), 1 + sizes), _ELSEWHERE, np.int32)
    if not len(awaiting):
      return ReadyObservations(awaiting, table[:, 1:], made)
    for report, episode in zip(table, awaiting.tolist(), strict=True):
      if episode not in observations:
        continue
      try:
        observation = observations[episode].result()
        if observation is not None and self._outgrows(episode, observation):
          observation = None
      except Exception as error:  # others wait for this process's table: first they are told
        report[:] = _FAILED
        failure = failure or error
        continue
      report[:] = _OVER
      if observation is not None:
        made[episode] = observation
        report[:] = _READY, *episodes_lib.ObservationSize.from_encoded(observation)
    tables = processes.all_gather(table.reshape(-1)).reshape(-1, *table.shape)
    if failure is not None:
      raise failure
    combined = tables.min(axis=0)
    agree = ((tables == combined) | (tables == _ELSEWHERE)).all(axis=(0, 2))
    wrong = {_FAILED: "failed in another process", _ELSEWHERE: "was made by no process"}
    states = combined[:, 0]
    for bad in np.flatnonzero(np.isin(states, [*wrong]) | ~agree)[:1]:
      what = wrong.get(int(states[bad]), "is another one in another process")
      prompt = self.table.row[awaiting[bad]]
      raise RuntimeError(f"the next observation of prompt {prompt} {what}")
    ready = states == _READY
    return ReadyObservations(awaiting[ready], combined[ready, 1:], made)

  def _outgrows(self, episode: int, observation: episodes_lib.EncodedObservation) -> bool:
    """Whether an episode ends here as its next turn does not fit the largest buckets.

    Raises InputError if it does not fit, and episodes may not end.
    """
    try:
      self.table.check_fits(episode, observation)
    except errors.InputError as error:
      if not self._ends_outgrown:
        raise
      place = int(self.table.own_row[episode]), int(self.table.group_index[episode])
      self._outgrown[place] = str(error)
      return True
    return False

  def append(self, ready: ReadyObservations) -> None:
    """Appends observations to their episodes, in batches of about the same length."""
    most = self._schedule.append_batch_size
    for batch in self.table.append_batches(ready.episodes, ready.sizes[:, 0], most):
      self._append(ready._replace(episodes=ready.episodes[batch], sizes=ready.sizes[batch]))

  def _append(self, ready: ReadyObservations) -> None:
    schedule, table, episodes, made = self._schedule, self.table, ready.episodes, ready.made
    self._grow(int((table.written[episodes] + ready.sizes[:, 0]).max()))
    per_device = 1
    while per_device < table.most_per_device(episodes):
      per_device = min(2 * per_device, schedule.append_batch_size)
    slots = table.arrange(episodes, per_device)
    longest = episodes_lib.ObservationSize(*ready.sizes.max(axis=0).tolist())
    bucket = prompts_lib.smallest_bucket
    sizes = prompts_lib.PromptSizes(
      prefix=bucket([("observation", longest.tokens)], schedule.observation_buckets, "tokens"),
      frames=bucket([("observation", longest.frames)], schedule.frame_buckets, "frames"),
      patches=schedule.patches,
    )
    self._computed_tokens += len(slots) * sizes.prefix
    parts = self._layout.parts_here("slots")
    here = slots.reshape(-1, per_device)[list(parts)].ravel().tolist()
    nothing = prompts_lib.nothing(self._turns.position_axes)
    # This process has made the observations of all episodes on its devices: `made` has each.
    batch = self._turns.pad([nothing if one < 0 else made[one] for one in here], sizes)
    self._state = turn_decode.append_observations(
      self._graph,
      self._params,
      self._prefix,
      self._state,
      slot_layout_lib.put_on_devices(self._layout, batch),
      table.cache_rows(slots, next_turn=True),
      episode_table.by_slot(table.frames, slots),
      stride=self._tokens_per_frame,
    )
    media_index = dict(zip(here, batch.media_index, strict=True))
    # Where the mesh does not split prompts, this process has also made those of episodes on other
    # processes' devices; its records of the episodes need them.
    own = [one for one in episodes.tolist() if one in made]
    absent = [one for one in own if one not in media_index]
    if absent:
      padded = self._turns.pad([made[one] for one in absent], sizes)
      media_index |= zip(absent, padded.media_index, strict=True)
    table.add_observations(
      {one: made[one] for one in own},
      {one: media_index[one][: len(made[one].tokens)] for one in own},
      self._tokens_per_frame,
    )
    table.start_next_turn(episodes, ready.sizes)

  def finish(self, idle_seconds: float) -> episodes_lib.EpisodeRollout:
    """The rollout of all episodes, after they are over.

    idle_seconds: that this process waited for observations that it made itself.
    """
    table, group = self.table, self._decoding.group
    schedule, bucket = self._schedule, prompts_lib.smallest_bucket
    written, shown = int(table.written.max()), int(table.frames.max())
    length = bucket([("episode", written)], schedule.episode_buckets, "tokens")
    frames = bucket([("episode", shown)], schedule.frame_buckets, "frames")
    each = frames * self._tokens_per_frame
    media = turn_decode.gather_media(
      self._training_layout, self._state, (len(table) // group, group), each
    )
    return episodes_lib.EpisodeRollout(
      rollout=slot_layout_lib.put_on_devices(
        self._training_layout, table.rollout(media, each, length), "prompts"
      ),
      shown=table.shown_by_prompt(),
      frames=frames,
      computed_tokens=self._computed_tokens,
      idle_seconds=idle_seconds,
      outgrown=self._outgrown,
    )

  def _grow(self, length: int) -> None:
    if length > self._cache_length:
      self._cache_length = prompts_lib.smallest_bucket(
        [("episode", length)], self._schedule.episode_buckets, "tokens"
      )
      self._state = turn_decode.grow(self._layout, self._state, self._cache_length)
