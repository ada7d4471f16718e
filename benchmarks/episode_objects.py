"""Episodes as Python objects, one each: the plain reference of `rollout.episode_table`.

It is how episodes were kept before they became rows of a table. `benchmarks.episode_host` times it,
and a test compares the two to the bit.
"""

from collections.abc import Callable, Sequence
import dataclasses

from jaxtyping import Int
import numpy as np

from vr_jax import records
from vr_jax.models.common import prompts
from vr_jax.rollout import episode_table, episodes

# Padding and dtype of tokens, log-probs, kind, turn, positions and media_index.
_FILL = (0, 0.0, int(records.Kind.PAD), 0, 0, -1)
_DTYPES = (np.int32, np.float32, np.int32, np.int32, np.int32, np.int32)
Slots = list["EpisodeObject | None"]


@dataclasses.dataclass(kw_only=True, eq=False)
class EpisodeObject:
  """One episode; fields are named as in `episode_table.EpisodeTable`.

  number: its row there.
  spans: the fields of a rollout for one chunk of a reply, or one observation.
  """

  number: int
  row: int
  group_index: int
  device: int
  cache_slot: int
  prompt_slot: int
  position: int
  axes: int
  replies: list[list[int]] = dataclasses.field(default_factory=lambda: [[]])
  spans: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)
  starts: list[int] = dataclasses.field(default_factory=lambda: [0])
  written: int = 0
  frames: int = 0

  def add_reply_tokens(self, tokens: np.ndarray, log_probs: np.ndarray) -> None:
    """Adds sampled tokens to the last reply."""
    self.replies[-1] += tokens.tolist()
    places = np.broadcast_to(np.arange(len(tokens))[:, None], (len(tokens), self.axes))
    index, turn = np.full(tokens.shape, -1), len(self.replies) - 1
    self._keep(records.Kind.MODEL, turn, tokens, log_probs, places, index)
    self.written += len(tokens)
    self.position += len(tokens)

  def add_observation(
    self, shown: prompts.EncodedPrompt, media_index: np.ndarray, stride: int
  ) -> None:
    """Adds an observation, and begins the reply to it."""
    index = np.where(media_index >= 0, media_index + self.frames * stride, -1)
    silent = np.zeros(shown.tokens.shape, np.float32)
    kind = records.Kind.ENVIRONMENT
    self._keep(kind, len(self.replies), shown.tokens, silent, shown.positions, index)
    self.starts.append(self.written)
    self.replies.append([])
    self.written += len(shown.tokens)
    self.position += shown.next_position
    self.frames += len(shown.frames)

  def visible_from(self, turn: int, window: int) -> int:
    """The first token after the prompt that a turn, or the next one, still attends to."""
    first = turn - window
    return [*self.starts, self.written][first] if first > 0 else 0

  def _keep(
    self,
    kind: records.Kind,
    turn: int,
    tokens: np.ndarray,
    log_probs: np.ndarray,
    places: np.ndarray,
    media_index: np.ndarray,
  ) -> None:
    kinds, turns = (np.full(tokens.shape, value) for value in (int(kind), turn))
    self.spans.append((tokens, log_probs, kinds, turns, places + self.position, media_index))


