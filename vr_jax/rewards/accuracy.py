"""The accuracy reward: what an answer is worth, by problem type.

Source: the table of VideoP2R (arXiv 2511.11113) and Video-R1 (arXiv 2503.21776), which MOSS-ChatV shares. Where the
papers leave a rule open, the function that has it says `Reconstruction:`.
"""

from collections.abc import Sequence
import functools
import math
import re

from jaxtyping import Float
import numpy as np

from vr_jax import errors, records
from vr_jax.rewards import rouge, words

_ANSWER, _ANSWER_END = "<answer>", "</answer>"
_LABEL = re.compile(r"\(?([A-Za-z])[.):]\s*")
_LETTER = re.compile(r"\(?([A-Za-z])[.):]{0,2}")
_NUMBER = re.compile(
  r"[+-]?(?=\.?\d)(?:\d{1,3}(?:,\d{3})+|\d*)(\.\d*)?(?:e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE
)


def answer_text(reply: str) -> str | None:
  """What stands in the last complete <answer> block, without outer white space; None if there is no such block."""
  end = reply.rfind(_ANSWER_END)
  start = reply.rfind(_ANSWER, 0, max(end, 0))
  return None if start < 0 else reply[start + len(_ANSWER) : end].strip()


def accuracy(reply: str, answer: str, problem_type: str, options: Sequence[str] = ()) -> float:
  """The worth in [0, 1] of a whole reply's answer; 0 where it has none or it can't be read.

  Args:
    reply: any text; only its `answer_text` counts.
    answer: the right answer, as the data set has it.
    problem_type: one of records.PROBLEM_TYPES.
    options: of a multiple choice, with or without their letters.

  Raises:
    InputError: the problem type is unknown.
  """
  if problem_type not in records.PROBLEM_TYPES:
    known = ", ".join(records.PROBLEM_TYPES)
    raise errors.InputError(f"problem type {problem_type!r}: unknown; use one of {known}")
  given = answer_text(reply)
  if not given:
    return 0.0
  if problem_type == "multiple choice":
    return _multiple_choice(given, answer, options)
  if problem_type == "free-form":
    return float(_free_form([(given, answer)])[0])
  rules = {"numerical": _numerical, "OCR": _ocr, "regression": _regression}
  return rules[problem_type](given, answer)


def accuracies(
  replies: Sequence[str], examples: Sequence[records.Example]
) -> Float[np.ndarray, "replies"]:
  """`accuracy` of each reply to the example of the same index, float64; free-form answers are compared all at once."""
  given = map(answer_text, replies)
  free = {
    index: (text, example.answer)
    for index, (text, example) in enumerate(zip(given, examples, strict=True))
    if text and example.problem_type == "free-form"
  }
  compared = dict(zip(free, _free_form([*free.values()]), strict=True))
  return np.array(
    [
      compared[index]
      if index in compared
      else accuracy(reply, example.answer, example.problem_type, example.options)
      for index, (reply, example) in enumerate(zip(replies, examples, strict=True))
    ],
    np.float64,
  )


def option_letter(answer: str, options: Sequence[str] = ()) -> str | None:
  """The upper-case letter of the option that an answer names; None if it names none or several.

  In this order, whatever the case: a letter alone, in brackets, or with a full stop, colon or bracket ("B", "(b)",
  "B.", "B):"); the same before any text ("B. red"); the text of exactly one option,
  with or without a final full stop. If options are given, the letter must be one of theirs: those they start with, or
  by their order A, B, C, ….

  Reconstruction: the papers compare the letters and do not say how they are read.
  """
  answer = answer.strip()
  letters, texts = _labelled(tuple(options))
  match = _LETTER.fullmatch(answer) or _LABEL.match(answer)
  if match and (not options or match[1].upper() in letters):
    return match[1].upper()
  named = [
    letter for letter, text in zip(letters, texts, strict=True) if _plain(text) == _plain(answer)
  ]
  return named[0] if len(named) == 1 else None


