"""What a family decides of how conversations are shown to its model: tokens, pixels, positions and chat template."""

import abc
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, PyTree, UInt8
import numpy as np
import tokenizers

from vr_jax.models.common import conversation, prompts


@runtime_checkable
class Template(Protocol):
  """A chat template over a tokenizer. slack: tokens that a text may make more between its words than alone."""

  slack: int

  def apply(
    self, turns: Sequence[conversation.Turn], media_tokens: Sequence[int], *, open_reply: bool
  ) -> tuple[Int[np.ndarray, "prefix"], Bool[np.ndarray, "prefix"]]:
    """Tokens of a conversation, and which of them its assistant wrote: its text and the end of its turns.

    media_tokens: how many each image or video has, in order. open_reply: ends with the head of the next reply.
    """

  def continuation(
    self, turns: Sequence[conversation.Turn], media_tokens: Sequence[int], *, ended: bool
  ) -> Int[np.ndarray, "suffix"]:
    """What follows a reply: the end of its turn, unless it `ended` with that, these turns, the head of the next reply."""

  def text(self, text: str) -> list[int]:
    """Tokens of text alone."""


class Rules(abc.ABC):
  """The part of a `processor.Processor` that is the family's.

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
    """The patches of a video of frames, height and width, `seconds` apart; of an image where that is None."""

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
    """Of each frame what the vision tower reads: arrays [patches, …], in a tree like `VisionShapes.patch`."""

  @abc.abstractmethod
  def positions(
    self, kind: Int[np.ndarray, "prefix"], grids: Sequence[prompts.Grid]
  ) -> tuple[Int[np.ndarray, "prefix axes"], int]:
    """Positions of every token of a prompt, and that of the first token after it."""
