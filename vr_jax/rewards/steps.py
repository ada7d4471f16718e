"""Splits a reply's reasoning into steps. Accepts any text, in time linear in its length."""

import functools
import itertools
import re

_THINK, _THINK_END = "<think>", "</think>"

# A sentence ends with a full stop, perhaps a closing quote or bracket, and white space; in
# languages without spaces, with an ideographic full stop. The pattern starts with one of a few
# characters, which keeps the search fast and linear.
_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]]?\s+|[。！？]\s*""")

# "3." "3)" "(3)" "3:" "Step 3:" "-" "*" "•": begins a step and is not part of it.
_NUMBER = re.compile(
  r"(?:[-*•]|(?:step\s{0,3})?[(\[]?\d{1,4}[.):\]]{1,2}|step\s{0,3}\d{1,4})\s+", re.I
)

# "At 2s," "[0:02]" "2.5 s:" "From 2 to 4 seconds": begins a step and is part of it.
_TIME = re.compile(
  r"(?:(?:then|so|and)\s{1,3})?(?:(?:at|from|between|by|after|until)\s{1,3})?[(\[]?t?\s?=?\s?"
  r"(?:\d{1,6}:\d\d|\d{1,6}(?:\.\d{1,6})?\s?(?:s|sec|secs|seconds?)?\s?(?:-|–|to|and)\s?"
  r"\d{1,6}(?:\.\d{1,6})?\s?(?:s|sec|secs|seconds?)"
  r"|\d{1,6}(?:\.\d{1,6})?\s?(?:s|sec|secs|seconds?))\b",
  re.I,
)


def think_text(reply: str) -> str:
  """The text between the first <think> and the next </think>; "" without <think>.

  Reconstruction: a trace without </think> (the reply ran out of tokens) ends at <answer> or at the
  end of the reply.
  """
  _, opened, rest = reply.partition(_THINK)
  if not opened:
    return ""
  text, closed, _ = rest.partition(_THINK_END)
  return text if closed else rest.partition("<answer>")[0]


def without_thoughts(reply: str) -> str:
  """The part of a reply behind a reasoning model's own thoughts, stripped.

  Thoughts end at the last </think>. The <think> before them may be missing, since the chat
  templates of some models write it. Thoughts that never end (the reply ran out of tokens) leave "".
  """
  _, ended, rest = reply.rpartition(_THINK_END)
  return "" if not ended and rest.lstrip().startswith(_THINK) else rest.strip()


def split_steps(think: str) -> list[str]:
  """Splits a trace into its steps, in order, stripped and without list numbers.

  - A line that starts with a number or a time is one step. If a later sentence of that line starts
    with a time, that sentence begins a new step.
  - Other lines are split into sentences, each a step.
  - Steps without a letter or digit are dropped.

  Reconstruction: the paper splits the trace into sub-steps and does not say how.
  """
  steps = []
  for line in filter(None, map(str.strip, think.splitlines())):
    steps += _split_line(line)
  return [step for step in steps if any(map(str.isalnum, step))]


@functools.lru_cache(4096)  # replies of a group share most lines
def _split_line(line: str) -> tuple[str, ...]:
  number = _NUMBER.match(line)
  text = line[number.end() :].strip() if number else line
  ends = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
  sentences = [text[begin:end].strip() for begin, end in itertools.pairwise(ends)]
  if not number and not _TIME.match(text):
    return tuple(sentences)
  steps = [[sentences[0]]]
  for sentence in sentences[1:]:
    if _TIME.match(sentence):
      steps.append([])
    steps[-1].append(sentence)
  return tuple(" ".join(parts) for parts in steps)
