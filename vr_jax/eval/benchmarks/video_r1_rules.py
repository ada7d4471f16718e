"""The rules of Video-R1 and of EasyVideoR1, whose evaluation is a descendant of it.

Video-R1 compares texts: what stands in the first <answer> block, else the whole reply. Trap: "B."
and "(B)" are wrong for "B".

EasyVideoR1 looks for a letter in several ways. Traps: "The answer is a red ball, so B" is A;
"<answer>C. dog</answer>" and "<answer>(B)</answer>" can't be read there, so other places decide.

Source: Video-R1 (arXiv 2503.21776), src/eval_bench.py; cyuQ1n/EasyVideoR1, eval/code.
"""

import re

from vr_jax.data import benchmark_item
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import relative_accuracy, scored_answer, strict_rules

_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)


def video_r1(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """Video-R1: equal texts, or Video-R1's mean relative accuracy of numbers.

  Raises InputError for other kinds of questions, which its benchmarks don't have.
  """
  block = _ANSWER.search(reply)
  text = (block[1].strip() if block else "") or reply
  if item.scorer == "mra":
    return _relative(text.replace(",", ""), item)
  if item.scorer not in ("choice", "yes_no", "caption_match"):
    raise InputError(f"{item.id}: Video-R1 has no rule for a question of kind {item.scorer!r}")
  return scored_answer.match(text.strip() or None, item.answer)


def easy_video_r1(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """EasyVideoR1: the first of several forms in which a letter A to J may be stated.

  Raises InputError for questions that are neither multiple choice nor numbers.
  """
  if item.scorer == "mra":
    return _relative(_without_ends(_number_text(reply)), item)
  if item.scorer != "choice":
    raise InputError(f"{item.id}: EasyVideoR1 has no rule for a question of kind {item.scorer!r}")
  letter = _easy_letter(reply)
  # Without a letter, the program compares the whole reply.
  return scored_answer.match(letter or reply.strip() or None, item.answer)


_NUMBER_LEAD = re.compile(
  r"(?:Therefore|So|Thus|Hence|Finally)[,\s]*(?:the\s+)?(?:final\s+|best\s+|correct\s+)?answer\s+is"
  r"[:\s]+(.+)",
  re.IGNORECASE | re.DOTALL,
)
_LETTER_LEADS = (
  re.compile(
    r"(?:Therefore|So|Thus|Hence|Finally)[,\s]*(?:the\s+)?(?:final\s+|best\s+|correct\s+)?answer\s+"
    r"is[:\s]+([A-J])\b",
    re.IGNORECASE,
  ),
  re.compile(
    r"(?:the\s+)?(?:final\s+|best\s+|correct\s+)?answer\s+is[:\s]+([A-J])\b", re.IGNORECASE
  ),
  re.compile(r"答案[是为：:]\s*([A-J])\b", re.IGNORECASE),
)
_AFTER_THINKING = re.compile(r"</think>\s*(.*?)$", re.DOTALL | re.IGNORECASE)
_LABEL_FIRST = re.compile(r"([A-J])(?:\s*[.。):]|$|\s)")
_CHOSEN = re.compile(r"(?:I\s+)?(?:choose|select|pick)\s+(?:option\s+)?([A-J])\b", re.IGNORECASE)
_LABEL_ALONE = re.compile(r"([A-J])\s*[.):\s。]?\s*$")
_LABEL_LAST = re.compile(r"\b([A-J])\s*[.)]?\s*$")
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)


def _easy_letter(reply: str) -> str | None:
  """The letter in an <answer> block alone, behind a lead, behind </think>, chosen, or in a line."""
  block = _ANSWER.search(reply)
  if block and 0 < len(block[1].strip()) <= 2:
    letter = block[1].strip().rstrip(".").upper()
    # A block of two letters such as "AB" is a part of "ABCDEFGHIJ", and so is "." without its stop.
    if letter in "ABCDEFGHIJ":
      return letter
  for lead in _LETTER_LEADS:
    if stated := lead.search(reply):
      return stated[1].upper()
  if (behind := _AFTER_THINKING.search(reply)) and (text := behind[1].strip()):
    if len(text) == 1 and text.upper() in "ABCDEFGHIJ":
      return text.upper()
    if label := _LABEL_FIRST.match(text):
      return label[1]
  if chosen := _CHOSEN.search(reply):
    return chosen[1].upper()
  for line in map(str.strip, reversed(reply.strip().split("\n")[-5:])):
    if len(line) == 1 and line.upper() in "ABCDEFGHIJ":
      return line.upper()
    if label := _LABEL_ALONE.match(line) or (len(line) < 30 and _LABEL_LAST.search(line)):
      return label[1].upper()
  return None


def _number_text(reply: str) -> str:
  """What EasyVideoR1 takes for the answer of a question that isn't multiple choice.

  Trap: the leads of letters are tried before those of numbers, and a line's last letter, too.
  """
  block = _ANSWER.search(reply)
  if block and block[1].strip():
    return block[1].strip()
  for lead in _LETTER_LEADS:
    if stated := lead.search(reply):
      return stated[1].upper()
  if stated := _NUMBER_LEAD.search(reply):
    return stated[1].strip() or reply  # the program reads the whole reply for an empty answer
  return _easy_letter(reply) or _THINKING.sub("", reply).strip() or reply.strip()


def _without_ends(text: str) -> str:
  """Drops what precedes the first digit, sign or stop, and what follows the last digit or stop."""
  text = re.sub(r"^[^\d\-+.]*", "", text.strip())
  return re.sub(r"[^\d.]*$", "", text).replace(",", "")


def _relative(text: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  right = strict_rules.right_number(item)
  try:
    number = float(text)
  except ValueError:
    return scored_answer.UNPARSED
  score = relative_accuracy.mean_relative_accuracy_video_r1(number, right)
  return scored_answer.ScoredAnswer(parsed=text.strip(), score=score)
