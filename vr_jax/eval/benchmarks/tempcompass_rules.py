"""TempCompass's rules for its three formats, as its programs apply them with --disable_llm.

Without that flag, gpt-3.5-turbo-1106 judges what the rules can't read; with it, that is wrong.
A reply is not stripped: " A" can't be read. Trap: "No…" is no, also in "Not sure" and "Nothing".

Source: llyx97/TempCompass, eval_multi-choice.py, eval_yes_no.py, eval_caption_matching.py.
"""

import re

from vr_jax.data import benchmark_item
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import scored_answer, strict_rules

_LABELLED = re.compile(r"(?:Caption|Sentence|Option|Description) ?(?:[A-Z]|\d): ")


def tempcompass(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """Scores a reply by the rule of the item's format. Raises InputError for captioning."""
  rules = {"choice": _choice, "yes_no": _yes_no, "caption_match": _caption_match}
  if item.scorer not in rules:
    raise InputError(f"{item.id}: a question of kind {item.scorer!r} needs a judge")
  return rules[item.scorer](reply.replace("</s>", ""), item)


def _choice(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """The option as the question has it ("A. up"), its letter, or what begins with "A." or "A)"."""
  for letter, line in zip(item.letters, strict_rules.lettered(item), strict=True):
    if letter == item.answer and reply == line:
      return scored_answer.match(letter, item.answer)
  known = reply[:1] in (*"ABCD",) and reply[1:2] in ("", ".", ")")
  return scored_answer.match(reply[0] if known else None, item.answer)


def _yes_no(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  lower = reply.lower()
  word = next((word for word in ("yes", "no") if lower.startswith(word)), None)
  return scored_answer.match(word, item.answer)


def _caption_match(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """An option as the question has it ("Caption A: …"), its sentence, or its label.

  Full stops in a label are ignored, and what stands before ") " if the rest is a sentence.
  """
  lines = caption_lines(item)
  labels = [line.split(": ")[0] for line in lines]
  sentences = [line.split(": ")[1] for line in lines]
  after_bracket = reply.split(") ")[1] if ") " in reply else None
  # Of several matches the program takes the last kind: a label before a sentence before a line.
  for given, texts in (
    ({reply, reply.replace(".", "")}, labels),
    ({reply, after_bracket}, sentences),
    ({reply}, lines),
  ):
    for index in reversed(range(len(texts))):
      if texts[index] in given:
        # Of two options with one text, each is as right as the other.
        right = texts[index] == texts[item.letters.index(item.answer)]
        return scored_answer.ScoredAnswer(parsed=item.letters[index], score=float(right))
  return scored_answer.UNPARSED


def caption_lines(item: benchmark_item.Item) -> list[str]:
  """The options with their labels: from the released question, or as they are.

  Raises InputError if neither has a label for each option.
  """
  released = str(item.source_record.get("question", "")).split("\n")[1:]
  for lines in ([line for line in released if line.strip()], list(item.options)):
    if len(lines) == len(item.options) and all(_LABELLED.match(line) for line in lines):
      return lines
  raise InputError(f"{item.id}: its options have no labels such as 'Caption A: '; convert it anew")
