"""Episodes of several turns on the host: their sizes, observations and results."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import NamedTuple, Protocol, cast, runtime_checkable

import jax
from jaxtyping import Int, PyTree
import numpy as np

from vr_jax import records
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import written_replies

ReplyTokens = tuple[tuple[int, ...], ...]
EncodedObservation = prompts_lib.EncodedPrompt


@runtime_checkable
class Turns(Protocol):
  """Encodes the observations of a rollout, on the host."""

  def observe(self, row: int, group_index: int, replies: ReplyTokens) -> EncodedObservation | None:
    """Encodes the observation after a reply; None if the episode has ended.

    It is called on threads, for several replies at once. The observation begins with the end of the
    reply's turn, if the reply did not write that itself, and ends with the beginning of the next
    reply (`Processor.continue_conversation`).

    row: index of the prompt in the batch.
    group_index: index of the reply in its group.
    replies: token ids of all turns so far.
    """
    ...

  def pad(
    self, encoded: Sequence[EncodedObservation], sizes: prompts_lib.PromptSizes
  ) -> records.Prompt:
    """Pads and stacks them into a batch for the model, as `prompts.pad` does."""
    ...

  @property
  def position_axes(self) -> int:
    """Number of components of a position."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """The sizes with which episodes are played. Each combination that occurs is compiled once.

  turns: the most replies of an episode.
  patches: patches of a frame that a later turn shows, padding included.
  window: how many earlier turns a token can attend to; None: all.
  kept: length of the system turn, in tokens; that is all a token can attend to of a prompt that it
    has forgotten.

  The rest is needed only with several turns:
  episode_buckets: lengths of episodes without their prompt, in tokens.
  observation_buckets: lengths of one observation, in tokens.
  frame_buckets: numbers of frames, of one observation and of an episode.
  decode_chunk: steps of decoding between two looks at which replies have ended. Observations are
    encoded while a chunk runs.
  append_batch_size: the most observations, per device, that are appended at once.
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
    """Whether an episode may have turns that later ones can't attend to."""
    return self.window is not None and self.window < self.turns - 1


class ObservationSize(NamedTuple):
  """The size of an observation: tokens, positions that these take up, and frames."""

  tokens: int
  positions: int
  frames: int

  @classmethod
  def from_encoded(cls, shown: EncodedObservation) -> "ObservationSize":
    """The size of an encoded observation."""
    return cls(len(shown.tokens), shown.next_position, len(shown.frames))


@dataclasses.dataclass(kw_only=True, eq=False)
class EpisodeState:
  """The progress of one episode that is served; a batch of them has an `EpisodeTable`.

  device: index of the device that holds the episode.
  cache_slot: index of its cache slot on that device.
  prompt_slot: index of its prompt on that device.
  position: position of the next token.
  replies: token ids of each turn; the last one is being sampled.
  starts: number of tokens after the prompt at which each turn began.
  written: number of tokens after the prompt.
  frames: number of frames that the turns after the first have shown.
  """

  device: int
  cache_slot: int
  prompt_slot: int
  position: int
  replies: list[list[int]] = dataclasses.field(default_factory=lambda: [[]])
  starts: list[int] = dataclasses.field(default_factory=lambda: [0])
  written: int = 0
  frames: int = 0

  def add_reply_tokens(self, tokens: Int[np.ndarray, "time"]) -> None:
    """Adds sampled tokens to the last reply."""
    self.replies[-1] += tokens.tolist()
    self.written += len(tokens)
    self.position += len(tokens)

  def start_next_turn(self, size: ObservationSize) -> None:
    """Counts an observation of this size, and begins the reply to it."""
    self.starts.append(self.written)
    self.replies.append([])
    self.written += size.tokens
    self.position += size.positions
    self.frames += size.frames

  def visible_from(self, turn: int, window: int) -> int:
    """The first token after the prompt that a turn, or the next one, still attends to."""
    first = turn - window
    return [*self.starts, self.written][first] if first > 0 else 0


def check_observation_fits(
  shown: EncodedObservation,
  *,
  written: int,
  frames: int,
  reply: int,
  schedule: Schedule,
) -> None:
  """Raises InputError if an observation and a reply to it do not fit the buckets.

  written, frames: tokens after the prompt, and frames shown, before it.
  reply: the most tokens of the reply.
  """
  tokens, temporal_patches = len(shown.tokens), frames + len(shown.frames)
  total = written + tokens + reply
  for field, size, buckets, what in (
    ("observation", tokens, schedule.observation_buckets, "tokens shown in a turn"),
    ("episode", total, schedule.episode_buckets, "tokens of all turns together"),
    ("frame", temporal_patches, schedule.frame_buckets, "temporal patches of all later turns"),
    ("patch", shown.patches, (schedule.patches,), "patches a frame shown in a later turn"),
  ):
    what = f"{what} (config.turns.{field}_buckets)"
    prompts_lib.smallest_bucket([(shown.name, size)], buckets, what)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeRollout:
  """The sampled episodes of a batch, and what sampling cost.

  rollout: with several turns, its episode_inputs have the features from the sampler's vision tower.
  computed_tokens: tokens computed for decoding and observations, padding and empty slots included.
  shown: observations of each episode of this process's rows, [prompts][group].
  frames: frames of one episode in the episode_inputs, padding included.
  idle_seconds: time in which the devices waited for observations.
  outgrown: why an episode ended before its next turn, whose observation does not fit the largest
    buckets; by (prompt of this process, index in the group).
  begun: replies of the next batch, where sampling began them.
  """

  rollout: records.Rollout
  computed_tokens: int
  shown: Sequence[Sequence[Sequence[EncodedObservation]]] = ()
  frames: int = 0
  idle_seconds: float = 0.0
  outgrown: Mapping[tuple[int, int], str] = dataclasses.field(default_factory=dict)
  begun: written_replies.WrittenReplies | None = None

  @property
  def replies(self) -> list[list[ReplyTokens]]:
    """Token ids of each turn, [prompts][group], for the rows of this process."""
    arrays = self.rollout.tokens, self.rollout.kind, self.rollout.turn
    tokens, kind, turn = (mesh_lib.local_rows(cast(jax.Array, x)) for x in arrays)
    turn = np.where(kind == records.Kind.MODEL, turn, -1)
    return [
      [
        tuple(tuple(ids[turns == number].tolist()) for number in range(turns.max(initial=-1) + 1))
        for ids, turns in zip(*group, strict=True)
      ]
      for group in zip(tokens, turn, strict=True)
    ]

  def vision(self, turns: Turns, schedule: Schedule) -> PyTree:
    """The vision inputs of the episode_inputs, for passes that run the vision tower themselves.

    They replace the media features.
    """
    longest = max(schedule.episode_buckets)
    sizes = prompts_lib.PromptSizes(prefix=longest, frames=self.frames, patches=schedule.patches)
    nothing = prompts_lib.nothing(turns.position_axes)
    joined = [
      prompts_lib.join([nothing, *shown], name="suffix") for group in self.shown for shown in group
    ]
    vision, rows = turns.pad(joined, sizes).vision, len(self.shown)
    frames = len(joined) // rows * self.frames
    return jax.tree.map(lambda x: x.reshape(rows, frames, *x.shape[2:]), vision)