class EpisodeObjects:
  """The episodes of a batch: those of a table that has just been started."""

  def __init__(
    self,
    table: episode_table.EpisodeTable,
    *,
    devices: int,
    slots: int,
    prompts_per_block: int,
    group: int,
    max_new_tokens: int,
    schedule: episodes.Schedule,
    axes: int,
  ):
    """Makes the objects. slots: of a device."""
    self._devices, self._slots, self._no_prompt = devices, slots, prompts_per_block
    self._group, self._most, self._schedule, self._axes = group, max_new_tokens, schedule, axes
    names = ("row", "group_index", "device", "cache_slot", "prompt_slot", "position")
    self.episodes = [
      EpisodeObject(number=number, axes=axes, **{n: int(getattr(table, n)[number]) for n in names})
      for number in range(len(table))
    ]

  def arrange(
    self, some: Sequence[EpisodeObject], size: int, *, by_cache_slot: bool = False
  ) -> Slots:
    """As `EpisodeTable.arrange`."""
    slots: list[Slots] = [[None] * size for _ in range(self._devices)]
    counts = [0] * self._devices
    for one in some:
      slots[one.device][one.cache_slot if by_cache_slot else counts[one.device]] = one
      counts[one.device] += 1
    return [one for of_device in slots for one in of_device]

  def chunk_inputs(self, slots: Slots) -> list[np.ndarray]:
    """The leaves of `EpisodeTable.chunk_inputs`, in the order of its fields."""
    return [
      *self.cache_rows(slots, lambda one: len(one.replies) - 1),
      _field_array(slots, lambda one: one.row),
      _field_array(slots, lambda one: one.group_index),
      _field_array(slots, lambda one: (len(one.replies) - 1) * self._most + len(one.replies[-1])),
      _field_array(slots, lambda one: self._most - len(one.replies[-1])),
    ]

  def cache_rows(self, slots: Slots, turn: Callable[[EpisodeObject], int]) -> list[np.ndarray]:
    """The leaves of `EpisodeTable.cache_rows`; turn: the one that is computed next."""
    window = self._schedule.window
    rows = [
      _field_array(slots, lambda one: one.cache_slot, self._slots),
      _field_array(slots, lambda one: one.prompt_slot, self._no_prompt),
      _field_array(slots, lambda one: one.written),
      _field_array(slots, lambda one: one.position),
    ]
    if window is not None and self._schedule.forgets:
      rows.append(_field_array(slots, lambda one: one.visible_from(turn(one), window)))
    return rows

  def add_replies(
    self, slots: Slots, tokens: np.ndarray, log_probs: np.ndarray, counts: np.ndarray
  ) -> None:
    """As `EpisodeTable.add_replies`."""
    for slot, one in enumerate(slots):
      if one is not None:
        one.add_reply_tokens(tokens[slot, : counts[slot]], log_probs[slot, : counts[slot]])

  def append_batches(
    self, some: Sequence[EpisodeObject], tokens: Sequence[int], most: int
  ) -> list[list[EpisodeObject]]:
    """As `EpisodeTable.append_batches`, but with the episodes themselves."""
    length = dict(zip(some, tokens, strict=True))
    waiting, batches = sorted(some, key=lambda one: length[one]), []
    while waiting:
      batch = [
        one
        for device in range(self._devices)
        for one in [one for one in waiting if one.device == device][:most]
      ]
      batches.append(batch)
      waiting = [one for one in waiting if one not in batch]
    return batches

  def rollout(self, each: int, length: int) -> list[np.ndarray]:
    """Tokens, log_probs, kind, turn, positions, media_index; visible_from if turns forget."""
    ordered = sorted(self.episodes, key=lambda one: (one.row, one.group_index))
    shape = len(ordered) // self._group, self._group, length
    arrays = [np.full(shape, fill, dtype) for fill, dtype in zip(_FILL, _DTYPES, strict=True)]
    arrays[4] = np.zeros((*shape, self._axes), np.int32)
    visible_from, window = np.zeros(shape, np.int32), self._schedule.window
    for number, one in enumerate(ordered):
      place = divmod(number, self._group)
      for array, *parts in zip(arrays, *one.spans, strict=True):
        array[place][: one.written] = np.concatenate(parts)
      index = arrays[5][place]
      index[index >= 0] += one.group_index * each
      if window is not None:
        by_turn = [one.visible_from(turn, window) for turn in range(len(one.replies))]
        visible_from[place] = np.array(by_turn)[arrays[3][place]]
    return [*arrays, visible_from] if self._schedule.forgets else arrays


def _field_array(
  slots: Slots, field: Callable[[EpisodeObject], int], empty: int = 0
) -> Int[np.ndarray, "slots"]:
  return np.array([empty if one is None else field(one) for one in slots], np.int32)
