"""The progress of all episodes of a batch in NumPy arrays: no Python for each episode and chunk.

    start -> [inputs of a chunk -> add_replies -> add_observations] … -> rollout

An episode is a row of the table. Every process knows the progress of all episodes; tokens and
observations are kept by the process that has the prompt.
"""

from collections.abc import Mapping
import dataclasses

from jaxtyping import Bool, Float, Int, PyTree
import numpy as np

from vr_jax import records
from vr_jax.models.common import slots as slots_lib
from vr_jax.rollout import episodes as episodes_lib
from vr_jax.rollout import slot_layout as slot_layout_lib
from vr_jax.rollout import turn_decode

EMPTY = -1  # in arrays of episodes by slot


class EpisodeTable:
  """The episodes of a batch, ordered by device and cache slot.

  Arrays of one number an episode:

  row: index of the prompt in the whole batch.
  own_row: index of the prompt in this process's part of the batch; -1 if another process has it.
  group_index: index of the episode in its group.
  device, cache_slot, prompt_slot: its device, and its cache and its prompt there.
  position: position of the next token.
  turn: number of the turn that is being sampled.
  reply_length: tokens of this turn's reply so far.
  written: number of tokens after the prompt.
  frames: number of frames that the turns after the first have shown.

  shown: the observations of this process's episodes, by own_row * group + group_index.
  """

  def __init__(
    self,
    places: slot_layout_lib.SlotLayout,
    positions: Int[np.ndarray, "prompts"],
    here: Int[np.ndarray, "own_prompts"],
    *,
    group: int,
    max_new_tokens: int,
    schedule: episodes_lib.Schedule,
    position_axes: int,
  ):
    """Starts the episodes.

    positions: position of the first token after each prompt of the whole batch.
    here: the prompts of this process, in the order of its rows.
    """
    self._places, self._schedule, self._axes = places, schedule, position_axes
    self._group, self._max_new_tokens = group, max_new_tokens
    in_block = places.reply()
    (slot,) = np.nonzero(in_block < places.replies)
    in_block, block = in_block[slot], places.block()[slot]
    own_rows = np.full(len(positions), EMPTY)
    own_rows[here] = np.arange(len(here))
    self.row = block * (places.replies // group) + in_block // group
    self.own_row, self.group_index = own_rows[self.row], in_block % group
    self.device, self.cache_slot = np.divmod(slot, places.slots)
    self.prompt_slot = in_block // group
    self.position = np.asarray(positions)[self.row].astype(np.int64)
    self.turn, self.reply_length, self.written, self.frames = np.zeros((4, len(slot)), np.int64)
    # Where each turn, and the reply in it, begins; and position minus index of the reply's tokens.
    self._turn_starts, self._reply_starts = np.zeros((2, len(slot), schedule.turns), np.int64)
    self._offsets = np.zeros((len(slot), schedule.turns), np.int64)
    # Position and frames before each turn.
    self._positions_before, self._frames_before = np.zeros((2, len(slot), schedule.turns), np.int64)
    self._offsets[:, 0] = self.position
    # Tokens of this process's episodes, by own_row * group + group_index.
    self._stored = np.where(self.own_row < 0, EMPTY, self.own_row * group + self.group_index)
    count = len(here) * group
    self.shown: list[list[episodes_lib.EncodedObservation]] = [[] for _ in range(count)]
    self._media_index: list[list[Int[np.ndarray, "tokens"]]] = [[] for _ in range(count)]
    self._tokens = np.zeros((count, 0), np.int32)
    self._log_probs = np.zeros((count, 0), np.float32)
    self._stride = 0
    self._make_room(min(schedule.episode_buckets))

  def __len__(self) -> int:
    """Number of episodes."""
    return len(self.row)

  def has_own(self) -> Bool[np.ndarray, "episodes"]:
    """Whether this process has the prompt of each episode."""
    return self.own_row >= 0

  def arrange(
    self, episodes: Int[np.ndarray, "some"], size: int, *, by_cache_slot: bool = False
  ) -> Int[np.ndarray, "slots"]:
    """Puts episodes into `size` slots of each device; EMPTY stands for an empty slot.

    by_cache_slot: slot i gets the episode of cache slot i; otherwise they follow one another.
    """
    slots = np.full(self._places.devices * size, EMPTY)
    device = self.device[episodes]
    on_device = self.cache_slot[episodes] if by_cache_slot else _rank_within(device)
    slots[device * size + on_device] = episodes
    return slots

  def most_per_device(self, episodes: Int[np.ndarray, "some"]) -> int:
    """The largest number of these episodes on one device."""
    return int(np.bincount(self.device[episodes]).max())

  def left(self, episodes: Int[np.ndarray, "some"]) -> Int[np.ndarray, "some"]:
    """Tokens that the replies may still get."""
    return self._max_new_tokens - self.reply_length[episodes]

  def chunk_inputs(
    self, slots: Int[np.ndarray, "slots"], *, all_slots: bool
  ) -> turn_decode.ChunkSlots:
    """The inputs of a chunk of decoding.

    all_slots: slot i has cache slot i, also where it is empty. The cache is then used where it
      stands; empty slots have no tokens left to decode, so they write nothing.
    """
    cache_rows = self.cache_rows(slots)
    if all_slots:
      cache_slot = self._places.device_slot().astype(np.int32)
      cache_rows = dataclasses.replace(cache_rows, cache_slot=cache_slot)
    step = self.turn * self._max_new_tokens + self.reply_length
    return turn_decode.ChunkSlots(
      rows=cache_rows,
      row=by_slot(self.row, slots),
      group_index=by_slot(self.group_index, slots),
      step=by_slot(step, slots),
      left=by_slot(self._max_new_tokens - self.reply_length, slots),
    )

  def cache_rows(
    self, slots: Int[np.ndarray, "slots"], *, next_turn: bool = False
  ) -> slots_lib.CacheRows:
    """Cache slots, prompts and progress; an empty slot gets indices one past the last.

    next_turn: the turn after the one that is being sampled is computed.
    """
    window, visible_from = self._schedule.window, None
    if window is not None and self._schedule.forgets:
      visible_from = by_slot(self._visible_from(self.turn + next_turn, window), slots)
    return slots_lib.CacheRows(
      cache_slot=by_slot(self.cache_slot, slots, self._places.slots),
      prompt_slot=by_slot(self.prompt_slot, slots, self._places.replies // self._group),
      written=by_slot(self.written, slots),
      position=by_slot(self.position, slots),
      visible_from=visible_from,
      kept=self._schedule.kept,
    )

  def add_replies(
    self,
    slots: Int[np.ndarray, "slots"],
    tokens: Int[np.ndarray, "slots chunk"],
    log_probs: Float[np.ndarray, "slots chunk"],
    counts: Int[np.ndarray, "slots"],
  ) -> None:
    """Adds the first `counts` sampled tokens of each slot to the reply of its episode."""
    filled = slots >= 0
    episodes, counts = slots[filled], counts[filled].astype(np.int64)
    own = np.zeros(len(slots), bool)
    own[filled] = self._stored[episodes] >= 0
    stored, at = self._stored[slots[own]], self.written[slots[own]]
    if len(stored):
      self._make_room(int(at.max()))
      # Whole chunks are copied; what stands after a reply's end is overwritten by what follows it.
      for kept, new in ((self._tokens, tokens), (self._log_probs, log_probs)):
        windows = np.lib.stride_tricks.sliding_window_view(
          kept, tokens.shape[1], axis=1, writeable=True
        )
        windows[stored, at] = new if own.all() else new[own]
    for total in (self.written, self.position, self.reply_length):
      total[episodes] += counts

  def replies(self, episodes: Int[np.ndarray, "some"]) -> list[episodes_lib.ReplyTokens]:
    """Token ids of all turns, of some of this process's episodes."""
    turn = self.turn[episodes]
    ends = np.roll(self._turn_starts[episodes], -1, axis=1)
    ends[np.arange(len(turn)), turn] = self.written[episodes]
    tokens, spans = self._tokens, np.stack([self._reply_starts[episodes], ends], axis=2).tolist()
    rows = zip(self._stored[episodes].tolist(), spans, (turn + 1).tolist(), strict=True)
    return [
      tuple(tuple(tokens[row, start:end].tolist()) for start, end in turns[:count])
      for row, turns, count in rows
    ]

  def check_fits(self, episode: int, shown: episodes_lib.EncodedObservation) -> None:
    """Raises InputError if an observation and a reply to it do not fit the buckets."""
    episodes_lib.check_observation_fits(
      shown,
      written=int(self.written[episode]),
      frames=int(self.frames[episode]),
      reply=self._max_new_tokens,
      schedule=self._schedule,
    )

  def append_batches(
    self, episodes: Int[np.ndarray, "some"], tokens: Int[np.ndarray, "some"], most: int
  ) -> list[Int[np.ndarray, "batch"]]:
    """Splits episodes into batches of about the same length, at most `most` a device.

    tokens: lengths of their observations. Returns indices into `episodes`.
    """
    order = np.argsort(tokens, kind="stable")
    device = self.device[episodes[order]]
    number = _rank_within(device) // most
    by_batch = np.lexsort((device, number))
    borders = np.flatnonzero(np.diff(number[by_batch])) + 1
    return np.split(order[by_batch], borders) if len(order) else []

  def add_observations(
    self,
    made: Mapping[int, episodes_lib.EncodedObservation],
    media_index: Mapping[int, Int[np.ndarray, "time"]],
    stride: int,
  ) -> None:
    """Keeps observations of this process's episodes; `start_next_turn` counts them.

    made: by episode.
    media_index: by episode, media tokens counted within the observation; -1 for text.
    stride: media tokens of a frame.
    """
    for one, observation in made.items():
      row = self._stored[one]
      self.shown[row].append(observation)
      self._media_index[row].append(media_index[one])
    self._stride = stride

  def start_next_turn(
    self, episodes: Int[np.ndarray, "some"], sizes: Int[np.ndarray, "some sizes"]
  ) -> None:
    """Counts observations, and begins the replies to them. sizes: `ObservationSize` of each."""
    self.turn[episodes] += 1
    turn = self.turn[episodes]
    self._turn_starts[episodes, turn] = self.written[episodes]
    self._positions_before[episodes, turn] = self.position[episodes]
    self._frames_before[episodes, turn] = self.frames[episodes]
    self.written[episodes] += sizes[:, 0]
    self.position[episodes] += sizes[:, 1]
    self.frames[episodes] += sizes[:, 2]
    self._reply_starts[episodes, turn] = self.written[episodes]
    self._offsets[episodes, turn] = self.position[episodes] - self.written[episodes]
    self.reply_length[episodes] = 0

  def rollout(self, media: PyTree, each: int, length: int) -> records.Rollout:
    """The rollout of this process's episodes as host arrays, padded to `length`.

    media: features [prompts, media, …] of all processes.
    each: media of one episode; each of a group has an equal part.
    """
    own = np.flatnonzero(self.has_own())
    own = own[np.argsort(self._stored[own])]
    shape = len(own) // self._group, self._group, length
    self._make_room(length)
    column = np.arange(length)
    turn = np.zeros((len(own), length), np.int32)
    kind = np.full(turn.shape, int(records.Kind.MODEL), np.int32)
    for number in range(1, int(self.turn.max(initial=0)) + 1):
      begun = (self.turn[own] >= number)[:, None] & (column >= self._turn_starts[own, number, None])
      turn[begun] = number
      kind[begun & (column < self._reply_starts[own, number, None])] = records.Kind.ENVIRONMENT
    padding = column >= self.written[own, None]
    turn[padding], kind[padding] = 0, int(records.Kind.PAD)
    tokens, log_probs = (x[:, :length].copy() for x in (self._tokens, self._log_probs))
    positions = np.zeros((*turn.shape, self._axes), np.int32)
    index = np.full(turn.shape, -1, np.int32)
    self._fill_in(own, tokens, positions, index)
    sampled = kind == records.Kind.MODEL
    places = column + np.take_along_axis(self._offsets[own], turn, axis=1)
    positions[sampled] = places[sampled][:, None]
    tokens[padding], log_probs[~sampled] = 0, 0
    index[index >= 0] += np.repeat(self.group_index[own] * each, (index >= 0).sum(axis=1))
    visible_from, window = None, self._schedule.window
    if window is not None and self._schedule.forgets:
      turns = np.arange(self._schedule.turns)
      by_turn = np.stack(
        [self._visible_from(np.full_like(self.turn, n), window) for n in turns], axis=1
      )
      visible_from = np.take_along_axis(by_turn[own], turn, axis=1).astype(np.int32)
      visible_from = visible_from.reshape(shape)
    return records.Rollout(
      tokens=tokens.reshape(shape),
      log_probs=log_probs.reshape(shape),
      kind=kind.reshape(shape),
      turn=turn.reshape(shape),
      episode_inputs=records.EpisodeInputs(
        positions=positions.reshape(*shape, self._axes),
        media_index=index.reshape(shape),
        vision=None,
        media=media,
        visible_from=visible_from,
        kept=self._schedule.kept if self._schedule.forgets else 0,
      ),
    )

  def _fill_in(
    self,
    own: Int[np.ndarray, "own"],
    tokens: Int[np.ndarray, "own time"],
    positions: Int[np.ndarray, "own time axes"],
    media_index: Int[np.ndarray, "own time"],
  ) -> None:
    """Writes all observations into arrays of this process's episodes."""
    shown = [one for row in self.shown for one in row]
    if not shown:
      return
    counts = np.array([len(row) for row in self.shown])
    row = np.repeat(np.arange(len(counts)), counts)
    place = own[row], 1 + _rank_within(row)  # episode and turn of each
    lengths = np.array([len(one.tokens) for one in shown])
    each = np.repeat(np.arange(len(shown)), lengths)
    within = np.arange(len(each)) - (np.cumsum(lengths) - lengths)[each]
    at = row[each], self._turn_starts[place][each] + within
    tokens[at] = np.concatenate([one.tokens for one in shown])
    before = self._positions_before[place][each, None]
    positions[at] = np.concatenate([one.positions for one in shown]) + before
    index = np.concatenate([part for parts in self._media_index for part in parts])
    seen = (self._frames_before[place] * self._stride)[each]
    media_index[at] = np.where(index >= 0, index + seen, -1)

  def shown_by_prompt(self) -> list[list[list[episodes_lib.EncodedObservation]]]:
    """The observations, [prompts][group][turns]."""
    group = self._group
    return [self.shown[start : start + group] for start in range(0, len(self.shown), group)]

  def _visible_from(
    self, turn: Int[np.ndarray, "episodes"], window: int
  ) -> Int[np.ndarray, "episodes"]:
    """The first token after the prompt that a turn, or the next one, still attends to."""
    first = turn - window
    last = self._turn_starts.shape[1] - 1
    start = self._turn_starts[np.arange(len(self)), np.clip(first, 0, last)]
    return np.where(first <= 0, 0, np.where(first > self.turn, self.written, start))

  def _make_room(self, length: int) -> None:
    """Makes room for episodes of `length` tokens, and a chunk that begins after them."""
    spare = self._schedule.decode_chunk
    if length + spare <= self._tokens.shape[1]:
      return
    wide = min((b for b in self._schedule.episode_buckets if b >= length), default=length) + spare
    self._tokens, self._log_probs = (_widened(x, wide) for x in (self._tokens, self._log_probs))


def _widened(x: np.ndarray, width: int) -> np.ndarray:
  """A copy with `width` columns; new ones are 0."""
  wide = np.zeros((len(x), width, *x.shape[2:]), x.dtype)
  wide[:, : x.shape[1]] = x
  return wide


def by_slot(
  x: Int[np.ndarray, "episodes"], slots: Int[np.ndarray, "slots"], empty: int = 0
) -> Int[np.ndarray, "slots"]:
  """A number of each slot's episode; `empty` for empty slots."""
  return np.where(slots >= 0, x[slots], empty).astype(np.int32)


def _rank_within(label: Int[np.ndarray, "some"]) -> Int[np.ndarray, "some"]:
  """How many earlier elements have the same label."""
  order = np.argsort(label, kind="stable")
  first = np.concatenate([[0], np.cumsum(np.bincount(label))])
  rank = np.empty(len(label), np.int64)
  rank[order] = np.arange(len(label)) - first[label[order]]
  return rank
