"""Filters of constructed questions. Each gives the reason for which a question is left out.

The first four, and those of `duplicates` and `video_frames`, are rules for every set. Whether a
question is answerable from its trace, and not without it, is decided by a rule for captions of the
simulator and by a model otherwise (`reviewers`).
"""

import dataclasses
import itertools
import string

from vr_jax import records
from vr_jax.rewards import judge_leak
from vr_jax.traces.construct import equivalence, future_questions
from vr_jax.worlds import claims

# In the order in which they are asked; the first that applies is the reason.
REASONS = (
  "times",
  "length",
  "options",
  "question leaks",
  "trace leaks",
  "answerable blind",
  "not answerable from the trace",
  "other option true",
  "no verdict",
  "duplicate",
  "near-duplicate",
  "in a benchmark",
)
_RUN = 8  # words in a row of the masked caption that a question may not have
_SENTENCE = 4  # words of a sentence of the masked caption, from which on a step may not have it


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityRules:
  """Bounds of the filters.

  shown_seconds, masked_seconds: least lengths of both spans.
  least_steps, most_steps: of a trace.
  most_words: of the question, an option or a step.
  """

  shown_seconds: float
  masked_seconds: float
  least_steps: int
  most_steps: int
  most_words: int


def find_fault(question: future_questions.FutureQuestion, rules: QualityRules) -> tuple[str, str]:
  """The first rule that a question breaks: (reason, what is wrong); ("", "") if it breaks none."""
  checks = {
    "times": lambda: _times(question, rules),
    "length": lambda: _length(question.example, rules),
    "options": lambda: _options(question),
    "question leaks": lambda: _question_leak(question),
    "trace leaks": lambda: _trace_leak(question),
  }
  for reason, check in checks.items():
    if detail := check():
      return reason, detail
  return "", ""


def _times(question: future_questions.FutureQuestion, rules: QualityRules) -> str:
  example, span = question.example, question.video.span
  shown, masked = example.shown, example.masked
  if masked is None:
    return "nothing is masked"
  if not span.start <= shown.start < shown.end <= masked.start < masked.end <= span.end:
    return (
      f"shown {shown.start:g} to {shown.end:g} s and masked {masked.start:g} to {masked.end:g} s "
      f"are no two parts of {span.start:g} to {span.end:g} s"
    )
  if shown.end - shown.start < rules.shown_seconds:
    return f"{shown.end - shown.start:g} s are shown"
  if masked.end - masked.start < rules.masked_seconds:
    return f"{masked.end - masked.start:g} s are masked"
  for before, after in itertools.pairwise(example.steps):
    if after.start < before.start or after.end < before.end:
      return f"steps at {before.start:g} and {after.start:g} s are out of order"
  for step in example.steps:
    if not shown.start <= step.start <= step.end:
      return f"a step lasts from {step.start:g} to {step.end:g} s"
  return ""


def _length(example: records.Example, rules: QualityRules) -> str:
  if not rules.least_steps <= len(example.steps) <= rules.most_steps:
    return f"{len(example.steps)} steps"
  texts = (example.question, *example.options, *(step.text for step in example.steps))
  for text in texts:
    count = len(equivalence.normalize(text).split())
    if not 0 < count <= rules.most_words:
      return f"{count} words: {text:.60}"
  return ""


def _options(question: future_questions.FutureQuestion) -> str:
  """Options have to differ in meaning, and no wrong one may be true in the masked span."""
  example, values = question.example, question.values
  letters = string.ascii_uppercase[: len(values)]
  if len(values) < 2 or example.answer not in letters or example.answer == "":
    return f"answer {example.answer!r} of {len(values)} options"
  labelled = tuple(f"{letter}. {value}" for letter, value in zip(letters, values, strict=True))
  if example.options != labelled:
    return f"options {list(example.options)!r:.80} are not lettered in order"
  for one, other in itertools.combinations(values, 2):
    if equivalence.may_be_same(one, other):
      return f"{one!r} and {other!r} may mean the same"
  for value in values:
    for true in question.future:
      if value != question.right and equivalence.may_be_same(value, true):
        return f"{value!r} may be true in the masked span, as {true!r} is"
  return ""


def _question_leak(question: future_questions.FutureQuestion) -> str:
  """A question may not name the answer alone among the options, nor quote the masked caption."""
  text = question.example.question
  named = [value for value in question.values if equivalence.contains(text, value)]
  if question.right in named and len(named) < len(question.values):
    return f"the question names the answer, {question.right!r}"
  if judge_leak.states_answer(question.example, text):
    return "the question states the answer"
  future = equivalence.shingles([question.video.captions[-1].text], _RUN)
  quoted = future & equivalence.shingles([text], _RUN)
  return f"the question quotes the masked caption: {' '.join(min(quoted))}" if quoted else ""


def _trace_leak(question: future_questions.FutureQuestion) -> str:
  """A trace may not tell of the masked span, nor state the answer."""
  example, captions = question.example, question.video.captions
  masked = example.masked
  assert masked is not None  # _times
  # Where captions tell changes, the instant at which the masked span begins is the last shown one.
  tells_change = captions[-1].asked == captions[-1].end
  earlier = {
    equivalence.normalize(part) for caption in captions[:-1] for part in caption.text.split(".")
  }
  future = [equivalence.normalize(part) for part in captions[-1].text.split(".")]
  new = [part for part in future if part not in earlier and len(part.split()) >= _SENTENCE]
  for step in example.steps:
    if step.end > masked.start:
      return f"a step lasts until {step.end:g} s, into the masked span"
    times = claims.read_times(step.text)
    if any(
      max(start, end) > masked.start or (start == masked.start and not tells_change)
      for start, end in times
    ):
      return f"a step names a masked time: {step.text:.80}"
    if judge_leak.states_answer(example, step.text):
      return f"a step states the answer: {step.text:.80}"
    normal = f" {equivalence.normalize(step.text)} "
    if quoted := [part for part in new if f" {part} " in normal]:
      return f"a step quotes the masked caption: {quoted[0]:.80}"
  return ""
