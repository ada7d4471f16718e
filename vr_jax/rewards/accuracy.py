"""The accuracy reward: scores an answer by the rule of its problem type.

Source: the table in VideoP2R (arXiv 2511.11113) and Video-R1 (arXiv 2503.21776), which MOSS-ChatV
uses too. Rules that the papers leave open are marked `Reconstruction:` in the function.
"""

from collections.abc import Sequence
import functools
import itertools
import re

from jaxtyping import Float, Int
import numpy as np

from vr_jax import errors, records
from vr_jax.rewards import numbers, rouge, words

_ANSWER, _ANSWER_END = "<answer>", "</answer>"
_LABEL = re.compile(r"\(?([A-Za-z])[.):、]\s*")
_LETTER = re.compile(r"\(?([A-Za-z])[.):、]{0,2}")


def answer_text(reply: str) -> str | None:
  """The text of the last complete <answer> block, stripped; None if there is no such block."""
  end = reply.rfind(_ANSWER_END)
  start = reply.rfind(_ANSWER, 0, max(end, 0))
  return None if start < 0 else reply[start + len(_ANSWER) : end].strip()


def accuracy(reply: str, answer: str, problem_type: str, options: Sequence[str] = ()) -> float:
  """Scores a reply's answer, in [0, 1]. A missing or unreadable answer scores 0.

  Args:
    reply: any text; only its `answer_text` counts.
    answer: the right answer, as in the data set.
    problem_type: one of records.PROBLEM_TYPES.
    options: for multiple choice, with or without their letters.

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
  """`accuracy` of each reply to the example at the same index, float64.

  Free-form answers are compared in one batch on the device.
  """
  given = map(answer_text, replies)
  free = {
    index: (text, example.answer)
    for index, (text, example) in enumerate(zip(given, examples, strict=True))
    if text and example.problem_type == "free-form"
  }
  free_scores = dict(zip(free, _free_form([*free.values()]), strict=True))
  return np.array(
    [
      free_scores[index]
      if index in free_scores
      else accuracy(reply, example.answer, example.problem_type, example.options)
      for index, (reply, example) in enumerate(zip(replies, examples, strict=True))
    ],
    np.float64,
  )


def find_reference_problem(example: records.Example) -> str:
  """Why the right answer, given as a reply, earns less than 1; "" if it earns 1."""
  answer, kind = example.answer, example.problem_type
  if kind == records.SEGMENTATION:
    return f"field 'problem_type': the answer to a {kind} query is a mask, not a text to score"
  if accuracy(f"{_ANSWER}{answer}{_ANSWER_END}", answer, kind, example.options) == 1:
    return ""
  if answer_text(f"{_ANSWER}{answer}{_ANSWER_END}") != answer.strip():
    reason = "holds tags; leave them out"
  elif kind == "multiple choice":
    reason = "is the letter of no option"
  elif kind not in ("numerical", "regression"):
    reason = "has no letter or digit; say it in words"
  elif re.search(r"\d,\d", answer):
    reason = "is no number with one meaning; write 3.5 with a point, 1,000 or 1000 without one"
  else:
    reason = (
      f"is no number for a {kind} question; write it as 12, 2.5, 1/2, 50% or 5 kg, or choose "
      "another problem_type, such as free-form"
    )
  return f"field 'answer': no reply can be right, since {answer!r:.80} {reason}"


def option_letter(answer: str, options: Sequence[str] = ()) -> str | None:
  """The upper-case letter of the option that an answer names; None if it names none or several.

  These forms are tried in order, ignoring case:

  1. a letter alone or with brackets, a full stop or a colon: "B", "(b)", "B.", "B):";
  2. a letter with a bracket, full stop or colon, before any text: "B. red";
  3. the text of exactly one option, with or without a final full stop.

  If options are given, the letter must be one of theirs. Their letters are the ones that they start
  with, else A, B, C, … in order.

  Reconstruction: the papers compare letters and do not say how they are read.
  """
  answer = words.normalize_encoding(answer).strip()
  letters, texts = _split_labels(tuple(options))
  match = _LETTER.fullmatch(answer) or _LABEL.match(answer)
  if match and (not options or match[1].upper() in letters):
    return match[1].upper()
  matches = [
    letter
    for letter, text in zip(letters, texts, strict=True)
    if _normalize(text) == _normalize(answer)
  ]
  return matches[0] if len(matches) == 1 else None


@functools.lru_cache(1024)  # a question's options are split again for each reply
def _split_labels(options: tuple[str, ...]) -> tuple[list[str], list[str]]:
  """Splits options into letters and texts.

  If not all options start with a letter, or two with the same, the letters are A, B, C, ….
  """
  options = tuple(words.normalize_encoding(option).strip() for option in options)
  labels = [_LABEL.match(option) for option in options]
  letters = [label[1].upper() for label in labels if label]
  if len(set(letters)) == len(options):
    return letters, [_LABEL.sub("", option, count=1) for option in options]
  return [chr(ord("A") + index) for index in range(len(options))], list(options)


def _normalize(text: str) -> str:
  return " ".join(text.lower().split()).removesuffix(".")


def _multiple_choice(given: str, answer: str, options: Sequence[str]) -> float:
  right = option_letter(answer, options)
  return float(right is not None and option_letter(given, options) == right)


def _numerical(given: str, answer: str) -> float:
  """1 if both numbers are equal to two decimals and both, or neither, are decimal.

  Reconstruction: whole numbers are equal only if they are the same; `numbers.Number.is_decimal`.
  """
  if (pair := _comparable(given, answer)) is None:
    return 0.0
  ours, right = pair
  if ours.value.denominator == right.value.denominator == 1:
    equal = ours.value == right.value
  else:
    equal = round(float(ours.value), 2) == round(float(right.value), 2)
  return float(equal and ours.is_decimal == right.is_decimal)


def _regression(given: str, answer: str) -> float:
  """1 - |p - g| / |g|, at least 0. Reconstruction: for g = 0, 1 if p is 0, else 0."""
  if (pair := _comparable(given, answer)) is None:
    return 0.0
  ours, right = (float(number.value) for number in pair)
  if right == 0:
    return float(ours == 0)
  return 1 - min(1.0, abs(ours - right) / abs(right))


def _comparable(given: str, answer: str) -> tuple[numbers.Number, numbers.Number] | None:
  """The numbers of both texts in one unit; None if a text is no number, or their units differ."""
  ours, right = numbers.read_number(given), numbers.read_number(answer)
  return None if ours is None or right is None else numbers.as_comparable(ours, right)


def _ocr(given: str, answer: str) -> float:
  """1 - word error rate, at least 0. See `words.split_written_words`."""
  ours, right = words.split_written_words(given), words.split_written_words(answer)
  if not right or abs(len(ours) - len(right)) >= len(right):
    return 0.0
  return 1 - min(1.0, _edit_distance(right, ours) / len(right))


def _edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
  """The number of insertions, deletions and substitutions that turn a into b.

  Bit-parallel: each column of the table is one integer. Two texts of 100 kB would otherwise take
  minutes.

  Source: G. Myers, "A fast bit-vector algorithm for approximate string matching", J. ACM 46(3),
  1999.
  """
  positions: dict[str, int] = {}
  for index, word in enumerate(a):
    positions[word] = positions.get(word, 0) | 1 << index
  full, last = (1 << len(a)) - 1, 1 << len(a) >> 1
  up, down, distance = full, 0, len(a)  # bits: where vertical differences are +1 and -1
  for word in b:
    match = positions.get(word, 0)
    level = (((match & up) + up) ^ up) | match | down
    right_up, right_down = down | (full & ~(level | up)), up & level
    distance += bool(right_up & last) - bool(right_down & last)
    right_up, right_down = (right_up << 1 | 1) & full, right_down << 1 & full
    up, down = right_down | (full & ~(level | right_up)), right_up & level
  return distance


def _free_form(pairs: Sequence[tuple[str, str]]) -> Float[np.ndarray, "pairs"]:
  """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L of each (given answer, right answer)."""
  vocabulary = words.Vocabulary()
  ids = {text: vocabulary.ids(text) for text in dict.fromkeys(itertools.chain(*pairs))}
  scores = {pair: _same_words(ids[pair[0]], ids[pair[1]]) for pair in pairs}
  differ = [pair for pair, score in scores.items() if not score]
  texts = [ids[text] for pair in differ for text in pair]
  compared = rouge.reference_f1(texts, *np.arange(len(texts)).reshape(-1, 2).T)
  scores |= zip(differ, compared, strict=True)
  return np.array([scores[pair] for pair in pairs], np.float64)


def _same_words(ours: Int[np.ndarray, "_"], right: Int[np.ndarray, "_"]) -> float:
  """1 for the same words in the same order, without asking the device; else 0."""
  return float(len(right) > 0 and np.array_equal(ours, right))
