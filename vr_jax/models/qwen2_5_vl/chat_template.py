"""Qwen2.5-VL's chat template, applied to tokens and not to text."""

from collections.abc import Sequence
from typing import cast

from jaxtyping import Bool, Int
import numpy as np
import tokenizers

from vr_jax.models.common import conversation


class ChatTemplate:
  """The chat template over one tokenizer. Tokens of turns and media come from it alone.

  slack: tokens that a text may make more between the words of the template than alone.
  """

  slack = len("user\n")

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self._tokenizer, self._plain = tokenizer, conversation.PlainText(tokenizer)
    self._newline = self.text("\n")
    self._reply_head = [*self._control("<|im_start|>"), *self.text("assistant\n")]

  def apply(
    self, turns: Sequence[conversation.Message], media_tokens: Sequence[int], *, open_reply: bool
  ) -> tuple[Int[np.ndarray, "prefix"], Bool[np.ndarray, "prefix"]]:
    """Tokens of a conversation, and which of them the assistant wrote, ends of turns included.

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
    self, turns: Sequence[conversation.Message], media_tokens: Sequence[int], *, ended: bool
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
    return self._plain.encode(text)

  def _text_runs(self, head: str, text: str, ours: bool) -> list[tuple[list[int], bool]]:
    """Tokens of text that opens with `head`; the rest is the assistant's, if it is `ours`.

    A token that ends the head and begins the rest (a line break before another) belongs to the
    rest.
    """
    tokens = self.text(text)
    if not ours:
      return [(tokens, False)]
    pairs = enumerate(zip(tokens, alone := self.text(head), strict=False))
    cut = next((i for i, (one, other) in pairs if one != other), min(len(tokens), len(alone)))
    return [(tokens[:cut], False), (tokens[cut:], True)]

  def _medium(self, part: conversation.Image | conversation.VideoFrames, count: int) -> list[int]:
    pad = "<|image_pad|>" if isinstance(part, conversation.Image) else "<|video_pad|>"
    start, end = self._control("<|vision_start|>"), self._control("<|vision_end|>")
    return [*start, *self._control(pad) * count, *end]

  def _control(self, token: str) -> list[int]:
    return [cast(int, self._tokenizer.token_to_id(token))]  # load_tokenizer made sure of it
