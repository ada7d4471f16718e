"""Episodes of several turns as the host knows them: what replies said, what they were shown, and both as one rollout."""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Float, Int, PyTree
import numpy as np

from vr_jax import records
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.parallel import mesh as mesh_lib

ReplyTokens = tuple[tuple[int, ...], ...]
EncodedObservation = prompts_lib.EncodedPrompt


@runtime_checkable
class Turns(Protocol):
  """The host's side of a rollout. `observe` is called on threads, for several replies at once."""

  def observe(self, row: int, group_index: int, replies: ReplyTokens) -> EncodedObservation | None:
    """What a reply is shown next; None where its episode has ended.

    It begins with the end of the reply's turn, where the reply has not written that, and ends with the next turn opened
    (`Processor.continue_conversation`). row: of the batch; replies: token ids of all turns so far.
    """

  def pad(
    self, encoded: Sequence[EncodedObservation], sizes: prompts_lib.PromptSizes
  ) -> records.Prompt:
    """As `prompts.pad`, with the model's constants."""

  @property
  def axes(self) -> int:
    """Of positions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """How episodes are played. Each combination of sizes that comes up is compiled for once. Episodes of one turn need no buckets.

  turns: replies of an episode, at most. window: turns before its own that a token sees (None: all); of a prompt that is
  forgotten it sees the first `kept` tokens, the system turn. decode_chunk: steps of decoding, one of which what a reply is shown next has time to be made in.
  append_batch_size: of a batch that is appended, at most, on a device. episode_buckets: lengths of whole episodes behind their prompt. observation_buckets: of what is
  shown between two replies, in tokens. frame_buckets: temporal patches of that, and of a whole episode. patches: of each of
  these.
  """

  turns: int
  patches: int
  window: int | None = None
  kept: int = 0
  episode_buckets: tuple[int, ...] = ()
  observation_buckets: tuple[int, ...] = ()
  frame_buckets: tuple[int, ...] = ()
  decode_chunk: int = 32
  append_batch_size: int = 8

  @property
  def forgets(self) -> bool:
    """Whether a turn may be so far back that it is no longer seen."""
    return self.window is not None and self.window < self.turns - 1


class _EpisodeSpan(NamedTuple):
  """A stretch of an episode: what one reply said between two looks, or what it was shown."""

  tokens: Int[np.ndarray, "time"]
  log_probs: Float[np.ndarray, "time"]
  kind: Int[np.ndarray, "time"]
  turn: Int[np.ndarray, "time"]
  positions: Int[np.ndarray, "time axes"]
  media_index: Int[np.ndarray, "time"]


_FILL = _EpisodeSpan(0, 0.0, int(records.Kind.PAD), 0, 0, -1)
_DTYPES = _EpisodeSpan(np.int32, np.float32, np.int32, np.int32, np.int32, np.int32)


class ObservationSize(NamedTuple):
  """How much an episode is shown: tokens, positions that they take, frames."""

  tokens: int
  positions: int
  frames: int

  @classmethod
  def from_encoded(cls, shown: EncodedObservation) -> "ObservationSize":
    """That of what is shown."""
    return cls(len(shown.tokens), shown.next_position, len(shown.frames))


@dataclasses.dataclass(kw_only=True, eq=False)
class EpisodeState:
  """One of a prompt's group, and where it is kept: its device, and there its home and the seat of its prompt.

  Every process knows how far each episode has come; what one was shown is known where its prompt is. row: of the whole batch;
  own_row: of what this process has of it, None where others have it. position: of its next token; axes: of
  positions. replies: token ids; the
  last is the one that is being written. starts: how many tokens it held when each turn began. written, frames: tokens and frames that it holds behind its prompt.
  """

  row: int
  own_row: int | None
  group_index: int
  device: int
  cache_slot: int
  prompt_slot: int
  position: int
  axes: int
  replies: list[list[int]] = dataclasses.field(default_factory=lambda: [[]])
  shown: list[EncodedObservation] = dataclasses.field(default_factory=list)
  spans: list[_EpisodeSpan] = dataclasses.field(default_factory=list)
  starts: list[int] = dataclasses.field(default_factory=lambda: [0])
  written: int = 0
  frames: int = 0

  def add_reply_tokens(
    self, tokens: Int[np.ndarray, "time"], log_probs: Float[np.ndarray, "time"]
  ) -> None:
    """Goes on with its reply."""
    self.replies[-1] += tokens.tolist()
    places = np.broadcast_to(np.arange(len(tokens))[:, None], (len(tokens), self.axes))
    index, turn = np.full(tokens.shape, -1), len(self.replies) - 1
    self._keep(records.Kind.MODEL, turn, tokens, log_probs, places, index)
    self.written += len(tokens)
    self.position += len(tokens)

  def add_observation(
    self, shown: EncodedObservation, media_index: Int[np.ndarray, "time"], stride: int
  ) -> None:
    """What it is shown, where its prompt is. media_index: of that alone; stride: media tokens of a frame."""
    self.shown.append(shown)
    index = np.where(media_index >= 0, media_index + self.frames * stride, -1)
    silent = np.zeros(shown.tokens.shape, np.float32)
    kind = records.Kind.ENVIRONMENT
    self._keep(kind, len(self.replies), shown.tokens, silent, shown.positions, index)

  def start_next_turn(self, size: ObservationSize) -> None:
    """Is shown so much, and opens a reply to it."""
    self.starts.append(self.written)
    self.replies.append([])
    self.written += size.tokens
    self.position += size.positions
    self.frames += size.frames

  def forgotten(self, turn: int, window: int) -> int:
    """How many of its tokens a turn no longer sees, that has begun or begins now."""
    first = turn - window
    return [*self.starts, self.written][first] if first > 0 else 0

  def check_fits(self, shown: EncodedObservation, reply: int, schedule: Schedule) -> None:
    """Raises InputError where what it is shown next, and a reply to that, would not fit the largest buckets."""
    name = f"{shown.name}, turn {len(self.replies) + 1}"
    length = self.written + len(shown.tokens) + reply
    frames = self.frames + len(shown.frames)
    for size, buckets, what in (
      (len(shown.tokens), schedule.observation_buckets, "tokens"),
      (length, schedule.episode_buckets, "tokens of all turns together"),
      (frames, schedule.frame_buckets, "temporal patches of all turns together"),
      (shown.patches, (schedule.patches,), "patches a frame"),
    ):
      prompts_lib.smallest_bucket([(name, size)], buckets, what)

  def _keep(
    self,
    kind: records.Kind,
    turn: int,
    tokens: Int[np.ndarray, "time"],
    log_probs: Float[np.ndarray, "time"],
    places: Int[np.ndarray, "time axes"],
    media_index: Int[np.ndarray, "time"],
  ) -> None:
    whose, turns = (np.full(tokens.shape, value) for value in (int(kind), turn))
    piece = _EpisodeSpan(tokens, log_probs, whose, turns, places + self.position, media_index)
    self.spans.append(piece)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeRollout:
  """Episodes of a batch.

  rollout: its suffix, where there are several turns, has the features of the tower that played. shown: of the rows of this
  process, [prompts][group], what came between replies; frames: of one episode in the suffix, padding included. computed_tokens: tokens that
  decoding and what was shown made it compute, padding and slots without a reply with them. idle_seconds: seconds in which the
  devices had nothing to do, since what they were to append was not made yet.
  """

  rollout: records.Rollout
  computed_tokens: int
  shown: Sequence[Sequence[Sequence[EncodedObservation]]] = ()
  frames: int = 0
  idle_seconds: float = 0.0

  @property
  def replies(self) -> list[list[ReplyTokens]]:
    """Token ids of each turn, [prompts][group], of the rows of this process."""
    whole = self.rollout
    tokens, kind, turn = map(mesh_lib.local_rows, (whole.tokens, whole.kind, whole.turn))
    turn = np.where(kind == records.Kind.MODEL, turn, -1)
    return [
      [
        tuple(tuple(ids[turns == number].tolist()) for number in range(turns.max(initial=-1) + 1))
        for ids, turns in zip(*group, strict=True)
      ]
      for group in zip(tokens, turn, strict=True)
    ]

  def vision(self, turns: Turns, schedule: Schedule) -> PyTree:
    """The vision inputs of the suffix, for a pass with a tower of its own: there they take the place of its media."""
    longest = max(schedule.episode_buckets)
    sizes = prompts_lib.PromptSizes(prefix=longest, frames=self.frames, patches=schedule.patches)
    nothing = prompts_lib.nothing(turns.axes)
    each = [prompts_lib.join([nothing, *one], name="suffix") for row in self.shown for one in row]
    vision, rows = turns.pad(each, sizes).vision, len(self.shown)
    frames = len(each) // rows * self.frames
    return jax.tree.map(lambda x: x.reshape(rows, frames, *x.shape[2:]), vision)


def in_groups(episodes: Sequence[EpisodeState], group: int) -> list[list[EpisodeState]]:
  """[prompts][group]."""
  ordered = sorted(episodes, key=lambda one: (one.row, one.group_index))
  return [ordered[start : start + group] for start in range(0, len(ordered), group)]


def rollout(
  groups: Sequence[Sequence[EpisodeState]], media: PyTree, time: int, schedule: Schedule
) -> records.Rollout:
  """Episodes on the host, padded to `time`.

  media: features [prompts, media, …] of all processes; of each group as much for one episode as for another.
  """
  shape = len(groups), len(groups[0]), time
  each, axes = jax.tree.leaves(media)[0].shape[1] // len(groups[0]), groups[0][0].axes
  made = _EpisodeSpan(
    *(
      np.full(shape if name != "positions" else (*shape, axes), fill, dtype)
      for name, fill, dtype in zip(_EpisodeSpan._fields, _FILL, _DTYPES, strict=True)
    )
  )
  for row, episodes in enumerate(groups):
    for group_index, one in enumerate(episodes):
      for array, *parts in zip(made, *one.spans, strict=True):
        array[row, group_index, : one.written] = np.concatenate(parts)
      index = made.media_index[row, group_index]
      index[index >= 0] += group_index * each
  forgotten = _forgotten(groups, made.turn, schedule.window) if schedule.forgets else None
  return records.Rollout(
    tokens=made.tokens,
    log_probs=made.log_probs,
    kind=made.kind,
    turn=made.turn,
    episode_inputs=records.EpisodeInputs(
      positions=made.positions,
      media_index=made.media_index,
      vision=None,
      media=media,
      forgotten=forgotten,
      kept=schedule.kept if schedule.forgets else 0,
    ),
  )


def _forgotten(
  groups: Sequence[Sequence[EpisodeState]],
  turn: Int[np.ndarray, "prompts group time"],
  window: int,
) -> Int[np.ndarray, "prompts group time"]:
  """How many tokens behind the prompt each token no longer sees."""
  found = np.zeros_like(turn)
  for row, episodes in enumerate(groups):
    for group_index, one in enumerate(episodes):
      of_turns = [one.forgotten(number, window) for number in range(len(one.replies))]
      found[row, group_index] = np.array(of_turns, np.int32)[turn[row, group_index]]
  return found
