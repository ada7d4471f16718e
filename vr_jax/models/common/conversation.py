"""Conversations with images and videos in them, and text as tokens that steer nothing."""

import dataclasses
import functools
import re

from jaxtyping import UInt8
import numpy as np
import tokenizers

ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
  """A still picture."""

  pixels: UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFrames:
  """Frames and the time between two of them."""

  frames: UInt8[np.ndarray, "frames height width 3"]
  seconds_per_frame: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
  """What one side of a conversation said: `role` is system, user or assistant."""

  role: str
  parts: tuple[str | Image | VideoFrames, ...]


NO_VIDEO = VideoFrames(frames=np.zeros((0, 0, 0, 3), np.uint8), seconds_per_frame=1.0)


def most_tokens(text: str) -> int:
  """At least as many as the tokens of a text, without encoding it: each token is one byte of it or more.

  Text that is not ASCII is composed first (NFC), by which its bytes may become three times as many.
  """
  return len(text) if text.isascii() else 3 * len(text.encode())


class PlainText:
  """Text to tokens over one tokenizer, none of them special.

  Tokens that steer the model (turns, media) come from a chat template alone. Where a text spells
  one, it is encoded as the
  signs that it is made of, as transformers does with `sanitize_control_tokens`: no question can end
  its own turn or stand
  for an image.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self._tokenizer = tokenizer
    added = tokenizer.get_added_tokens_decoder().values()
    special = sorted((token.content for token in added if token.special), key=len, reverse=True)
    self._special = re.compile(f"({'|'.join(map(re.escape, special))})")

  def encode(self, text: str) -> list[int]:
    """Tokens of text alone."""
    pieces = self._special.split(text)
    plain, spelled = pieces[::2], pieces[1::2]
    tokens = self._tokenizer.encode(plain[0], add_special_tokens=False).ids
    for sign, piece in zip(spelled, plain[1:], strict=True):
      tokens += self._literal.encode(sign, add_special_tokens=False).ids
      tokens += self._tokenizer.encode(piece, add_special_tokens=False).ids
    return tokens

  @functools.cached_property
  def _literal(self) -> tokenizers.Tokenizer:
    """The tokenizer, blind to special tokens."""
    blind = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
    blind.encode_special_tokens = True
    return blind
