"""Extracts claims from free text: which object has, or does not have, which value, and when.

The parser knows the simulator's vocabulary and tolerates other word orders and paraphrases. It
accepts any text: what it does not understand yields no claim.
"""

import bisect
from collections.abc import Iterator, Sequence
import dataclasses
import re

from vr_jax.worlds import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """The claim that `attribute` of `object` is `value` from `start` to `end`.

  start, end: seconds; equal for a single instant.
  denied: the text claims that the attribute does *not* have this value.
  """

  object: str
  attribute: str
  value: str
  start: float
  end: float
  denied: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Token:
  """A word or phrase that matters.

  kind: "time", "object", "not", or an attribute.
  value: the object's or the attribute's value; "" for other kinds.
  span: (start, end) in seconds of a "time"; (0, 0) for other kinds.
  begin, end: position in the sentence, in characters.
  """

  kind: str
  value: str
  span: tuple[float, float]
  begin: int
  end: int


_OBJECTS = {
  "circle": "circle|disc|disk|ball",
  "square": "square|block",
  "triangle": "triangle",
  "star": "star",
  "cross": "cross|plus sign",
  "diamond": "diamond|rhombus",
}

_VALUES = {
  "colour": {name: name for name in config_lib.COLOURS} | {"purple": "purple|violet"},
  "size": {
    "small": "small|little|tiny",
    "medium": "medium[- ]sized|medium|mid-?sized",
    "large": "large|big|huge",
  },
  # Longer phrases first: "not visible" is a value, and "out of the box" contains "the box".
  "visibility": {
    "hidden": "hidden|hides|covered|invisible|vanishes|vanished|disappears"
    "|out of (?:sight|view)|not visible|(?:cannot|can't|can not) be seen",
    "visible": "visible|uncovered|reappears|appears|in (?:plain )?(?:sight|view)|comes? back"
    "|can be seen",
  },
  "box": {
    "outside": "outside|out of the box|leaves(?: the box)?|left the box|exits",
    "inside": "inside|(?:in|into|within) the box|enters(?: the box)?|entered the box",
  },
}

_NUMBER = r"[0-9]{1,6}(?:\.[0-9]{1,3})?"
_UNIT = r"\s?(?:seconds?|secs?|s)\b"
_PERCENT = r"\s?(?:%|per\s?cent\b)"
_LABELLED = (
  r"(?:label(?:l?ed)?|number|shows?|showing|reads|displays)"
  r"(?:\s(?:is|to|as|with|now|the|label|number)){0,3}\s"
)
_ROW = "top|upper|middle|bottom|lower"
_COLUMN = "left|centre|center|middle|right"
_CANONICAL = {"upper": "top", "lower": "bottom", "center": "centre"}
_PLACES = frozenset(config_lib.place_names(3, 3)) | frozenset(config_lib.place_names(2, 2))

_BOUNDARY = re.compile(r"[;!?\n]|\.(?![0-9])")
_GROUP_GAP = re.compile(r"[\s,]*(?:and|both)?[\s,]*(?:the|a)?[\s,]*")
_ADJECTIVE_GAP = re.compile(r"[\s,]+(?:and\s)?|")


def _token_pattern() -> re.Pattern:
  """One pattern for every kind of token. At each position the first alternative that fits wins."""
  parts = [
    rf"(?:\bbetween\s)?\b(?P<from>{_NUMBER})(?:{_UNIT})?\s?(?:to|until|and|-|–)\s?"
    rf"(?P<to>{_NUMBER}){_UNIT}",
    rf"\b(?P<at>{_NUMBER}){_UNIT}",
    rf"\b(?:at|by|t\s?=)\s?(?P<bare>{_NUMBER})(?!\.?\w|{_PERCENT})",
    rf"\b{_LABELLED}(?P<label>[0-9]{{1,2}})(?!\.?\w|{_UNIT}|{_PERCENT})",
    rf"\b(?P<charge>{_NUMBER}){_PERCENT}(?:\s(?:charged|full)\b)?",
    rf"\b(?P<row>{_ROW})[\s-]?(?P<column>{_COLUMN})\b",
    rf"\b(?P<column2>left|right)[\s-](?P<row2>{_ROW})\b",
    r"\b(?P<centre>(?:in|at|to) the (?:centre|center|middle)|centre|center)\b"
    rf"(?![\s-]?(?:{_COLUMN})\b)",
  ]
  for attribute, values in _VALUES.items():
    parts += [rf"\b(?P<{attribute}_{value}>{phrases})\b" for value, phrases in values.items()]
  parts += [rf"\b(?P<object_{name}>{phrases})s?\b" for name, phrases in _OBJECTS.items()]
  parts.append(r"\b(?P<not>not|never|no longer)\b|(?P<nt>n't\b)")
  return re.compile("|".join(parts))


_TOKEN = _token_pattern()


def read_claims(steps: Sequence[str]) -> tuple[Claim, ...]:
  """Returns every claim that the steps of a trace make, in the order of the text.

  - A claim needs a time in its own sentence.
  - A value belongs to the object right after it ("a red circle"). If there is none, it belongs to
    the object named last, even in an earlier sentence ("Then it is green at 4s"). If none was
    named yet, it belongs to the next one.
  - "The circle and the star are inside" makes the claim for both objects.
  - If a sentence has several times and starts with one, each value takes the last time before it.
    If it does not start with a time, each value takes the next time after it.
  """
  return tuple(claim for claims in read_step_claims(steps) for claim in claims)


