"""Text to word ids, on the host: what ROUGE on device compares.

The words are those of the rouge-score package with stemming on: lower case, everything but a-z and 0-9 separates words,
words longer than three letters are stemmed.
"""

from jaxtyping import Int
import numpy as np

from vr_jax.rewards import stemmer

_SEPARATED = bytes(
  code if chr(code).isascii() and chr(code).isalnum() else ord(" ") for code in range(256)
)


def split_words(text: str) -> list[bytes]:
  """The words of a text before stemming, as ASCII bytes; any string, unpaired surrogates included."""
  return text.lower().encode("ascii", "replace").translate(_SEPARATED).split()


class Vocabulary(dict[bytes, int]):
  """Ids of the words of one batch, given out as words are asked for: words with the same stem share an id from 0."""

  def __init__(self) -> None:
    super().__init__()
    self._stems: dict[str, int] = {}

  def __missing__(self, word: bytes) -> int:
    stem = stemmer.stem(word.decode("ascii")) if len(word) > 3 else word.decode("ascii")
    number = self[word] = self._stems.setdefault(stem, len(self._stems))
    return number

  def ids(self, text: str) -> Int[np.ndarray, "words"]:
    """The ids of a text's words in order, int32."""
    return np.fromiter(map(self.__getitem__, split_words(text)), np.int32)
