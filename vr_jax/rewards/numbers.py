"""Reads the numbers of answers: "3", "1,000", "2.5", "1/2", "50%", "three", "$5", "5 kg".

What has two readings has none here: "3,5" is 3.5 in one country and a slip in another.
"""

from collections.abc import Sequence
import dataclasses
from fractions import Fraction
import math
import re
import sys
import unicodedata

from vr_jax.rewards import words

_LONGEST = 400  # characters; a longer number is beyond a float's range, or not meant as a number
_SIGN = r"(?P<sign>[+-]?)"
_CURRENCY = r"(?P<currency>[A-Z]{0,3}[$¢-¥֏؋฿៛\u20a0-\u20cf]|[A-Z]{3}(?=\s))?\s?"
_GROUPED = (
  r"[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?:['’]\d{3})+|[1-9]\d{0,2}(?: \d{3})+"
  r"|[1-9]\d?(?:,\d\d)+,\d{3}"  # lakhs and crores: 12,34,567
)
_FRACTION = r"(?:(?P<whole>\d+) +)?(?P<over>\d+) ?/ ?(?P<under>\d+)"
_DECIMAL = rf"(?=\.?\d)(?P<digits>{_GROUPED}|\d*)(?P<point>\.\d+)?(?P<power>[eE][+-]?\d{{1,3}})?"
_NUMBER = re.compile(
  rf"{_SIGN}{_CURRENCY}(?:{_FRACTION}|{_DECIMAL})(?P<rest>.*)", re.ASCII | re.DOTALL
)
_WORDS = re.compile(r"(?P<sign>(?:minus|negative|plus)\s+)?(?P<rest>[a-z].*)", re.I | re.DOTALL)
_BETWEEN_WORDS = re.compile(r"(?<=ty)-|\s+", re.I)  # "twenty-one"
# At most three words, such as "square metres" or "km/h".
_LETTER, _SIGN_IN_UNIT = r"(?:[^\W\d_²³¹]|[°%‰$£€¥])", r"['\"′″/·.*^²³-]"
_UNIT = re.compile(
  rf"/?{_LETTER}(?:{_LETTER}|{_SIGN_IN_UNIT})*(?: (?:{_LETTER}|{_SIGN_IN_UNIT})+){{0,2}}"
)
_SIGNS = str.maketrans({"−": "-", "⁄": "/", "∕": "/", "٪": "%", "٫": ".", "٬": ","})

_ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen")
_TEENS += ("eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_BELOW_TWENTY = {word: value for value, word in enumerate((*_ONES, *_TEENS), start=1)}
_TIMES_TEN = {word: 10 * value for value, word in enumerate(_TENS, start=2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Words that make of a number another one, so that they are no unit: "two thirds", "3 or four".
_NO_UNIT = frozenset(
  (
    *(*_BELOW_TWENTY, *_TIMES_TEN, *_SCALES, "zero", "hundred", "point", "dozen", "half", "third"),
    *("thirds", "quarter", "quarters", "and", "or", "to", "plus", "minus", "over", "of", "x", "e"),
  )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
  """A number with its unit.

  value: as written, so 50 for "50%".
  unit: "%", a currency, or the text behind the number; "" without one.
  has_point: whether it was written with a decimal point.
  """

  value: Fraction
  unit: str = ""
  has_point: bool = False

  @property
  def is_decimal(self) -> bool:
    """Whether it was written with a decimal point or is not whole."""
    return self.has_point or self.value.denominator != 1


def read_number(text: str) -> Number | None:
  """Parses a text that is one number; None if it is anything else, or can be read in two ways.

  - Commas, apostrophes or spaces between groups of three digits are thousands separators. A decimal
    comma is not read, nor is "0,500". A final full stop is punctuation.
  - "1/2", "1 1/2" and "½" are fractions; "2.5 million" and "twenty-one" are numbers.
  - Percent signs, currencies and up to three words behind the number are its unit.
  - Digits of any script are digits.

  Reconstruction: the papers compare numbers and do not say how they are read.
  """
  if len(text) > _LONGEST:
    return None
  text = _usual_signs(words.normalize_encoding(text)).strip().removesuffix(".").rstrip()
  if match := _NUMBER.fullmatch(text):
    value, rest = _in_digits(match), match["rest"]
    currency, has_point = match["currency"] or "", match["point"] is not None
  elif match := _WORDS.fullmatch(text):
    tokens = re.split(_BETWEEN_WORDS, match["rest"].lower())
    value, used = _in_words(tokens)
    rest = " ".join(re.split(_BETWEEN_WORDS, match["rest"])[used:])
    currency, has_point = "", False
    if (match["sign"] or "").lower().startswith(("minus", "negative")) and value is not None:
      value = -value
  else:
    return None
  scale, _, after = rest.strip().partition(" ")
  if value is not None and scale.lower() in _SCALES:
    value, rest = value * _SCALES[scale.lower()], after
    has_point = has_point and value.denominator != 1
  unit = _read_unit(rest.strip(), currency)
  if value is None or unit is None or abs(value) > sys.float_info.max:
    return None
  return Number(value=value, unit=unit, has_point=has_point)


def as_comparable(ours: Number, right: Number) -> tuple[Number, Number] | None:
  """Two numbers in one unit; None if their units differ, or if only one has a unit.

  "50%" beside a number without a unit is 0.5.
  """
  if ours.unit == right.unit:
    return ours, right
  if {ours.unit, right.unit} == {"", "%"}:
    return _without_percent(ours), _without_percent(right)
  return None


def _without_percent(number: Number) -> Number:
  if not number.unit:
    return number
  return Number(value=number.value / 100)


def _usual_signs(text: str) -> str:
  """ASCII digits for those of other scripts, "1/2" for "½", "-" for the sign of subtraction."""
  if text.isascii():
    return text
  characters = []
  for char in text.translate(_SIGNS):
    kind, *codes = unicodedata.decomposition(char).split() or [""]
    if unicodedata.category(char) == "Nd":
      char = str(unicodedata.decimal(char))
    elif kind == "<fraction>":
      char = " " + "".join(chr(int(code, 16)) for code in codes).translate(_SIGNS)
    elif unicodedata.category(char) == "Zs":
      char = " "
    characters.append(char)
  return "".join(characters)


def _in_digits(match: re.Match[str]) -> Fraction | None:
  """The value of a match of `_NUMBER`; None if it is divided by zero."""
  if match["over"]:
    if not int(match["under"]):
      return None
    value = int(match["whole"] or 0) + Fraction(int(match["over"]), int(match["under"]))
  else:
    digits = re.sub(r"\D", "", match["digits"]) or "0"
    value = Fraction(f"{digits}{match['point'] or ''}{match['power'] or ''}")
  return -value if match["sign"] == "-" else value


def _in_words(tokens: Sequence[str]) -> tuple[Fraction | None, int]:
  """The value of the number that tokens begin with, and how many of them it has."""
  if tokens[0] == "zero":
    total, used = 0, 1
  else:
    total, used, largest = 0, 0, math.inf
    while used < len(tokens):
      begin = used + (used > 0 and tokens[used] == "and")
      value, end = _below_thousand(tokens, begin)
      if end == begin:
        break
      scale = _SCALES.get(tokens[end], 1) if end < len(tokens) else 1
      if scale >= largest:
        return None, 0
      total, largest, used = total + value * scale, scale, end + (scale > 1)
    if not used:
      return None, 0
  value = Fraction(total)
  if tokens[used : used + 1] == ["point"]:
    known = {"zero": 0, **{word: number for number, word in enumerate(_ONES, start=1)}}
    start = used = used + 1
    while used < len(tokens) and tokens[used] in known:
      used += 1
      value += Fraction(known[tokens[used - 1]], 10 ** (used - start))
    if used == start:
      return None, 0
  return value, used


def _below_thousand(tokens: Sequence[str], begin: int) -> tuple[int, int]:
  """The number below 1,000 at a token, and where it ends: `begin` if there is none."""
  value, end = _below_hundred(tokens, begin)
  if 0 < value < 10 and tokens[end : end + 1] == ["hundred"]:
    value, end = 100 * value, end + 1
    begin = end + (tokens[end : end + 1] == ["and"])
    more, after = _below_hundred(tokens, begin)
    value, end = (value + more, after) if after > begin else (value, end)
  return value, end


def _below_hundred(tokens: Sequence[str], begin: int) -> tuple[int, int]:
  first, *rest = (*tokens[begin : begin + 2], "", "")
  if first in _BELOW_TWENTY:
    return _BELOW_TWENTY[first], begin + 1
  if first not in _TIMES_TEN:
    return 0, begin
  ones = _BELOW_TWENTY.get(rest[0], 10)
  return _TIMES_TEN[first] + (ones if ones < 10 else 0), begin + 1 + (ones < 10)


def _read_unit(rest: str, currency: str) -> str | None:
  """The unit of a number between a currency and a text; None if that text is no unit."""
  if rest.lower() in ("percent", "per cent"):
    rest = "%"
  if not rest:
    return currency
  if currency or not _UNIT.fullmatch(rest) or not _NO_UNIT.isdisjoint(rest.lower().split()):
    return None
  return " ".join(word.casefold() if len(word) > 3 else word for word in rest.split())
