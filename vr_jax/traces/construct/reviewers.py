"""Decides whether questions are answerable from their trace, and not without it.

On captions of the simulator a rule decides, from the states that the captions tell and never from
the scene. Elsewhere a model guesses several times (`choice_requests`).
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Protocol, runtime_checkable

from vr_jax.traces.construct import asker as asker_lib
from vr_jax.traces.construct import choice_requests, equivalence, future_questions
from vr_jax.worlds import claims, sufficiency

Verdict = tuple[str, str]  # reason, one of quality.REASONS, and detail; ("", "") for a good one


@runtime_checkable
class Reviewer(Protocol):
  """Gives a verdict on each question."""

  def review(self, questions: Sequence[future_questions.FutureQuestion]) -> list[Verdict]:
    """Returns a verdict for each question, in order."""
    ...


class RuleReviewer:
  """Knows the simulator: its values, and that what an object does repeats.

  Blind, an option can be ruled out if it is no value of what is asked about, or if the question
  says so. A question is answerable blind if that leaves one option.
  """

  def review(self, questions: Sequence[future_questions.FutureQuestion]) -> list[Verdict]:
    """Returns a verdict for each question, in order."""
    return [self._verdict(question) for question in questions]

  def _verdict(self, question: future_questions.FutureQuestion) -> Verdict:
    possible = [value for value in question.values if _kind(question, value) == question.pair[1]]
    if len(possible) < 2:
      return "answerable blind", f"{possible} of {list(question.values)} fit the question"
    text = "\n".join(step.text for step in question.example.steps)
    if not sufficiency.sufficient(question.example, text):
      return "not answerable from the trace", "the states of the trace don't tell the future"
    return "", ""


def _kind(question: future_questions.FutureQuestion, value: str) -> str:
  """The attribute that a value is of, as the simulator's phrases have it; "" if of none."""
  attribute, thing = question.pair[1], question.pair[0]
  phrase = {"box": f"{value} the box", "label": f"labelled {value}", "charge": f"{value}% charged"}
  text = f"At 0s, the {thing} is {phrase.get(attribute, value)}."
  found = [
    claim.attribute
    for claim in claims.read_claims([text])
    if equivalence.normalize(claim.value) == equivalence.normalize(value)
  ]
  return found[0] if len(found) == 1 else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelReviewer:
  """Asks a model.

  guesses: at the answer of a question, blind and from the trace; fewer where options have fewer
    orders, with bounds that are the same fractions of them.
  blind_right: right blind guesses from which on a question is answerable blind.
  trace_right: right answers from the trace that are needed.
  """

  asker: asker_lib.Asker
  guesses: int
  blind_right: int
  trace_right: int

  def review(self, questions: Sequence[future_questions.FutureQuestion]) -> list[Verdict]:
    """Returns a verdict for each question; what has one is not asked about any more."""
    verdicts: list[Verdict] = [("", "")] * len(questions)
    for step in (self._blind, self._from_trace, self._from_caption):
      open_rows = [row for row, (reason, _) in enumerate(verdicts) if not reason]
      found = step([questions[row] for row in open_rows])
      for row, verdict in zip(open_rows, found, strict=True):
        verdicts[row] = verdict
    return verdicts

  def _blind(self, questions: Sequence[future_questions.FutureQuestion]) -> list[Verdict]:
    requests = [choice_requests.blind(question, self.guesses) for question in questions]
    verdicts = []
    for question, replies in zip(questions, self._ask(requests), strict=True):
      right = choice_requests.count_right(replies, question)
      if right * self.guesses >= self.blind_right * len(replies):
        verdict = ("answerable blind", f"{right} of {len(replies)} blind guesses are right")
      else:
        verdict = _unread(replies)
      verdicts.append(verdict)
    return verdicts

  def _from_trace(self, questions: Sequence[future_questions.FutureQuestion]) -> list[Verdict]:
    requests = [choice_requests.from_trace(question, self.guesses) for question in questions]
    verdicts = []
    for question, replies in zip(questions, self._ask(requests), strict=True):
      right = choice_requests.count_right(replies, question)
      if right * self.guesses >= self.trace_right * len(replies):
        verdict = ("", "")
      else:
        detail = f"{right} of {len(replies)} answers from the trace are right"
        verdict = ("not answerable from the trace", detail)
        verdict = _unread(replies) if _unread(replies)[0] else verdict
      verdicts.append(verdict)
    return verdicts

  def _from_caption(self, questions: Sequence[future_questions.FutureQuestion]) -> list[Verdict]:
    requests = [[choice_requests.from_caption(question)] for question in questions]
    verdicts = []
    for question, (reply,) in zip(questions, self._ask(requests), strict=True):
      if reply is None:
        verdicts.append(_unread([reply]))
      elif set(reply) != {question.right}:
        verdicts.append(("other option true", f"by the masked caption, true are {reply}"))
      else:
        verdicts.append(("", ""))
    return verdicts

  def _ask(
    self, requests: Sequence[Sequence[choice_requests.ChoiceRequest]]
  ) -> Iterator[list[list[str] | None]]:
    """Yields the replies to each group of requests; all groups are asked at the same time."""
    replies = iter(self.asker.ask([request for group in requests for request in group]))
    for group in requests:
      yield [next(replies) for _ in group]


def _unread(replies: Sequence[list[str] | None]) -> Verdict:
  """No verdict, if a reply is missing."""
  missing = sum(reply is None for reply in replies)
  return (
    ("no verdict", f"{missing} of {len(replies)} replies are unreadable") if missing else ("", "")
  )
