"""Converts text to words, and words to ids on the host, for ROUGE on device.

ASCII text has the words of the rouge-score package with stemming: lower case, split at everything
but a-z and 0-9; words longer than three letters are stemmed. Words of other languages are split at
white space and punctuation and are not stemmed. Scripts that are written without spaces (Chinese,
Japanese, Thai, …) have a word for each character, marks included.

Text is compared in Unicode's form NFKC, so it doesn't matter how "é" or "１" are encoded.
"""

from collections.abc import Callable
import unicodedata

from jaxtyping import Int
import numpy as np

from vr_jax.rewards import stemmer

_TRANSLATION = bytes(
  code if chr(code).isascii() and chr(code).isalnum() else ord(" ") for code in range(256)
)
# How the names of characters begin that are written without spaces between words.
_UNSPACED = frozenset(
  (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO"),
    *("THAI", "LAO", "KHMER", "MYANMAR"),
  )
)
_JOIN = "\ufdd0"  # not a character: ties a mark to the letter before it


def split_words(text: str) -> list[str]:
  """Splits a text into words in lower case, before stemming.

  Accepts any string, even with unpaired surrogates.
  """
  if text.isascii():
    return text.lower().encode().translate(_TRANSLATION).decode().split()
  text = unicodedata.normalize("NFKC", normalize_encoding(text)).casefold()
  return _space_out(unicodedata.normalize("NFKC", text).translate(_LETTERS)).split()


def split_written_words(text: str) -> list[str]:
  """Splits a text at white space, and around each character of scripts without spaces.

  Case and punctuation stay. How characters are encoded makes no difference: `normalize_encoding`.
  """
  return _space_out(normalize_encoding(text)).split()


def normalize_encoding(text: str) -> str:
  """One text for all encodings that look the same.

  It is in Unicode's form NFC, has usual characters for wide and narrow ones ("A1%" for "Ａ１％"),
  and nothing invisible.
  """
  return text if text.isascii() else unicodedata.normalize("NFC", text.translate(_USUAL))


class Vocabulary(dict[str, int]):
  """Assigns ids to the words of one batch, from 0, on first use. Words of one stem share an id."""

  def __init__(self) -> None:
    super().__init__()
    self._stems: dict[str, int] = {}

  def __missing__(self, word: str) -> int:
    stem = stemmer.stem(word) if len(word) > 3 and word.isascii() else word
    number = self[word] = self._stems.setdefault(stem, len(self._stems))
    return number

  def ids(self, text: str) -> Int[np.ndarray, "words"]:
    """Returns the ids of a text's words in order, int32."""
    return np.fromiter(map(self.__getitem__, split_words(text)), np.int32)


def _space_out(text: str) -> str:
  """Puts spaces around each letter of scripts without spaces; its marks stay with it."""
  if text.isascii():
    return text
  return text.translate(_SPACED).replace(f" {_JOIN}", "").replace(_JOIN, "")


class _Translation(dict[int, str]):
  """For str.translate: maps a character when it is first met."""

  def __init__(self, translate: Callable[[str], str]) -> None:
    super().__init__()
    self._translate = translate

  def __missing__(self, code: int) -> str:
    text = self[code] = self._translate(chr(code))
    return text


def _letter(char: str) -> str:
  """Keeps letters, marks and digits; the rest separates words."""
  return char if unicodedata.category(char)[0] in "LMN" else " "


def _spaced(char: str) -> str:
  kind = unicodedata.category(char)[0]
  if kind not in "LMN" or unicodedata.name(char, "").partition(" ")[0] not in _UNSPACED:
    return char
  return f"{_JOIN}{char} " if kind == "M" else f" {char} "


def _usual(char: str) -> str:
  if char == "\u200b":  # a space without width
    return " "
  if unicodedata.category(char) == "Cf" or "VARIATION SELECTOR" in unicodedata.name(char, ""):
    return ""
  kind, *codes = unicodedata.decomposition(char).split() or [""]
  return "".join(chr(int(code, 16)) for code in codes) if kind in ("<wide>", "<narrow>") else char


_LETTERS, _SPACED, _USUAL = map(_Translation, (_letter, _spaced, _usual))
