"""The chat template "phi" of TinyLLaVA-Video; it builds token ids directly, not text.

    A chat between …'s questions. USER: <media>
    What happens? ASSISTANT: It falls.<|endoftext|>USER: Why? ASSISTANT:

`<media>` is the run of media tokens. The system turn is the first sentence; without one the text
starts with the user's turn.
"""

from collections.abc import Iterator, Sequence
from typing import cast

from jaxtyping import Bool, Int
import numpy as np
import tokenizers

from vr_jax.models.common import conversation, prompts

# The system turn of the released models.
SYSTEM = (
  "A chat between a curious user and an artificial intelligence assistant. "
  "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
END = "<|endoftext|>"
USER, ASSISTANT = "USER: ", "ASSISTANT:"
REPLY_START = " "  # between ASSISTANT: and a reply; the model writes it with the first word

# A piece of a conversation: text, or token ids; and whether the assistant wrote it.
Piece = tuple[str | Sequence[int], bool]


class PhiTemplate:
  """The chat template of one tokenizer. Only it adds the tokens that end turns, and media tokens.

  Text and media of a turn are on lines of their own, without spaces at their ends.

  slack: at most how many more tokens a text has inside the template than alone.
  """

  slack = len(USER) + len(ASSISTANT)

  def __init__(self, tokenizer: tokenizers.Tokenizer, media_token: int):
    self._plain, self._media_token = conversation.PlainText(tokenizer), media_token
    self._end = [cast(int, tokenizer.token_to_id(END))]  # load_tokenizer made sure of it

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
    pieces: list[Piece] = []
    for turn in turns:
      lines = self._lines(turn, remaining)
      if turn.role == "system":
        pieces += [*lines, (" ", False)]
      elif turn.role == "user":
        pieces += [(USER, False), *lines, (" ", False)]
      else:
        pieces += [(ASSISTANT, False), (REPLY_START, True), *lines, (self._end, True)]
    if open_reply:
      pieces.append((ASSISTANT, False))
    elif pieces and pieces[-1] == (" ", False):
      pieces.pop()  # it belongs to the next turn's first word
    return self._encode(pieces)

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
    rest = self.apply(turns, media, open_reply=True)[0]
    return np.concatenate([np.array([] if ended else self._end, np.int32), rest])

  def text(self, text: str) -> list[int]:
    """Tokenizes text; special tokens that it spells are encoded as plain characters."""
    return self._plain.encode(text)

  def _lines(
    self, turn: conversation.Message, remaining: Iterator[Sequence[prompts.MediaRun]]
  ) -> list[Piece]:
    """The content of a turn, text and media on lines of their own; media are not the assistant's.

    remaining: the runs of each medium.
    """
    ours, lines, text = turn.role == "assistant", [], ""
    for part in (*turn.parts, None):
      if isinstance(part, str):
        text += part
        continue
      if text.strip():
        # A reply keeps its lines as they were written.
        lines.append((text if ours else text.strip(), ours))
      text = ""
      if part is not None:
        runs = next(remaining)
        lines += [([self._media_token] * run.tokens, False) for run in runs]
    joined: list[Piece] = []
    for number, line in enumerate(lines):
      joined += [("\n", ours), line] if number else [line]
    return joined

  def _encode(
    self, pieces: Sequence[Piece]
  ) -> tuple[Int[np.ndarray, "prefix"], Bool[np.ndarray, "prefix"]]:
    """Tokenizes pieces; neighbouring texts of one writer together."""
    runs: list[tuple[Sequence[int], bool]] = []
    text, writer = "", False
    for piece, ours in (*pieces, ([], False)):
      if isinstance(piece, str) and ours == writer:
        text += piece
        continue
      runs += [(self.text(text), writer)] if text else []
      text, writer = (piece, ours) if isinstance(piece, str) else ("", False)
      runs += [] if isinstance(piece, str) else [(piece, ours)]
    tokens = np.array([token for run, _ in runs for token in run], np.int32)
    written = np.repeat([ours for _, ours in runs], [len(run) for run, _ in runs])
    return tokens, written.astype(bool)
