"""The four records that carry everything between the rooms of the house.

    Example   one question about a video, with all that is known about the right answer
    Prompt    what the model reads before its reply, padded and stacked: [prompts, prefix]
    Rollout   what it replied: [prompts, group, time]
    Scores    what the replies earned: [prompts, group, segments], by name

Axes: prompts (questions of a batch), prefix (tokens of the longest prompt), group (replies to one prompt), time (tokens
of the longest reply, or of the longest episode behind its prompt), axes (of positions, as many as the model's family has),
frames (temporal patches of the vision tower, of one image or some video frames), patches (of one frame, padded), media
(vision tokens of one prompt, those of all its frames).
"""

from collections.abc import Mapping
import dataclasses
import enum
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int, PyTree
import numpy as np

PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
  """A stretch of a video in seconds, from `start` up to `end`."""

  start: float
  end: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """One sentence of the reference reasoning, with the time it speaks of (seconds)."""

  text: str
  start: float
  end: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
  """What is true of one object at a time (seconds): `attribute` (colour, place, size, …) has `value`."""

  object: str
  time: float
  attribute: str
  value: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """One question. `shown` is what the model may see of the video, `masked` what the answer is about.

  `observation` and `reasoning` are the two texts of a supervised trace, without tags; "" where there is none.
  `extra` has the other fields of its annotation, as JSON has them: for rewards of a user.
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
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


class Kind(enum.IntEnum):
  """What a position of a prompt or a rollout holds."""

  PAD = 0
  TEXT = 1
  IMAGE = 2
  VIDEO = 3
  MODEL = 4
  ENVIRONMENT = 5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """Prompts of one batch, padded on the right to one bucket.

  What they show is either `vision`, which the vision tower still has to read, or `media`, what it made of that. Both are
  pytrees of the model's family: arrays [prompts, frames, patches, …] and [prompts, media, …]. There are features for each
  media token, padding included, in the order of frames, then of patches.
  """

  tokens: Int[Array | np.ndarray, "prompts prefix"]
  kind: Int[Array | np.ndarray, "prompts prefix"]
  positions: Int[
    Array | np.ndarray, "prompts prefix axes"
  ]  # of the family: 1, or time, height, width
  next_position: Int[
    Array | np.ndarray, "prompts"
  ]  # position of the first reply token, on all axes
  media_index: Int[
    Array | np.ndarray, "prompts prefix"
  ]  # which media token of the prompt stands here; -1 for text
  vision: PyTree | None
  media: PyTree | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeInputs:
  """What the replies of several turns need beside their tokens: where these stand, and what later turns showed.

  What they showed is `vision` or `media`, as in a `Prompt`; frames and media are those of a prompt's whole group.
  """

  positions: Int[Array | np.ndarray, "prompts group time axes"]
  media_index: Int[
    Array | np.ndarray, "prompts group time"
  ]  # which media token of the group stands here; -1 for text
  vision: PyTree | None
  media: PyTree | None = None
  # How many tokens behind the prompt each token no longer sees; where it is above 0, of the prompt it
  # sees the first `kept` tokens alone. None: every token sees all before it.
  forgotten: Int[Array | np.ndarray, "prompts group time"] | None = None
  kept: int = dataclasses.field(default=0, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
  """Replies of one batch, padded on the right. Only positions of kind MODEL were sampled and carry loss.

  Those of several turns are whole episodes behind their prompt: replies, and between them what the environment showed
  (kind ENVIRONMENT, its media tokens too). episode_inputs: None where there is one turn, all text.
  """

  tokens: Int[Array | np.ndarray, "prompts group time"]
  log_probs: Float[
    Array | np.ndarray, "prompts group time"
  ]  # of the sampler, at its temperature; 0 where not MODEL
  kind: Int[Array | np.ndarray, "prompts group time"]
  turn: Int[Array | np.ndarray, "prompts group time"]
  episode_inputs: EpisodeInputs | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """Rewards by name. The report shows these, never a re-computation."""

  rewards: dict[str, Float[Array | np.ndarray, "prompts group segments"]]
  valid: Bool[Array | np.ndarray, "prompts group segments"]
  total: Float[Array | np.ndarray, "prompts group segments"]  # the weighted sum that credit takes
