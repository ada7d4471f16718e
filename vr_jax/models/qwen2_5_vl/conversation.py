"""Conversations with images and videos in them, and Qwen2.5-VL's chat template, applied to tokens and not to text."""

from collections.abc import Sequence
import dataclasses
import functools
import re

from jaxtyping import Bool, Int, UInt8
import numpy as np
import tokenizers

ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
  """A still picture."""

  pixels: UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
  """Frames and the time between two of them."""

  frames: UInt8[np.ndarray, "frames height width 3"]
  seconds_per_frame: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
  """What one side of a conversation said: `role` is system, user or assistant."""

  role: str
  parts: tuple[str | Image | Video, ...]


NO_VIDEO = Video(frames=np.zeros((0, 0, 0, 3), np.uint8), seconds_per_frame=1.0)


def most_tokens(text: str) -> int:
  """At least as many as the tokens of a text, without encoding it: each token is one byte of it or more.

  Text that is not ASCII is composed first (NFC), by which its bytes may become three times as many.
  """
  return len(text) if text.isascii() else 3 * len(text.encode())


class Template:
  """The chat template over one tokenizer.

  Tokens that steer the model (turns, media) come from the template alone. Where the text of a turn spells one, it is
  encoded as the signs that it is made of, as transformers does with `sanitize_control_tokens`: no question can end its
  own turn or stand for an image.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self._tokenizer = tokenizer
    added = tokenizer.get_added_tokens_decoder().values()
    special = sorted((token.content for token in added if token.special), key=len, reverse=True)
    self._special = re.compile(f"({'|'.join(map(re.escape, special))})")
    self._newline = self.text("\n")
    self._reply_head = [*self._control("<|im_start|>"), *self.text("assistant\n")]

  def apply(
    self, turns: Sequence[Turn], media_tokens: Sequence[int], *, open_reply: bool
  ) -> tuple[Int[np.ndarray, "prefix"], Bool[np.ndarray, "prefix"]]:
    """Tokens of a conversation, and which of them its assistant wrote: its text and the end of its turns.

    media_tokens: how many tokens each image or video has, in order.
    open_reply: ends with the head of the assistant's next turn.
    """
    counts = iter(media_tokens)
    runs: list[tuple[Sequence[int], bool]] = []
    for turn in turns:
      ours = turn.role == "assistant"
      runs.append((self._control("<|im_start|>"), False))
      head = text = f"{turn.role}\n"
      for part in turn.parts:
        if isinstance(part, str):
          text += part
          continue
        runs += self._text_runs(head, text, ours)
        runs.append((self._medium(part, next(counts)), False))
        head = text = ""
      runs += self._text_runs(head, text, ours)
      runs += [(self._control("<|im_end|>"), ours), (self._newline, False)]
    if open_reply:
      runs.append((self._reply_head, False))
    tokens = np.array([token for run, _ in runs for token in run], np.int32)
    return tokens, np.repeat([mine for _, mine in runs], [len(run) for run, _ in runs]).astype(bool)

  def continuation(
    self, turns: Sequence[Turn], media_tokens: Sequence[int], *, ended: bool
  ) -> Int[np.ndarray, "suffix"]:
    """What follows a reply: the end of its turn, these turns, and the head of the next reply.

    ended: whether the reply wrote the end of its turn itself. media_tokens: as `apply`.
    """
    end = self._newline if ended else [*self._control("<|im_end|>"), *self._newline]
    return np.concatenate(
      [np.array(end, np.int32), self.apply(turns, media_tokens, open_reply=True)[0]]
    )

  def text(self, text: str) -> list[int]:
    """Tokens of text alone; special tokens that it spells are not what they say."""
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

  def _text_runs(self, head: str, text: str, ours: bool) -> list[tuple[list[int], bool]]:
    """Tokens of a stretch of text that opens with `head`; those of the rest are the assistant's, if it is `ours`.

    A token that ends the head and begins the rest (a line break before another) belongs to the rest.
    """
    tokens = self.text(text)
    if not ours:
      return [(tokens, False)]
    pairs = enumerate(zip(tokens, alone := self.text(head), strict=False))
    cut = next((i for i, (one, other) in pairs if one != other), min(len(tokens), len(alone)))
    return [(tokens[:cut], False), (tokens[cut:], True)]

  def _medium(self, part: Image | Video, count: int) -> list[int]:
    pad = "<|image_pad|>" if isinstance(part, Image) else "<|video_pad|>"
    start, end = self._control("<|vision_start|>"), self._control("<|vision_end|>")
    return [*start, *self._control(pad) * count, *end]

  def _control(self, token: str) -> list[int]:
    return [self._tokenizer.token_to_id(token)]
