"""The four records that the packages of this project exchange.

    Example   one question about a video, with all that is known about the right answer
    Prompt    what the model reads before its reply, padded and stacked: [prompts, prefix]
    Rollout   what the model replied: [prompts, group, time]
    Scores    the rewards of the replies by name: [prompts, group, segments]

Names of axes:
    prompts   questions of a batch
    prefix    tokens of the longest prompt, padding included
    group     replies to one prompt
    time      tokens of the longest reply, or of the longest episode without its prompt
    segments  parts of a reply, or turns of an episode, that have rewards of their own
    axes      components of a position; the model's family decides how many
    frames    temporal patches of the vision tower: one image each, or a few video frames
    patches   patches of one frame, padding included
    media     vision tokens of one prompt, over all its frames
"""

from collections.abc import Mapping
import dataclasses
import enum
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int, PyTree
import numpy as np

# Whose answer is a text.
PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")
# Whose answer is where an object is: `Example.object_track`. There is no text, so `answer` is "".
SEGMENTATION = "segmentation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
  """A stretch of a video in seconds, from `start` up to `end`."""

  start: float
  end: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """One sentence of the reference reasoning, and the seconds of the video that it is about."""

  text: str
  start: float
  end: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
  """A fact about one object: from `time` (seconds) on, `attribute` has `value`.

  attribute: colour, place, size, …
  """

  object: str
  time: float
  attribute: str
  value: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ObjectTrack:
  """Where the object that a query means is in the annotated frames of its video.

  Where a query means several instances, they are one object: the union of their masks.

  times: of the annotated frames, in seconds, increasing.
  boxes: float32 (left, top, right, bottom) in pixels of the original video, right and bottom
    exclusive; NaN where the object isn't visible.
  height, width: of the original video, in pixels.
  instances: names of the instances in the mask store.
  """

  times: Float[np.ndarray, "frames"]
  boxes: Float[np.ndarray, "frames 4"]
  height: int
  width: int
  instances: tuple[str, ...] = ()

  @property
  def visible(self) -> Bool[np.ndarray, "frames"]:
    """Whether the object is seen in each annotated frame."""
    return ~np.isnan(self.boxes[:, 0])

  def __eq__(self, other: object) -> bool:
    return isinstance(other, ObjectTrack) and self._key() == other._key()

  def __hash__(self) -> int:
    return hash(self._key())

  def _key(self) -> tuple[Any, ...]:
    arrays = (self.times.tobytes(), self.boxes.tobytes())
    return (*arrays, self.height, self.width, self.instances)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """One question about a video.

  shown: the part of the video that the model may see.
  masked: the part that the answer is about, where the model must not see it.
  relevant: the parts that hold the evidence.
  steps: the reference reasoning.
  states: facts about the objects of a simulated video.
  observation, reasoning: the two texts of a supervised trace, without tags; "" if there is none.
  object_track: where the object is that a query of problem type SEGMENTATION means; else None.
  extra: the other fields of the annotation, as in the JSON; a user's own rewards may read them.
  """

  id: str
  video: str
  question: str
  answer: str
  problem_type: str
  shown: Span
  options: tuple[str, ...] = ()
  masked: Span | None = None
  relevant: tuple[Span, ...] = ()
  steps: tuple[Step, ...] = ()
  states: tuple[State, ...] = ()
  source: str = ""
  observation: str = ""
  reasoning: str = ""
  object_track: ObjectTrack | None = None
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


class Kind(enum.IntEnum):
  """The kind of token at a position of a prompt or a rollout."""

  PAD = 0
  TEXT = 1
  IMAGE = 2
  VIDEO = 3
  MODEL = 4
  ENVIRONMENT = 5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """Prompts of one batch, padded on the right to the length of a bucket.

  Exactly one of `vision` and `media` is given; both are pytrees whose form the model's family
  decides.

  tokens: token ids.
  kind: a `Kind` for each token.
  positions: one component, or time, height and width, as the model's family has it.
  next_position: position of the first reply token, the same on all axes.
  media_index: index of the media token that stands here; -1 for text.
  vision: input of the vision tower, arrays [prompts, frames, patches, …].
  media: features from the vision tower, arrays [prompts, media, …]; one for each media token,
    padding included, ordered by frame, then by patch.
  """

  tokens: Int[Array | np.ndarray, "prompts prefix"]
  kind: Int[Array | np.ndarray, "prompts prefix"]
  positions: Int[Array | np.ndarray, "prompts prefix axes"]
  next_position: Int[Array | np.ndarray, "prompts"]
  media_index: Int[Array | np.ndarray, "prompts prefix"]
  vision: PyTree | None
  media: PyTree | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeInputs:
  """Inputs of the model for episodes of several turns, apart from their tokens.

  positions: of each token, as in a `Prompt`.
  media_index: index, among the media tokens of the whole group, of the one that stands here; -1 for
    text.
  vision, media: what the turns after the first show, as in a `Prompt`; their axes frames and media
    run over all episodes of a group.
  visible_from: index after the prompt of the first token that each token still attends to. A token
    for which it is above 0 attends to only the first `kept` tokens of the prompt. None: every token
    attends to all tokens before it.
  kept: length of the system turn, in tokens.
  """

  positions: Int[Array | np.ndarray, "prompts group time axes"]
  media_index: Int[Array | np.ndarray, "prompts group time"]
  vision: PyTree | None
  media: PyTree | None = None
  visible_from: Int[Array | np.ndarray, "prompts group time"] | None = None
  kept: int = dataclasses.field(default=0, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
  """Replies of one batch, padded on the right. Tokens of kind MODEL were sampled and have loss.

  With several turns, a row is an episode without its prompt: replies alternate with observations of
  the environment, whose tokens, media tokens included, are of kind ENVIRONMENT.

  tokens: token ids.
  log_probs: of the sampler, at its temperature; 0 for tokens that were not sampled.
  kind: a `Kind` for each token.
  turn: number of the turn that each token belongs to, from 0.
  episode_inputs: None if there is one turn.
  """

  tokens: Int[Array | np.ndarray, "prompts group time"]
  log_probs: Float[Array | np.ndarray, "prompts group time"]
  kind: Int[Array | np.ndarray, "prompts group time"]
  turn: Int[Array | np.ndarray, "prompts group time"]
  episode_inputs: EpisodeInputs | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """Rewards by name. The report shows these numbers and never computes them again.

  rewards: each reward before its weight.
  scored: segments that have a reward; False: a turn that was not played, or one that the judge
    could not score.
  total: the weighted sum, from which advantages are computed.
  """

  rewards: Mapping[str, Float[Array | np.ndarray, "prompts group segments"]]
  scored: Bool[Array | np.ndarray, "prompts group segments"]
  total: Float[Array | np.ndarray, "prompts group segments"]