def as_number(text: str) -> tuple[float, bool] | None:
  """Value and whether it was written with a decimal point; None if the text is not one finite number.

  Reconstruction: commas between groups of three digits are thousands separators, a final full stop is punctuation.
  """
  text = text.strip().removesuffix(".")
  match = _NUMBER.fullmatch(text)
  if not match:
    return None
  value = float(text.replace(",", ""))
  return (value, match[1] is not None) if math.isfinite(value) else None


@functools.lru_cache(1024)  # the options of a question are read for each reply to it
def _labelled(options: tuple[str, ...]) -> tuple[list[str], list[str]]:
  """Letters and texts of the options: the letters they start with, if all do and differ, or else A, B, C, …."""
  labels = [_LABEL.match(option.strip()) for option in options]
  letters = [label[1].upper() for label in labels if label]
  if len(set(letters)) == len(options):
    return letters, [_LABEL.sub("", option.strip(), count=1) for option in options]
  return [chr(ord("A") + index) for index in range(len(options))], list(options)


def _plain(text: str) -> str:
  return " ".join(text.lower().split()).removesuffix(".")


def _multiple_choice(given: str, answer: str, options: Sequence[str]) -> float:
  right = option_letter(answer, options)
  return float(right is not None and option_letter(given, options) == right)


def _numerical(given: str, answer: str) -> float:
  """1 if both are equal at two decimals and both, or neither, have a decimal point."""
  ours, right = as_number(given), as_number(answer)
  if ours is None or right is None:
    return 0.0
  return float(ours[1] == right[1] and round(ours[0], 2) == round(right[0], 2))


def _regression(given: str, answer: str) -> float:
  """1 - |p - g| / |g|, not below 0. Reconstruction: for g = 0, whether p is 0."""
  ours, right = as_number(given), as_number(answer)
  if ours is None or right is None:
    return 0.0
  if right[0] == 0:
    return float(ours[0] == 0)
  return 1 - min(1.0, abs(ours[0] - right[0]) / abs(right[0]))


def _ocr(given: str, answer: str) -> float:
  """1 - word error rate, not below 0: edits from the answer's words (by white space) over their number."""
  ours, right = given.split(), answer.split()
  if not right or abs(len(ours) - len(right)) >= len(right):
    return 0.0
  return 1 - min(1.0, _edit_distance(right, ours) / len(right))


def _edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
  """Insertions, deletions and substitutions that turn a into b.

  Bit-parallel, a column of the table in one integer, so that two texts of 100 kB take a moment and not minutes.

  Source: G. Myers, "A fast bit-vector algorithm for approximate string matching", J. ACM 46(3), 1999.
  """
  positions: dict[str, int] = {}
  for index, word in enumerate(a):
    positions[word] = positions.get(word, 0) | 1 << index
  full, last = (1 << len(a)) - 1, 1 << len(a) >> 1
  up, down, distance = full, 0, len(a)  # where the column's vertical differences are +1 and -1
  for word in b:
    match = positions.get(word, 0)
    level = (((match & up) + up) ^ up) | match | down
    right_up, right_down = down | (full & ~(level | up)), up & level
    distance += bool(right_up & last) - bool(right_down & last)
    right_up, right_down = (right_up << 1 | 1) & full, right_down << 1 & full
    up, down = right_down | (full & ~(level | right_up)), right_up & level
  return distance


def _free_form(pairs: Sequence[tuple[str, str]]) -> Float[np.ndarray, "pairs"]:
  """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L of (what is given, the right answer).

  Reconstruction: an answer of one word has no pair of words, so that ROUGE-2 is 0 whatever is said; it is left out of
  the mean there. The right word then scores 1 and not 2/3.
  """
  vocabulary = words.Vocabulary()
  place = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
  ids = [vocabulary.ids(text) for pair in place for text in pair]
  mean = rouge.mean_f1(ids, *np.arange(len(ids)).reshape(-1, 2).T).astype(np.float64)
  one_word = np.array([len(answer) == 1 for answer in ids[1::2]], bool)
  worth = np.where(one_word, np.minimum(1, 1.5 * mean), mean)
  return worth[[place[pair] for pair in pairs]]
