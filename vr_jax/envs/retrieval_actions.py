"""Turns about a pool of frames: how a reply is read, and which frames a turn shows.

The pool is a number of frames of a video; replies name them by their index in it, 0 to pool - 1.

Source: Video-MTR, arXiv 2508.20478, section 3.1 and appendix A, and its released code where the paper is silent.
"""

from collections.abc import Sequence
import dataclasses
import re
from typing import Literal

from jaxtyping import Float
import numpy as np

from vr_jax import records
from vr_jax.rewards import accuracy

_THINK = "<think>"
_KINDS = ("answer", "retrieve")
_OPEN = {kind: re.compile(rf"</think>\s*<{kind}>") for kind in _KINDS}
_TAG = re.compile(r"</?(?:think|answer|retrieve)>")
_INTERVAL = re.compile(r"\s*([0-9]+)\s*,\s*([0-9]+)\s*")
_INDEX_DIGITS = 9  # more are outside any pool, and Python refuses to read thousands of them
_ANSWER_CHARACTERS = 50  # of a free-form answer, at most
# A tick at 1 s is the frame at 0.99999 s: containers round times to a clock of their own.
_TICK = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Action:
  """What a reply does. start, end: first and last frame of a retrieval. problem: of what is invalid, why:

  format    not one think block, then one answer or retrieve block, and nothing else; an answer that holds a tag is not one
  interval  what is retrieved is not two whole numbers in order
  range     it is, but not within the pool
  answer    the answer is no letter of an option, no number, empty, or too long
  """

  kind: Literal["answer", "retrieve", "invalid"]
  answer: str = ""
  start: int = 0
  end: int = 0
  problem: Literal["", "format", "interval", "range", "answer"] = ""


def parse(reply: str, pool: int, problem_type: str, options: Sequence[str] = ()) -> Action:
  """Any text is one action, found in one pass.

  `<think>…</think>` and one of `<answer>…</answer>` and `<retrieve>first,last</retrieve>`, with white space around them. The
  thoughts end where a block of the kind that ends the reply first begins; they may name tags, an answer may not.
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
  """Those of replies, up to and with the first answer: what is said after it belongs to no episode."""
  found = []
  for reply in replies:
    found.append(parse(reply, pool, example.problem_type, example.options))
    if found[-1].kind == "answer":
      break
  return found


def spread(start: int, end: int, count: int) -> tuple[int, ...]:
  """At most `count` frames, and one at least, evenly from `start` to `end`, both included; rounded down."""
  count = max(1, min(end - start + 1, count))
  return tuple(np.linspace(start, end, count).astype(int).tolist())


def relevant_frames(example: records.Example, times: Float[np.ndarray, "pool"]) -> tuple[int, ...]:
  """Frames of a pool with these times (seconds) within the relevant spans; () where there are none."""
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
  """Whether a text is an answer to a question of this type, right or wrong."""
  if problem_type == "multiple choice":
    return len(text) == 1 and accuracy.option_letter(text, options) == text.upper()
  if problem_type in ("numerical", "regression"):
    return len(text) <= _ANSWER_CHARACTERS and accuracy.as_number(text) is not None
  return len(text) > 0 and (problem_type != "free-form" or len(text) <= _ANSWER_CHARACTERS)