def read_step_claims(steps: Sequence[str]) -> tuple[tuple[Claim, ...], ...]:
  """Returns the claims of each step of a trace, by the rules of `read_claims`.

  What "it" means in a step may be named in an earlier one.
  """
  by_step: list[tuple[Claim, ...]] = []
  subject: tuple[str, ...] = ()
  for step in steps:
    claims: list[Claim] = []
    for sentence in _BOUNDARY.split(step.lower()):
      tokens = list(_tokens(sentence))
      if tokens:
        sentence_claims, subject = _sentence_claims(sentence, tokens, subject)
        claims += sentence_claims
    by_step.append(tuple(claims))
  return tuple(by_step)


def read_times(text: str) -> tuple[tuple[float, float], ...]:
  """Returns the times that a text names, in order.

  Each is (start, end) in seconds, with start = end for a single instant.
  """
  return tuple(token.span for token in _tokens(text.lower()) if token.kind == "time")


def _tokens(sentence: str) -> Iterator[_Token]:
  for match in _TOKEN.finditer(sentence):
    kind, value = _parse_match(match)
    if kind:
      span = _parse_span(match) if kind == "time" else (0.0, 0.0)
      yield _Token(kind=kind, value=value, span=span, begin=match.start(), end=match.end())


def _parse_span(match: re.Match) -> tuple[float, float]:
  """The (start, end) in seconds of a time."""
  if match["to"] is not None:
    return float(match["from"]), float(match["to"])
  time = float(match["at"] or match["bare"])
  return time, time


def _parse_match(match: re.Match) -> tuple[str, str]:
  """Kind and value of a token, by the last named group that matched.

  The kind is "" for text that only looks like a token.
  """
  group = match.lastgroup or ""
  if group in ("to", "at", "bare"):
    return "time", ""
  if group == "label":
    return "label", str(int(match["label"]))
  if group == "charge":
    return "charge", f"{float(match['charge']):g}"
  if group == "centre":
    return "place", "centre"
  if group in ("column", "row2"):
    row, column = (
      (match["row"], match["column"]) if group == "column" else (match["row2"], match["column2"])
    )
    column = "centre" if column == "middle" else _CANONICAL.get(column, column)
    name = f"{_CANONICAL.get(row, row)} {column}"
    name = "centre" if name == "middle centre" else name
    return ("place", name) if name in _PLACES else ("", "")
  kind, _, value = group.partition("_")
  return ("not", "") if kind in ("not", "nt") else (kind, value)


def _sentence_claims(
  sentence: str, tokens: list[_Token], subject: tuple[str, ...]
) -> tuple[list[Claim], tuple[str, ...]]:
  """The claims of one sentence, and the objects that a later pronoun would refer to."""
  times = [index for index, token in enumerate(tokens) if token.kind == "time"]
  groups = _object_groups(sentence, tokens)
  if not times:
    return [], list(groups.values())[-1] if groups else subject
  first = next(iter(groups.values()), ())
  time_first = next(token for token in tokens if token.kind not in ("object", "not")).kind == "time"
  claims, denied, end = [], False, -1
  for index, token in enumerate(tokens):
    if token.kind == "object":
      subject = groups[index]
      denied = False
    elif token.kind == "not":
      denied, end = True, token.end
    elif token.kind != "time":
      objects = _object_after(sentence, tokens, groups, index) or subject or first
      before = bisect.bisect(times, index)
      position = max(before - 1, 0) if time_first else min(before, len(times) - 1)
      span = tokens[times[position]].span
      near = denied and token.begin - end <= 24
      claims += [_make_claim(name, token, span, denied=near) for name in objects]
  return claims, subject


def _make_claim(name: str, token: _Token, span: tuple[float, float], *, denied: bool) -> Claim:
  """Makes a claim. If an attribute has two values only, denying one claims the other."""
  pair = {"box": config_lib.BOX, "visibility": config_lib.VISIBILITY}.get(token.kind)
  value = token.value
  if denied and pair is not None:
    value, denied = pair[1 - pair.index(value)], False
  return Claim(
    object=name, attribute=token.kind, value=value, start=span[0], end=max(span), denied=denied
  )


def _object_groups(sentence: str, tokens: list[_Token]) -> dict[int, tuple[str, ...]]:
  """For each object token: that object, and those joined to it by "and" before it."""
  groups = {}
  for index, token in enumerate(tokens):
    if token.kind != "object":
      continue
    before = groups.get(index - 1, ())
    joined = before and _GROUP_GAP.fullmatch(sentence[tokens[index - 1].end : token.begin])
    groups[index] = (*before, token.value)[-8:] if joined else (token.value,)
  return groups


def _object_after(
  sentence: str, tokens: list[_Token], groups: dict[int, tuple[str, ...]], index: int
) -> tuple[str, ...]:
  """The object that a value describes as an adjective: "red circle", "large red circle"."""
  for ahead in range(index + 1, min(index + 4, len(tokens))):
    gap = sentence[tokens[ahead - 1].end : tokens[ahead].begin]
    if ahead in groups:
      return (tokens[ahead].value,) if gap and not gap.strip() else ()
    if tokens[ahead].kind in ("time", "not") or not _ADJECTIVE_GAP.fullmatch(gap):
      return ()
  return ()
