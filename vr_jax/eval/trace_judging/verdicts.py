"""Has one judge grade all traces of a run: which prompts it gets, in which order, and how often."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import itertools
from pathlib import Path

from vr_jax import errors, records
from vr_jax.eval.trace_judging import (
  asking,
  grade,
  grade_cache,
  judge_models,
  judged_questions,
  rubric,
  rule_grader,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgingPlan:
  """How a judge is asked.

  judge: its name in judged.json.
  alone: whether a prompt shows one trace; else both policies' traces, in both orders.
  runs: how often each prompt is asked.
  attempts: readings of a prompt's replies before it has no verdict.
  """

  judge: str
  alone: bool
  runs: int
  attempts: int

  def orders(self, evaluations: Sequence[str]) -> list[tuple[str, ...]]:
    """The evaluations that each prompt about a question shows, in the order of the prompt."""
    return [*itertools.permutations(evaluations, 1 if self.alone else len(evaluations))]


def by_model(
  judged: judged_questions.JudgedSet,
  plan: JudgingPlan,
  source: judge_models.ModelSource,
  cache: Path,
  *,
  tick: asking.Tick,
) -> list[grade.TraceVerdict]:
  """Verdicts of a language model: for each question, run and order one. Raises as `asking.ask`.

  cache: file of its grades.
  """
  cases = [
    (question, run, order)
    for run in range(plan.runs)
    for question in judged.questions
    for order in plan.orders(list(judged.evaluations))
  ]
  prompts = [
    asking.GradingPrompt(question=rubric.ask_about(question, order), run=run)
    for question, run, order in cases
  ]
  with contextlib.closing(grade_cache.GradeCache(cache)) as grades:
    answers = asking.ask(
      prompts,
      source.connect,
      grades,
      identity=source.identity,
      attempts=plan.attempts,
      tick=tick,
    )
  return [
    grade.TraceVerdict(
      judge=plan.judge,
      id=question.id,
      video=question.video,
      run=run,
      order=order,
      grades=None if answer.grades is None else dict(zip(order, answer.grades, strict=True)),
      problem=answer.problem,
    )
    for (question, run, order), answer in zip(cases, answers, strict=True)
  ]


def by_rule(
  judged: judged_questions.JudgedSet, examples: Mapping[str, records.Example], *, judge: str
) -> list[grade.TraceVerdict]:
  """Verdicts of the rule: for each question and evaluation one, each trace alone.

  examples: by id, with their true states.
  judge: its name in judged.json.

  Raises:
    InputError: a question is not among them, has no true states, or has changed since it was
      evaluated.
  """
  verdicts = []
  for question in judged.questions:
    example = examples.get(question.id)
    if example is None or example.source != "simulator" or not example.states:
      raise errors.InputError(
        f"--judge=rule: question {question.id!r} has no true states in the run's data; "
        "judge real videos with --judge=local or --judge=endpoint"
      )
    if tuple(s.text for s in example.steps) != tuple(s.text for s in question.reference):
      raise errors.InputError(
        f"--judge=rule: question {question.id!r} has another reference in the run's data than in "
        "its evaluations; run --mode=eval again"
      )
    verdicts += [
      grade.TraceVerdict(
        judge=judge,
        id=question.id,
        video=question.video,
        run=0,
        order=(name,),
        grades={name: rule_grader.grade_question(example, question.traces[name])},
      )
      for name in judged.evaluations
    ]
  return verdicts
