"""Converts text to word ids on the host, for ROUGE on device.

Words are those of the rouge-score package with stemming: lower case, split at everything but a-z
and 0-9; words longer than three letters are stemmed.
"""

from jaxtyping import Int
import numpy as np

from vr_jax.rewards import stemmer

_TRANSLATION = bytes(
  code if chr(code).isascii() and chr(code).isalnum() else ord(" ") for code in range(256)
)


def split_words(text: str) -> list[bytes]:
  """Splits a text into words, as ASCII bytes, before stemming.

  Accepts any string, even with unpaired surrogates.
  """
  return text.lower().encode("ascii", "replace").translate(_TRANSLATION).split()


class Vocabulary(dict[bytes, int]):
  """Assigns ids to the words of one batch, from 0, on first use. Words of one stem share an id."""

  def __init__(self) -> None:
    super().__init__()
    self._stems: dict[str, int] = {}

  def __missing__(self, word: bytes) -> int:
    stem = stemmer.stem(word.decode("ascii")) if len(word) > 3 else word.decode("ascii")
    number = self[word] = self._stems.setdefault(stem, len(self._stems))
    return number

  def ids(self, text: str) -> Int[np.ndarray, "words"]:
    """Returns the ids of a text's words in order, int32."""
    return np.fromiter(map(self.__getitem__, split_words(text)), np.int32)
