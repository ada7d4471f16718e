"""What a family decides of its prompts: tokens, pixels, positions and chat template."""

import abc
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, PyTree, UInt8
import numpy as np
import tokenizers

from vr_jax.models.common import conversation, prompts


@runtime_checkable
class Template(Protocol):
  """A chat template. slack: how many more tokens a text may make inside it than alone."""

  slack: int

  def apply(
    self, turns: Sequence[conversation.Message], media_tokens: Sequence[int], *, open_reply: bool
  ) -> tuple[Int[np.ndarray, "prefix"], Bool[np.ndarray, "prefix"]]:
    """Tokens of a conversation, and which of them the assistant wrote, ends of turns included.

    media_tokens: how many each image or video has, in order. open_reply: ends with the head of the
    next reply.
    """
    ...

  def continuation(
    self, turns: Sequence[conversation.Message], media_tokens: Sequence[int], *, ended: bool
  ) -> Int[np.ndarray, "suffix"]:
    """What follows a reply: the end of its turn, these turns, and the head of the next reply.

    ended: the reply has the end of its turn itself.
    """
    ...

  def text(self, text: str) -> list[int]:
    """Tokens of text alone."""
    ...


class Rules(abc.ABC):
  """The part of a `processor.VideoProcessor` that is the family's.

  end_of_turn, pad_name: as the tokenizer spells them. stops: what ends a reply. never_sampled: what
  stands for pixels.
  """

  end_of_turn: ClassVar[str]
  pad_name: ClassVar[str]
  stops: ClassVar[tuple[str, ...]]
  never_sampled: ClassVar[tuple[str, ...]]

  @abc.abstractmethod
  def special_tokens(self) -> dict[str, int]:
    """Tokens whose ids the config names."""

  @abc.abstractmethod
  def make_template(self, tokenizer: tokenizers.Tokenizer) -> Template:
    """The chat template."""

  @abc.abstractmethod
  def kinds(self, tokens: Int[np.ndarray, "prefix"]) -> Int[np.ndarray, "prefix"]:
    """What each token is, of `records.Kind`: TEXT, IMAGE or VIDEO."""

  @abc.abstractmethod
  def grid(self, shape: tuple[int, int, int], seconds: float | None, name: str) -> prompts.Grid:
    """The grid of a video of this shape, frames `seconds` apart; None: of an image."""

  @abc.abstractmethod
  def frame_size(self, grid: prompts.Grid) -> tuple[int, int]:
    """Height and width (pixels) at which the frames of a grid are shown."""

  @property
  @abc.abstractmethod
  def patch_shape(self) -> tuple[int, ...]:
    """The shape of what `patchify` makes of a patch."""

  @abc.abstractmethod
  def patchify(
    self, frames: UInt8[np.ndarray, "images height width 3"]
  ) -> Float[np.ndarray, "frames patches *patch"]:
    """The patches of each temporal patch of images of the right size."""

  @abc.abstractmethod
  def frame_inputs(
    self, patches: Float[np.ndarray, "frames patches *patch"], grid: prompts.Grid
  ) -> list[PyTree]:
    """What the tower reads of each frame: arrays [patches, …] in a tree like `VisionShapes.patch`."""

  @abc.abstractmethod
  def positions(
    self, kind: Int[np.ndarray, "prefix"], grids: Sequence[prompts.Grid]
  ) -> tuple[Int[np.ndarray, "prefix axes"], int]:
    """Positions of every token of a prompt, and that of the first token after it."""
