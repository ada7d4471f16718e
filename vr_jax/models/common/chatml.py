"""The chat template ChatML with images and videos; it builds token ids directly, not text."""

from collections.abc import Sequence
from typing import cast

from jaxtyping import Bool, Int
import numpy as np
import tokenizers

from vr_jax.models.common import conversation, prompts


class ChatTemplate:
  """The chat template of one tokenizer. Only it adds control tokens of turns and media.

  Each run of media tokens stands between the tokens that start and end vision, behind its text.

  slack: at most how many more tokens a text has inside the template than alone.
  """

  slack = len("user\n")

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self._tokenizer, self._plain = tokenizer, conversation.PlainText(tokenizer)
    self._newline = self.text("\n")
    self._reply_head = [*self._control("<|im_start|>"), *self.text("assistant\n")]

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
    open_reply: whether to end with the start of the assistant's next turn.
    """
    remaining = iter(media)
    runs: list[tuple[Sequence[int], bool]] = []
    for turn in turns:
      ours = turn.role == "assistant"
      runs.append((self._control("<|im_start|>"), False))
      head = text = f"{turn.role}\n"
      for part in turn.parts:
        if isinstance(part, str):
          text += part
          continue
        for run in next(remaining):
          runs += self._text_runs(head, text + run.text, ours)
          runs.append((self._medium(part, run.tokens), False))
          head = text = ""
      runs += self._text_runs(head, text, ours)
      runs += [(self._control("<|im_end|>"), ours), (self._newline, False)]
    if open_reply:
      runs.append((self._reply_head, False))
    tokens = np.array([token for run, _ in runs for token in run], np.int32)
    return tokens, np.repeat(
      [written for _, written in runs], [len(run) for run, _ in runs]
    ).astype(bool)

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
    end = self._newline if ended else [*self._control("<|im_end|>"), *self._newline]
    return np.concatenate([np.array(end, np.int32), self.apply(turns, media, open_reply=True)[0]])

  def text(self, text: str) -> list[int]:
    """Tokenizes text; special tokens that it spells are encoded as plain characters."""
    return self._plain.encode(text)

  def _text_runs(self, head: str, text: str, ours: bool) -> list[tuple[list[int], bool]]:
    """Tokenizes text that starts with `head`, split where the assistant's text begins.

    A token across the boundary (a line break before another) belongs to the text after the head.

    ours: whether the text after the head is the assistant's.
    """
    tokens = self.text(text)
    if not ours:
      return [(tokens, False)]
    pairs = enumerate(zip(tokens, alone := self.text(head), strict=False))
    split = next((i for i, (one, other) in pairs if one != other), min(len(tokens), len(alone)))
    return [(tokens[:split], False), (tokens[split:], True)]

  def _medium(self, part: conversation.Image | conversation.VideoFrames, count: int) -> list[int]:
    pad = "<|image_pad|>" if isinstance(part, conversation.Image) else "<|video_pad|>"
    start, end = self._control("<|vision_start|>"), self._control("<|vision_end|>")
    return [*start, *self._control(pad) * count, *end]

  def _control(self, token: str) -> list[int]:
    return [cast(int, self._tokenizer.token_to_id(token))]  # load_tokenizer made sure of it
