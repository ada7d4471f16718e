"""VideoMMMU's rules: letters by where they stand, numbers at two decimals, else a substring.

Both come from MMMU. Traps:

- "A. " counts wherever it stands, so "as in vitamin A. So C" reads A: a letter with a full stop
  goes before one in brackets or alone.
- The right text counts wherever it occurs in the final clause: "not a torus" is right for "torus".
- An empty reply leaves the denominator of lmms-eval's task; here it is unparsed.

Source: the VideoMMMU task of lmms-eval by its authors: videommmu/utils.py, and the parser of
letters in _task_utils/mmmu_mcq_utils.py. In 0.7.3 the task calls an extractor of its own instead.
"""

from collections.abc import Sequence
import re

from vr_jax.data import benchmark_item
from vr_jax.eval.benchmarks import scored_answer

_PUNCTUATION = ",.!?;:'"
# What stands before the final part of a sentence.
_LEADS = (
  *("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", "are "),
  *("in total ", "total ", "identify ", "recognize ", "calculated as ", "counted as "),
  *("measured as ", "observed as ", "concluded as ", "found to be ", "equals "),
  *("determined to be ", "number of ", "value is ", "adds up to ", "have ", "has "),
)
_NUMBERS = (
  re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
  re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
  re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def video_mmmu_choice(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """The letter in the strongest form that occurs: "B." or "B:", then "(B)", "B ", an option's text.

  Of several letters in that form, the one that stands last.
  """
  if not reply:
    return scored_answer.UNPARSED
  for char in _PUNCTUATION:
    reply = reply.strip(char)
  text = f" {reply} "
  dotted = [letter for letter in item.letters if f"{letter}." in text]
  colons = [letter for letter in item.letters if f"{letter}:" in text]
  found, form = dotted + colons, "{}." if dotted else "{}:"
  if not found:
    found, form = [letter for letter in item.letters if f"({letter})" in text], "({})"
  if not found:
    found, form = [letter for letter in item.letters if f"{letter} " in text], " {} "
  places = [text.rfind(form.format(letter)) for letter in found]
  if not found and len(text.split()) > 5:
    lower = text.lower()
    texts = dict(zip(item.letters, (option.lower() for option in item.options), strict=True))
    found = [letter for letter, option in texts.items() if option in lower]
    places = [lower.rfind(texts[letter]) for letter in found]
  if not found:
    return scored_answer.UNPARSED
  return scored_answer.match(found[places.index(max(places))], item.answer)


def video_mmmu_open(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """Compares the final clause of each line, and the numbers in it, with the right answer."""
  if not reply:
    return scored_answer.UNPARSED
  clauses = _final_clauses(reply.strip().strip(".").lower())
  numbers = [number for clause in clauses for form in _NUMBERS for number in form.findall(clause)]
  given = [value for text in (*clauses, *numbers) for value in _normalize(text)]
  right = _normalize(item.answer)
  correct = any(
    any(isinstance(text, str) and text in value for text in right)
    if isinstance(value, str)
    else value in right
    for value in given
  )
  return scored_answer.ScoredAnswer(parsed=" | ".join(clauses), score=float(correct))


def _final_clauses(text: str) -> Sequence[str]:
  """What follows the last lead of each line, the shortest; the whole text if there is no lead."""
  lines = text.split("\n")
  clauses = []
  for index, line in enumerate(lines):
    leads = (*_LEADS, "=") if index == len(lines) - 1 else _LEADS
    shortest = ""
    for lead in leads:
      if lead in line:
        tail = line.split(lead)[-1].strip()
        shortest = tail if not shortest or len(tail) < len(shortest) else shortest
    if shortest and shortest not in (*":,.!?;'",):
      clauses.append(shortest)
  return clauses or [text]


def _normalize(text: str) -> list[str | float]:
  """A number rounded to two decimals, or the text in lower case.

  A single character needs a space beside it, so that it doesn't match within a word.
  """
  text = text.strip()
  try:
    return [round(float(text.replace(",", "")), 2)]
  except ValueError:
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]
