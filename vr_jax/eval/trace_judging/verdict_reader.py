"""Reads grades in a judge's reply: JSON, whatever surrounds it, and nothing guessed."""

from collections.abc import Iterator, Mapping, Sequence
import json
import re
from typing import Any

from vr_jax.eval.trace_judging import grade
from vr_jax.rewards import steps

_MOST = 20_000  # characters of a reply: no verdict is as long
_REASON = 500  # characters that are kept
_NUMBER = re.compile(r"\s*([1-5])(?:\.0)?\s*(?:/\s*5\s*)?")
_TWICE = object()  # the value of a name that an object has twice
_DECODER = json.JSONDecoder(object_pairs_hook=lambda pairs: _merge(pairs))


def read(reply: str, places: Sequence[str]) -> tuple[grade.TraceGrade, ...] | None:
  """The grades of the traces at `places`, in this order; None if there is no clear verdict.

  With one place the verdict is {"consistency", "stability", "reason"}, with several an object that
  has such an object for each place. It may stand in a code block, between other text or inside
  another object. Names may have capitals; a place may be called "first_trace". A grade is an
  integer from 1 to 5, also as 4.0, "4" or "4/5"; a reason may be missing. Thoughts before
  `</think>` are no part of the reply.

  Two verdicts with different grades, a name twice in an object, 0, 3.5 or 6, and a missing place
  or scale are no verdict: nothing is guessed, rounded or left out.
  """
  found: dict[tuple[tuple[int, int], ...], tuple[grade.TraceGrade, ...]] = {}
  text = steps.without_thoughts(reply)
  for value in find_objects(text if len(text) <= _MOST else ""):
    for grades in _verdicts(value, places):
      found[tuple(each.scores for each in grades)] = grades
  return next(iter(found.values())) if len(found) == 1 else None


def find_objects(text: str) -> Iterator[Mapping[str, Any]]:
  """The JSON objects in a text, from left to right, without those inside others.

  Their names are in lower case; of a name that is there twice, the value is no JSON.
  """
  begin = text.find("{")
  while begin >= 0:
    try:
      value, end = _DECODER.raw_decode(text, begin)
      yield value
    except (ValueError, RecursionError):
      end = begin + 1
    begin = text.find("{", end)


def _merge(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  """An object with names in lower case; `_TWICE` for a name that is there twice."""
  merged: dict[str, Any] = {}
  for name, value in pairs:
    key = re.sub(r"[\s_-]*trace$", "", name.strip().casefold()) or "trace"
    merged[key] = _TWICE if key in merged else value
  return merged


def _verdicts(value: Any, places: Sequence[str]) -> Iterator[tuple[grade.TraceGrade, ...]]:
  """The verdicts in an object and in the objects inside of it."""
  if not isinstance(value, dict):
    return
  parts = [value] if len(places) == 1 else [value.get(place) for place in places]
  grades = [_grade(part) for part in parts]
  if all(each is not None for each in grades):
    yield tuple(each for each in grades if each is not None)
    return
  for inner in value.values():
    yield from _verdicts(inner, places)


def _grade(value: Any) -> grade.TraceGrade | None:
  if not isinstance(value, dict):
    return None
  consistency, stability = (_integer(value.get(scale)) for scale in grade.SCALES)
  if consistency is None or stability is None:
    return None
  reason = value.get("reason")
  text = " ".join(reason.split())[:_REASON] if isinstance(reason, str) else ""
  return grade.TraceGrade(consistency=consistency, stability=stability, reason=text)


def _integer(value: Any) -> int | None:
  """A grade; None for anything but a whole number from 1 to 5."""
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    return None
  match = _NUMBER.fullmatch(str(value))
  return int(match[1]) if match else None
