"""Scores of replies that no rule can score: by a judge, a language model (`judge_questions`).

A verdict is cached by all that it depends on, so an interrupted command goes on. A judge's reply
without a readable verdict is asked for again, up to `ATTEMPTS` times in all. Then the answer counts
as unparsed, which is wrong in all protocols, and steps take no part in their means; both are
counted (`JudgedReplies.unreadable`). An answer whose prompt the judge refuses, or can't hold, has
no score (`JudgedReplies.not_judged`).
"""

import collections
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from vr_jax import model_endpoint
from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import options
from vr_jax.eval.benchmarks import (
  answer_rules,
  judge_questions,
  reasoning_steps,
  reply_store,
  scored_answer,
)
from vr_jax.eval.trace_judging import asking, grade_cache, judge_models

ATTEMPTS = 3
_APPLICATION = 0x76726A61  # "vrja": marks the file as a cache of verdicts on answers
_REPLY_TOKENS = 4096  # of a verdict; steps have up to 35
_SECONDS = 600.0  # for such a reply, which isn't streamed


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerJudge:
  """A model that judges replies.

  name: in tables.
  attempts: to read a verdict; a greedy model of this process says the same each time.
  cache: file of verdicts.
  """

  name: str
  source: judge_models.ModelSource
  attempts: int
  cache: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedReplies:
  """What a judge says about replies.

  answers: by item, of those whose answers no rule can score and the judge has judged.
  measures: of reasoning, by item, see `reasoning_steps.measures`.
  unreadable: prompts without a readable verdict.
  not_judged: prompts that the judge refused or can't hold, by cause.
  """

  answers: Mapping[str, scored_answer.ScoredAnswer]
  measures: Mapping[str, Mapping[str, float]]
  unreadable: int
  not_judged: Mapping[str, int]


def endpoint(model: str, *, base_url: str, key_variable: str, cache: Path) -> AnswerJudge:
  """A model behind OpenAI's chat completions, asked greedily. base_url: empty for OpenAI's own."""
  source = judge_models.endpoint(
    model,
    base_url=base_url,
    key_variable=key_variable,
    temperature=0.0,
    limits=model_endpoint.Limits(timeout=_SECONDS, in_flight=16, max_tokens=_REPLY_TOKENS),
    max_tokens=0,
  )
  return AnswerJudge(name=model, source=source, attempts=ATTEMPTS, cache=cache)


def local(directory: Path, *, cache: Path) -> AnswerJudge:
  """A model in a directory of weights. Raises InputError if it lacks a config or tokenizer."""
  source = judge_models.local(directory, reply_tokens=_REPLY_TOKENS, flag="--judge_model")
  return AnswerJudge(name=directory.resolve().name, source=source, attempts=1, cache=cache)


def needs_judge(item: benchmark_item.Item) -> bool:
  """Whether the score of an item's answer is a verdict."""
  return answer_rules.needs_judge(item) and bool(item.answer)


def has_steps(item: benchmark_item.Item) -> bool:
  """Whether the steps of a reply to an item are judged, beside its answer."""
  return item.scorer == "reasoning_steps" and bool(item.steps)


def grade(
  judge: AnswerJudge,
  items: Sequence[benchmark_item.Item],
  replies: Mapping[str, reply_store.StoredReply],
) -> JudgedReplies:
  """Judges all replies that need it. The steps of a reply that failed or is empty are missing.

  Raises InputError if the model can't be reached or stops answering; what it said is stored.
  """
  asked: dict[tuple[str, str], judge_questions.AnswerQuestion] = {}
  measures: dict[str, Mapping[str, float]] = {}
  for item in items:
    stored = replies.get(item.id)
    reply = "" if stored is None or stored.problem else stored.reply
    if needs_judge(item) and stored is not None and not stored.problem:
      asked[item.id, judge_questions.ANSWER] = judge_questions.about_answer(item, reply)
    if has_steps(item) and reply.strip():
      for name, question in judge_questions.about_steps(item, reply).items():
        asked[item.id, name] = question
    elif has_steps(item):
      measures[item.id] = reasoning_steps.FAILED
  found = _ask(judge, asked)
  problems = collections.Counter(each.problem for each in found.values() if each.problem)
  unreadable = problems.pop(asking.UNREADABLE, 0)
  return JudgedReplies(
    answers={
      item.id: _score(item, answer.grades)
      for item in items
      if (answer := found.get((item.id, judge_questions.ANSWER))) is not None
      and answer.problem not in problems
    },
    measures=measures
    | {
      item.id: reasoning_steps.measures(
        *(
          [
            reasoning_steps.StepVerdict(kind=kind, judgement=judgement)
            for kind, judgement in found[item.id, name].grades or ()
          ]
          for name in (judge_questions.RECALL, judge_questions.PRECISION)
        )
      )
      for item in items
      if (item.id, judge_questions.RECALL) in asked
    },
    unreadable=unreadable,
    not_judged=dict(problems),
  )


def _ask(
  judge: AnswerJudge, asked: Mapping[tuple[str, str], judge_questions.AnswerQuestion]
) -> dict[tuple[str, str], asking.Answer]:
  """The verdicts, or why there is none."""
  if not asked:
    return {}
  cache = grade_cache.GradeCache(
    judge.cache,
    content="verdicts on answers",
    application=_APPLICATION,
    to_json=lambda verdict: verdict,
    from_json=lambda verdict: verdict,
  )
  with contextlib.closing(cache):
    answers = asking.ask(
      [asking.GradingPrompt(question=question) for question in asked.values()],
      judge.source.connect,
      cache,
      identity=judge.source.identity,
      attempts=judge.attempts,
      flags="--judge_",
    )
  return dict(zip(asked, answers, strict=True))


def _score(item: benchmark_item.Item, verdict: Any | None) -> scored_answer.ScoredAnswer:
  if verdict is None:
    return scored_answer.UNPARSED
  if item.scorer == "rubric":
    text = " + ".join(f"{mark:g}" for mark in verdict)
    return scored_answer.ScoredAnswer(parsed=text, score=float(sum(verdict)))
  if item.scorer == "caption_judge":
    _, choices = judge_questions.caption_question(item)
    right = options.check_letter(item.answer, list(choices.values()), item.id)
    return scored_answer.match(verdict or "none", right)
  return scored_answer.ScoredAnswer(parsed="right" if verdict else "wrong", score=float(verdict))
