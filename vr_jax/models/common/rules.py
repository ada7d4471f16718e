"""Rules: what each model family defines for its prompts, from tokens to the chat template."""

import abc
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, PyTree, Shaped, UInt8
import numpy as np
import tokenizers

from vr_jax.models.common import conversation, prompts


@runtime_checkable
class Template(Protocol):
  """A chat template.

  slack: at most how many more tokens a text has inside the template than alone.
  """

  slack: int

  def apply(
    self,
    turns: Sequence[conversation.Message],
    media: Sequence[Sequence[prompts.MediaRun]],
    *,
    open_reply: bool,
  ) -> tuple[Int[np.ndarray, "prefix"], Bool[np.ndarray, "prefix"]]:
    """Tokenizes a conversation; returns its tokens and the mask of those the assistant wrote.

    The mask includes the ends of the assistant's turns.

    media: the runs of tokens of each image or video, in order.
    open_reply: whether to end with the start of the next reply.
    """
    ...

  def continuation(
    self,
    turns: Sequence[conversation.Message],
    media: Sequence[Sequence[prompts.MediaRun]],
    *,
    ended: bool,
  ) -> Int[np.ndarray, "suffix"]:
    """Tokenizes what follows a reply: the end of its turn, `turns`, the start of the next reply.

    media: as in `apply`.
    ended: whether the reply itself wrote the end of its turn.
    """
    ...

  def text(self, text: str) -> list[int]:
    """Tokenizes text without the template."""
    ...


class Rules(abc.ABC):
  """The methods of a `processor.VideoProcessor` that each family implements.

  end_of_turn, pad_name: tokens, as the tokenizer spells them.
  stops: tokens that end a reply.
  never_sampled: placeholder tokens of images and videos.
  box_units: what the numbers of a box in a reply count.
    pixels       pixels of the frame as it is shown
    thousandths  thousandths of its height and width
  reply_start: what the assistant writes before every reply, which is no part of its text.
  """

  end_of_turn: ClassVar[str]
  pad_name: ClassVar[str]
  stops: ClassVar[tuple[str, ...]]
  never_sampled: ClassVar[tuple[str, ...]]
  box_units: ClassVar[Literal["pixels", "thousandths"]]
  reply_start: ClassVar[str] = ""

  @abc.abstractmethod
  def special_tokens(self) -> dict[str, int]:
    """Special tokens and their ids in the config."""

  @abc.abstractmethod
  def make_template(self, tokenizer: tokenizers.Tokenizer) -> Template:
    """Makes the chat template."""

  @abc.abstractmethod
  def kinds(self, tokens: Int[np.ndarray, "prefix"]) -> Int[np.ndarray, "prefix"]:
    """The `records.Kind` of each token: TEXT, IMAGE or VIDEO."""

  @abc.abstractmethod
  def image_grid(self, size: tuple[int, int], seconds: float | None, name: str) -> prompts.Grid:
    """The grid of an image of this height and width (pixels). seconds: see `Image`."""

  @abc.abstractmethod
  def video_grid(
    self, shape: tuple[int, int, int], timestamps: Float[np.ndarray, "times"], name: str
  ) -> prompts.Grid:
    """The grid of a video. shape: frames, height and width (pixels). timestamps: of its frames.

    There is a timestamp for each frame, and they rise. Raises InputError as `encode` does.
    """

  @abc.abstractmethod
  def media_runs(self, grid: prompts.Grid) -> tuple[prompts.MediaRun, ...]:
    """The runs in which the tokens of an image or video stand, in order."""

  @abc.abstractmethod
  def frame_size(self, grid: prompts.Grid) -> tuple[int, int]:
    """Height and width (pixels) to which the frames of a grid are resized."""

  @property
  @abc.abstractmethod
  def patch_shape(self) -> tuple[int, ...]:
    """The shape of one patch in the result of `patchify`."""

  @abc.abstractmethod
  def patchify(
    self, frames: UInt8[np.ndarray, "images height width 3"]
  ) -> Shaped[np.ndarray, "frames patches *patch"]:
    """Cuts resized images into the patches of each temporal patch, of `VisionShapes.patch`'s dtype.

    Bytes, where the tower normalises them itself: they are a quarter of what float32 takes.
    """

  @abc.abstractmethod
  def frame_inputs(
    self, patches: Shaped[np.ndarray, "frames patches *patch"], grid: prompts.Grid
  ) -> list[PyTree]:
    """Vision inputs of each frame: arrays [patches, …] in a tree like `VisionShapes.patch`."""

  @abc.abstractmethod
  def positions(
    self, kind: Int[np.ndarray, "prefix"], grids: Sequence[prompts.Grid]
  ) -> tuple[Int[np.ndarray, "prefix axes"], int]:
    """Positions of all tokens of a prompt, and the position of the next token after it."""
