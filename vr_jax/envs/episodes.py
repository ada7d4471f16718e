"""What an environment shows and what it gets back: observations, episodes, replies, traces."""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Int
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
  """The replies of a policy about one example, turn by turn.

  pool: number of frames of the clip.
  relevant: indices of the frames that hold the evidence; () if unknown.
  replies: texts, one for each turn.
  times: of the frames of the clip, in seconds; () without a clip.
  """

  pool: int
  relevant: tuple[int, ...]
  replies: tuple[str, ...]
  times: tuple[float, ...] = ()


def single_turn(text: str) -> Episode:
  """An episode of one reply, without a pool of frames."""
  return Episode(pool=0, relevant=(), replies=(text,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replies:
  """The replies of a policy to a batch of examples.

  episodes: [prompts][group].
  segment: index of the segment that each token belongs to; -1 for tokens in no segment.
  shuffled: replies to the same frames in random order, [prompts][any number]; None if none were
    sampled.
  """

  episodes: Sequence[Sequence[Episode]]
  segment: Int[np.ndarray, "prompts group time"]
  shuffled: Sequence[Sequence[str]] | None = None

  @classmethod
  def from_texts(
    cls,
    texts: Sequence[Sequence[str]],
    segment: Int[np.ndarray, "prompts group time"],
    *,
    shuffled: Sequence[Sequence[str]] | None = None,
  ) -> "Replies":
    """Replies of one turn each. texts: [prompts][group]."""
    episodes = [[single_turn(text) for text in group] for group in texts]
    return cls(episodes=episodes, segment=segment, shuffled=shuffled)

  @property
  def texts(self) -> list[list[str]]:
    """The episodes' last replies, [prompts][group]; earlier replies are in `episodes` only."""
    return [[episode.replies[-1] for episode in group] for group in self.episodes]

  def lengths(self, segments: int) -> Int[np.ndarray, "prompts group {segments}"]:
    """Number of tokens of each segment."""
    return np.stack([(self.segment == number).sum(-1) for number in range(segments)], axis=-1)


# Height and width in pixels.
Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class WholeClip:
  """The part of an observation that stands for the whole clip, shown as one video.

  size: of its frames as shown, whatever their aspect ratio, as far as `Processor.resized` keeps
    it. None: that to which it resizes stored frames.
  """

  size: Size | None = None


@dataclasses.dataclass(frozen=True)
class ShownFrame:
  """The part of an observation that is one frame of the clip, shown as a picture.

  index: in the pool.
  size: as in `WholeClip`.
  """

  index: int
  size: Size | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
  """The content of a turn: texts, single frames of the pool, or the whole clip.

  Parts are shown in order, except with `WholeClip`: such a turn has exactly one text, and
  config.model.question_first decides which of the two comes first.
  """

  parts: tuple[str | ShownFrame | WholeClip, ...]

  @property
  def frames(self) -> tuple[int, ...]:
    """Indices of the single frames."""
    return tuple(part.index for part in self.parts if isinstance(part, ShownFrame))

  @property
  def texts(self) -> tuple[str, ...]:
    """The texts."""
    return tuple(part for part in self.parts if isinstance(part, str))

  @property
  def shows_clip(self) -> bool:
    """Whether the whole clip is shown."""
    return self.clip is not None

  @property
  def clip(self) -> WholeClip | None:
    """The part that stands for the whole clip; None if there is none."""
    return next((part for part in self.parts if isinstance(part, WholeClip)), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
  """The texts of a supervised trace, as parsed from a reply."""

  observation: str
  reasoning: str
  answer: str
