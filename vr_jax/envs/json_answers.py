"""Reads the JSON answers of models, which are often nearly JSON: a key frame, or a box.

    <think>…</think> <answer>[{"frame_idx": 7, "object description": "the red car"}]</answer>
    <think>…</think> <answer>[{'bbox_2d': [39, 289, 608, 773], 'label': 'car'}]</answer>

Accepted are code fences, single quotes, commas before a closing bracket, text around the value, a
value without its list or without the answer tags, and numbers as texts. Of several values that fit,
the last one counts; a list of several objects is none. Everything else is a `problem`. Texts are
parsed by the rules below and never evaluated.
"""

import dataclasses
import math
import re
from typing import Any, Literal
import unicodedata

from vr_jax.rewards import steps

Problem = Literal["", "json", "frame", "range", "description", "box"]

_FRAME = ("frame_idx", "frame_index", "frame")
_DESCRIPTION = ("object description", "object_description", "description")
_BOX = ("bbox_2d", "bbox", "box")
_ANSWER, _ANSWER_END = "<answer>", "</answer>"
_DEPTH = 6  # of lists and objects; deeper ones are not read
_OPENING = re.compile(r"[\[{]")
_MOST_FAILURES = 200  # each may read the rest of the text
_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"[-+]?(?:\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})(?:[eE][-+]?\d{1,3})?(?![\w.])")
_WORD = re.compile(r"-?[A-Za-z]+")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
# Python writes these; they are read so that a box with one is a wrong box, not a missing one.
_WORDS |= {word: float(word) for word in ("NaN", "nan", "Infinity", "-Infinity", "inf", "-inf")}
# A quote ends a text only where the value ends, so that 'the dog's tail' is one text.
_TEXTS = {
  quote: re.compile(rf"{quote}((?:[^\\{quote}]|\\.|{quote}(?!\s*[,:}}\]]))*){quote}", re.S)
  for quote in "'\""
}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.S)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_FOUR_NUMBERS = re.compile(
  r"[\[(]?\s*" + r"\s*,\s*".join([f"({_NUMBER.pattern})"] * 4) + r"\s*[\])]?"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyFrame:
  """The key frame that a reply chooses.

  index: of the frame among those shown, from 0; -1 if there is a problem other than "range".
  description: of the object, in one line; "" if there is a problem other than "range".
  problem: why it can't be used:
    json         there is no object with an index, or there are several
    frame        the index is no whole number
    range        the index is that of no frame
    description  there is no description, or it is too long
  """

  index: int = -1
  description: str = ""
  problem: Problem = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
  """The box that a reply gives: (left, top, right, bottom), in the units of the reply.

  problem: why it can't be used:
    json  there is no box, or there are several
    box   it is not four finite numbers from 0 on, or its right or lower edge is not after the other
  """

  corners: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
  problem: Problem = ""


def read_key_frame(reply: str, frames: int, longest: int) -> KeyFrame:
  """Reads the key frame of a reply.

  Args:
    reply: any text.
    frames: how many were shown.
    longest: the most bytes of a description, which later turns repeat.
  """
  found = [one for one in map(_only, _values(_answer(reply))) if _entry(one, _FRAME)]
  if not found:
    return KeyFrame(problem="json")
  (number,), text = _entry(found[-1], _FRAME), _entry(found[-1], _DESCRIPTION)
  index = _number(number)
  if index is None or index != math.floor(index):
    return KeyFrame(problem="frame")
  description = _one_line(text[0]) if text and isinstance(text[0], str) else ""
  if not description or len(description.encode()) > longest:
    return KeyFrame(problem="description")
  inside = 0 <= index < frames
  return KeyFrame(index=int(index), description=description, problem="" if inside else "range")


def read_box(reply: str) -> Box:
  """Reads the box of a reply. reply: any text."""
  answer = _answer(reply)
  found = [box for box in map(_box_of, _values(answer)) if box is not None]
  if not found:
    numbers = _FOUR_NUMBERS.fullmatch(answer.strip())
    if not numbers:
      return Box(problem="json")
    found = [list(numbers.groups())]
  corners = [_number(each) for each in found[-1]]
  if len(corners) != 4 or any(each is None or each < 0 for each in corners):
    return Box(problem="box")
  left, top, right, bottom = (each or 0.0 for each in corners)
  if not (left < right and top < bottom):
    return Box(problem="box")
  return Box(corners=(left, top, right, bottom))


def _answer(reply: str) -> str:
  """The text in the last answer tags; without them, the text behind the thoughts."""
  text = steps.without_thoughts(reply)
  _, opened, answer = text.rpartition(_ANSWER)
  return answer.partition(_ANSWER_END)[0] if opened else text.replace(_ANSWER_END, "")


def _values(text: str) -> list[Any]:
  """All lists and objects in a text that are not inside of another one, in order.

  After some brackets that open neither it gives up: the text is not an answer.
  """
  found, place, failures = [], 0, 0
  while (match := _OPENING.search(text, place)) is not None and failures < _MOST_FAILURES:
    try:
      value, place = _value(text, match.start(), _DEPTH)
      found.append(value)
    except ValueError:
      place, failures = match.start() + 1, failures + 1
  return found


def _value(text: str, place: int, depth: int) -> tuple[Any, int]:
  """Parses the value at a place; returns it and the place after it. Raises ValueError."""
  place = _skip(text, place)
  first = text[place : place + 1]
  if first in ("[", "{"):
    if not depth:
      raise ValueError("too deep")
    return _list(text, place, depth) if first == "[" else _object(text, place, depth)
  if first in _TEXTS and (match := _TEXTS[first].match(text, place)):
    value = _ESCAPE.sub(_unescape, match[1]).encode("utf-16", "surrogatepass")
    return value.decode("utf-16", "replace"), match.end()  # pairs of escapes are one character
  if match := _NUMBER.match(text, place):
    return float(match[0]), match.end()
  if (match := _WORD.match(text, place)) and match[0] in _WORDS:
    return _WORDS[match[0]], match.end()
  raise ValueError("no value")


def _list(text: str, place: int, depth: int) -> tuple[list[Any], int]:
  values: list[Any] = []
  place = _skip(text, place + 1)
  while text[place : place + 1] != "]":
    value, place = _value(text, place, depth - 1)
    values.append(value)
    place = _next(text, place, "]")
  return values, place + 1


def _object(text: str, place: int, depth: int) -> tuple[dict[str, Any], int]:
  values: dict[str, Any] = {}
  place = _skip(text, place + 1)
  while text[place : place + 1] != "}":
    name, place = _value(text, place, depth - 1)
    place = _skip(text, place)
    if not isinstance(name, str) or text[place : place + 1] != ":":
      raise ValueError("no name")
    values[name], place = _value(text, place + 1, depth - 1)
    place = _next(text, place, "}")
  return values, place + 1


def _next(text: str, place: int, end: str) -> int:
  """The place of the next entry or of the end, behind a comma."""
  place = _skip(text, place)
  if text[place : place + 1] == ",":
    return _skip(text, place + 1)
  if text[place : place + 1] != end:
    raise ValueError("no comma")
  return place


def _skip(text: str, place: int) -> int:
  match = _SPACE.match(text, place)
  return match.end() if match else place


def _unescape(match: re.Match[str]) -> str:
  escape = match[1]
  return chr(int(escape[1:], 16)) if len(escape) > 1 else _ESCAPED.get(escape, escape)


def _only(value: Any) -> Any:
  """The entry of a list of one; another value as it is."""
  while isinstance(value, list) and len(value) == 1:
    value = value[0]
  return value


def _entry(value: Any, names: tuple[str, ...]) -> list[Any]:
  """The entry of an object under the first of some names, in a list; [] if there is none."""
  if not isinstance(value, dict):
    return []
  lower = {name.strip().lower(): entry for name, entry in value.items()}
  return [lower[name] for name in names if name in lower][:1]


def _box_of(value: Any) -> list[Any] | None:
  """The entries of a box, which needn't be numbers where a name says that it is one; else None."""
  value = _only(value)
  if named := _entry(value, _BOX):
    box = _only(named[0])
    return box if isinstance(box, list) else []
  is_plain = isinstance(value, list) and len(value) == 4
  return value if is_plain and all(_number(each) is not None for each in value) else None


def _number(value: Any) -> float | None:
  """A finite number, or one that is given as a text."""
  if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
    value = float(value)
  if isinstance(value, bool) or not isinstance(value, float) or not math.isfinite(value):
    return None
  return value


def _one_line(text: str) -> str:
  """A text without line breaks and control characters, in composed form (NFC)."""
  visible = "".join(" " if unicodedata.category(each) in ("Cc", "Cs") else each for each in text)
  return unicodedata.normalize("NFC", " ".join(visible.split()))
