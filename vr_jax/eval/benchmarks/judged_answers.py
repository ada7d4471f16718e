"""Scores of replies that no rule can score: by a judge, a language model (`judge_questions`).

A verdict is cached by all that it depends on, so an interrupted command goes on. A judge's reply
without a readable verdict is asked for again, up to `ATTEMPTS` times in all. Then the answer counts
as unparsed, which is wrong in all protocols, and none of the steps is right; both are
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
  protocol_table,
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


def asks_judge(
  item: benchmark_item.Item,
  reply: str | None,
  *,
  rule: str = "strict",
  reads: protocol_table.JudgeReads = "open",
) -> bool:
  """Whether the score of a reply's answer is a verdict, where there is a judge.

  reply: None if there is none. rule, reads: of the protocol.
  """
  if not item.answer:
    return False
  if answer_rules.needs_judge(item) or reads in ("all", "extracted"):
    return True
  if reads == "open" or reply is None:
    return False
  return answer_rules.score(rule, reply, item).parsed is None


def has_steps(item: benchmark_item.Item) -> bool:
  """Whether the steps of a reply to an item are judged, beside its answer."""
  return item.scorer == "reasoning_steps" and bool(item.steps)


def grade(
  judge: AnswerJudge,
  items: Sequence[benchmark_item.Item],
  replies: Mapping[str, reply_store.StoredReply],
  *,
  rule: str = "strict",
  reads: protocol_table.JudgeReads = "open",
) -> JudgedReplies:
  """Judges all replies that need it. The steps of a reply that failed or is empty are missing.

  rule, reads: see `asks_judge`.

  Raises InputError if the model can't be reached or stops answering; what it said is stored.
  """
  asked: dict[tuple[str, str], judge_questions.AnswerQuestion] = {}
  measures: dict[str, Mapping[str, float]] = {}
  for item in items:
    stored = replies.get(item.id)
    reply = "" if stored is None or stored.problem else stored.reply
    is_there = stored is not None and not stored.problem
    if is_there and asks_judge(item, reply, rule=rule, reads=reads):
      if reads == "extracted":
        question = judge_questions.about_extraction(item, reply)
        asked[item.id, judge_questions.EXTRACTION] = question
      else:
        asked[item.id, judge_questions.ANSWER] = judge_questions.about_answer(item, reply)
    if has_steps(item) and reply.strip():
      for name, question in judge_questions.about_steps(item, reply).items():
        asked[item.id, name] = question
    elif has_steps(item):
      measures[item.id] = reasoning_steps.FAILED
  found = _ask(judge, asked)
  # What was extracted is compared by a rule where there is one, else by the judge.
  compared = {
    (item.id, judge_questions.ANSWER): judge_questions.about_answer(item, given)
    for item in items
    if (given := _extracted(found, item)) and _compare(item, given) is None
  }
  found |= _ask(judge, compared)
  problems = collections.Counter(each.problem for each in found.values() if each.problem)
  unreadable = problems.pop(asking.UNREADABLE, 0)
  answers = {}
  for item in items:
    given = _extracted(found, item)
    by_rule = None if given is None else _compare(item, given)
    answer = found.get((item.id, judge_questions.ANSWER))
    answer = answer or found.get((item.id, judge_questions.EXTRACTION))
    if given is not None and by_rule is not None:
      answers[item.id] = scored_answer.ScoredAnswer(parsed=given or "none", score=by_rule)
    elif answer is not None and answer.problem not in problems:
      answers[item.id] = _score(item, answer.grades)
  return JudgedReplies(
    answers=answers,
    measures=measures
    | {
      item.id: _measure(found, item.id, refused=[*problems])
      for item in items
      if (item.id, judge_questions.RECALL) in asked
    },
    unreadable=unreadable,
    not_judged=dict(problems),
  )


def _measure(
  found: Mapping[tuple[str, str], asking.Answer], name: str, *, refused: Sequence[str]
) -> dict[str, float]:
  """The measures of a reply's steps. refused: problems of prompts that leave a question out."""
  values = {}
  abouts: Mapping[reasoning_steps.Measure, str] = {
    "recall": judge_questions.RECALL,
    "precision": judge_questions.PRECISION,
  }
  for measure, about in abouts.items():
    answer = found[name, about]
    if answer.problem not in refused:
      values |= reasoning_steps.measure(
        measure,
        [
          reasoning_steps.StepVerdict(kind=kind, judgement=judgement)
          for kind, judgement in answer.grades or ()
        ],
      )
  return values


def _extracted(
  found: Mapping[tuple[str, str], asking.Answer], item: benchmark_item.Item
) -> str | None:
  """The answer that the judge found in a reply; "" if there is none in it."""
  answer = found.get((item.id, judge_questions.EXTRACTION))
  return None if answer is None else answer.grades


def _compare(item: benchmark_item.Item, given: str) -> float | None:
  """Scores an extracted answer where no judge is needed: a letter, times, a box, or none."""
  if item.options or not given:
    return float(given == item.answer)
  return reasoning_steps.interval_score(given, item.answer)


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
