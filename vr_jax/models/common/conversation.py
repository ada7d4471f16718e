"""Conversations with images and videos, and tokenization of plain text without special tokens."""

import dataclasses
import functools
import re

from jaxtyping import Float, UInt8
import numpy as np
import tokenizers

ROLES = ("system", "user", "assistant")


# Height and width in pixels.
Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
  """A still picture.

  seconds: its time, if it is a frame of a video.
  size: to show it at, whatever its aspect ratio, as far as `Processor.resized` keeps that; None:
    its own.
  """

  pixels: UInt8[np.ndarray, "height width 3"]
  seconds: float | None = None
  size: Size | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFrames:
  """Frames of a video. timestamps: their times in it, seconds. size: as of an image."""

  frames: UInt8[np.ndarray, "frames height width 3"]
  timestamps: Float[np.ndarray, "times"]
  size: Size | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
  """One turn of a conversation. role: system, user or assistant."""

  role: str
  parts: tuple[str | Image | VideoFrames, ...]


NO_VIDEO = VideoFrames(frames=np.zeros((0, 0, 0, 3), np.uint8), timestamps=np.zeros(0))


def question(text: str, video: VideoFrames | None, question_first: bool) -> Message:
  """A turn that asks about a video."""
  parts = (text,) if video is None else (text, video) if question_first else (video, text)
  return Message(role="user", parts=parts)


def most_tokens(text: str) -> int:
  """An upper bound of a text's tokens, without encoding it: each token is at least one byte.

  Text that is not ASCII is normalised first (NFC), which may triple its bytes.
  """
  return len(text) if text.isascii() else 3 * len(text.encode())


class PlainText:
  """Tokenizes text without special tokens.

  Only a chat template adds control tokens (turns, media). If a text spells one, its characters are
  encoded instead, as transformers does with `sanitize_control_tokens`: so no question can end its
  own turn or stand for an image.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self._tokenizer = tokenizer
    added = tokenizer.get_added_tokens_decoder().values()
    special = sorted((token.content for token in added if token.special), key=len, reverse=True)
    self._special = re.compile(f"({'|'.join(map(re.escape, special))})")

  def encode(self, text: str) -> list[int]:
    """Tokenizes a text."""
    pieces = self._special.split(text)
    plain, spelled = pieces[::2], pieces[1::2]
    tokens = self._tokenizer.encode(plain[0], add_special_tokens=False).ids
    for control, piece in zip(spelled, plain[1:], strict=True):
      tokens += self._literal.encode(control, add_special_tokens=False).ids
      tokens += self._tokenizer.encode(piece, add_special_tokens=False).ids
    return tokens

  @functools.cached_property
  def _literal(self) -> tokenizers.Tokenizer:
    """A copy of the tokenizer that ignores special tokens."""
    literal = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
    literal.encode_special_tokens = True
    return literal
