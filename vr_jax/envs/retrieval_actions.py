"""Retrieval from a pool of frames: parsing of replies, and the choice of frames for a turn.

The pool is a number of frames of a video; replies name them by their index in it, 0 to pool - 1.

Source: Video-MTR, arXiv 2508.20478, section 3.1 and appendix A, and its released code for what the
paper does not say.
"""

from collections.abc import Sequence
import dataclasses
import re
from typing import Literal

from jaxtyping import Float
import numpy as np

from vr_jax import records
from vr_jax.rewards import accuracy, numbers

_THINK = "<think>"
_KINDS = ("answer", "retrieve")
_OPEN = {kind: re.compile(rf"</think>\s*<{kind}>") for kind in _KINDS}
_TAG = re.compile(r"</?(?:think|answer|retrieve)>")
_INTERVAL = re.compile(r"\s*([0-9]+)\s*,\s*([0-9]+)\s*")
_INDEX_DIGITS = 9  # more digits are outside any pool, and int() refuses thousands of them
ANSWER_CHARACTERS = 50  # at most, in a free-form answer or a number
# Seconds. Containers round times to a clock of their own: the frame at 1 s may say 0.99999 s.
_TICK = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Action:
  """The parsed action of a reply.

  start, end: first and last frame of a retrieval.
  problem: why an action is invalid:
    format    not exactly one think block and one answer or retrieve block, or a tag in the answer
    interval  the text to retrieve is not two whole numbers in order
    range     the interval is not within the pool
    answer    the answer is not an option's letter or a number as asked for, is empty or too long
  """

  kind: Literal["answer", "retrieve", "invalid"]
  answer: str = ""
  start: int = 0
  end: int = 0
  problem: Literal["", "format", "interval", "range", "answer"] = ""


def parse(reply: str, pool: int, problem_type: str, options: Sequence[str] = ()) -> Action:
  """Parses any text into an action, in one pass.

  A valid reply is `<think>…</think>`, then `<answer>…</answer>` or
  `<retrieve>first,last</retrieve>`, with any white space around them. The reasoning ends where the
  first block begins that is of the same kind as the last one. It may contain tags; an answer may
  not.
  """
  text = reply.strip()
  kind = next((name for name in _KINDS if text.endswith(f"</{name}>")), None)
  begun = _OPEN[kind].search(text, len(_THINK)) if kind and text.startswith(_THINK) else None
  if begun is None:
    return Action(kind="invalid", problem="format")
  body = text[begun.end() : -len(f"</{kind}>")].strip()
  if kind == "retrieve":
    return _retrieval(body, pool)
  if _TAG.search(body):
    return Action(kind="invalid", problem="format")
  if not _answers(body, problem_type, options):
    return Action(kind="invalid", problem="answer")
  return Action(kind="answer", answer=body)


def actions(example: records.Example, pool: int, replies: Sequence[str]) -> list[Action]:
  """The actions of replies up to and including the first answer, which ends the episode."""
  found = []
  for reply in replies:
    found.append(parse(reply, pool, example.problem_type, example.options))
    if found[-1].kind == "answer":
      break
  return found


def spread(start: int, end: int, count: int) -> tuple[int, ...]:
  """At most `count` frames, but at least one, spaced evenly from `start` to `end` inclusive.

  Positions between two frames are rounded down.
  """
  count = max(1, min(end - start + 1, count))
  return tuple(np.linspace(start, end, count).astype(int).tolist())


def relevant_frames(example: records.Example, times: Float[np.ndarray, "pool"]) -> tuple[int, ...]:
  """Indices of the frames within the relevant spans; () if the example has none.

  times: of the frames of the pool, seconds.
  """
  seen = times + _TICK
  within = [(span.start <= seen) & (seen < span.end) for span in example.relevant]
  return tuple(np.flatnonzero(np.any(within, axis=0)).tolist()) if within else ()


def _retrieval(body: str, pool: int) -> Action:
  match = _INTERVAL.fullmatch(body)
  start, end = map(_index, match.groups()) if match else (1, 0)
  if start > end:
    return Action(kind="invalid", problem="interval")
  if end >= pool:
    return Action(kind="invalid", problem="range")
  return Action(kind="retrieve", start=start, end=end)


def _index(digits: str) -> int:
  digits = digits.lstrip("0")
  return int(digits or "0") if len(digits) <= _INDEX_DIGITS else 10**_INDEX_DIGITS


def _answers(text: str, problem_type: str, options: Sequence[str]) -> bool:
  """Whether a text has the form of an answer to a question of this type."""
  if problem_type == "multiple choice":
    return len(text) == 1 and accuracy.option_letter(text, options) == text.upper()
  if problem_type in ("numerical", "regression"):
    return len(text) <= ANSWER_CHARACTERS and numbers.read_number(text) is not None
  return len(text) > 0 and (problem_type != "free-form" or len(text) <= ANSWER_CHARACTERS)
