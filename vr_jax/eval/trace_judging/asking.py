"""Puts prompts to a judge, a language model: each once, with its verdict cached once it is read.

What is in the cache is not asked again, so after any stop (a kill, a spent budget, an endpoint that
fails) the same command goes on. A reply without a clear verdict is asked for again, up to a number
of attempts over all starts; then the prompt has no verdict. It is counted, never graded.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import re
import threading
from typing import Any, Protocol, runtime_checkable

from vr_jax import errors, model_endpoint
from vr_jax.eval.trace_judging import grade_cache
from vr_jax.rewards import judge_cache

Tick = Callable[..., None]
Grades = Any  # what `EndpointQuestion.read` returns; of traces, a tuple of `grade.TraceGrade`

UNREADABLE = "no readable verdict"
TOO_LONG = "prompt too long for the model"
_STOPPING = (401, 403, 404)  # statuses that any further request would get, too
_AT_ONCE = 64  # prompts that a local model gets before its grades are stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradingPrompt:
  """A prompt of one run. Equal prompts of a run share their verdict; those of two runs don't."""

  question: model_endpoint.EndpointQuestion
  run: int = 0

  def key(self, identity: Sequence[str]) -> bytes:
    """Its key in the cache. identity: all that the verdict depends on beside the prompt."""
    return judge_cache.key((*identity, str(self.run), self.question.system, self.question.text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
  """The grades for a prompt, in its order; or None, and the problem."""

  grades: Grades | None
  problem: str = ""


@runtime_checkable
class GradingModel(Protocol):
  """A model that grades; loaded or connected."""

  def grade_all(
    self, wanted: Mapping[bytes, "Wanted"], cache: grade_cache.GradeCache, tick: Tick
  ) -> dict[bytes, str]:
    """Asks, and stores each attempt at once. Returns problems that the cache doesn't know, by key.

    Raises errors.InputError if no more can be asked; what was read is stored.
    """
    ...

  def close(self) -> None:
    """Ends what runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
  """A prompt without a verdict, and how often it may still be asked."""

  question: model_endpoint.EndpointQuestion
  left: int


def ask(
  prompts: Sequence[GradingPrompt],
  connect: Callable[[], GradingModel],
  cache: grade_cache.GradeCache,
  *,
  identity: Sequence[str],
  attempts: int,
  tick: Tick = lambda *_: None,
  flags: str = "--",
) -> list[Answer]:
  """Returns an answer for each prompt.

  connect: makes the model; is not called if the cache has all answers.
  attempts: readings of a prompt's replies, over all starts, before it has no verdict.
  tick: is told how many different prompts are done, and of how many.
  flags: how the flags that name the model begin, for messages.

  Raises:
    InputError: the model can't be reached or refuses, or a budget is spent; the message says how
      many verdicts are stored.
  """
  keys = [prompt.key(identity) for prompt in prompts]
  by_key = dict(zip(keys, (prompt.question for prompt in prompts), strict=True))
  known = cache.get(by_key)
  wanted = {
    key: Wanted(question=question, left=left)
    for key, question in by_key.items()
    if (left := _left(known.get(key), attempts)) > 0
  }
  done = len(by_key) - len(wanted)
  tick(done, len(by_key))
  problems: dict[bytes, str] = {}
  if wanted:
    try:
      with contextlib.closing(connect()) as model:
        problems = model.grade_all(wanted, cache, lambda more: tick(done + more, len(by_key)))
    except errors.InputError as error:
      stored = sum(each.grades is not None for each in cache.get(by_key).values())
      line = re.sub(r"^judge\.", flags, str(error))  # the endpoint names its section
      raise errors.InputError(
        f"{line}; {stored} of {len(by_key)} verdicts are stored in {cache.path}"
      ) from error
  known = cache.get(by_key)
  grades = {key: each.grades for key, each in known.items()}
  return [
    Answer(
      grades=grades.get(key),
      problem="" if grades.get(key) is not None else problems.get(key, UNREADABLE),
    )
    for key in keys
  ]


def _left(known: grade_cache.CachedGrades | None, attempts: int) -> int:
  """How often a prompt may still be asked; 0 if it has its verdict."""
  if known is None:
    return attempts
  return 0 if known.grades is not None else max(0, attempts - known.attempts)


class EndpointGrader:
  """A `GradingModel` behind an endpoint. Several prompts are asked at the same time."""

  def __init__(
    self, endpoint: model_endpoint.Endpoint, *, limits: model_endpoint.Limits, max_tokens: int
  ):
    """Uses a connected endpoint, and closes it.

    limits: the endpoint's own.
    max_tokens: of all prompts and replies of this start; 0: any number. Requests that run when they
      are spent are still read.
    """
    self._endpoint, self._limits, self._max_tokens = endpoint, limits, max_tokens
    self._stop = threading.Event()

  def grade_all(
    self, wanted: Mapping[bytes, Wanted], cache: grade_cache.GradeCache, tick: Tick
  ) -> dict[bytes, str]:
    """See `GradingModel`."""
    pool = futures.ThreadPoolExecutor(min(self._limits.in_flight, len(wanted)))
    try:
      running = {pool.submit(self._grade, key, each, cache): key for key, each in wanted.items()}
      problems = {}
      for count, future in enumerate(futures.as_completed(running), start=1):
        problems[running[future]] = future.result()
        tick(count)
      return {key: problem for key, problem in problems.items() if problem}
    except model_endpoint.OverBudget:
      raise errors.InputError(
        f"--max_requests={self._limits.budget}: are spent; the same command goes on"
      ) from None
    except BaseException as error:
      self._stop.set()
      if not isinstance(error, errors.InputError):
        self._endpoint.close()  # an interruption: don't wait for replies
      raise
    finally:
      self._stop.set()
      pool.shutdown(cancel_futures=True)

  def close(self) -> None:
    """Closes the endpoint."""
    self._endpoint.close()

  def _grade(self, key: bytes, wanted: Wanted, cache: grade_cache.GradeCache) -> str:
    """Asks for one verdict; returns the problem of a request that was refused, else ""."""
    try:
      return self._ask_until_read(key, wanted, cache)
    except BaseException:
      self._stop.set()  # here, so that no other thread begins a request
      raise

  def _ask_until_read(self, key: bytes, wanted: Wanted, cache: grade_cache.GradeCache) -> str:
    for _ in range(wanted.left):
      if self._stop.is_set():
        return ""
      self._check_tokens()
      try:
        reply = self._endpoint.reply(wanted.question.system, wanted.question.text)
      except model_endpoint.RequestRefused as error:
        if error.status in _STOPPING:
          raise
        return f"refused (status {error.status})"
      grades = None if reply is None else wanted.question.read(reply)
      cache.add_attempt(key, grades)
      if grades is not None:
        break
    return ""

  def _check_tokens(self) -> None:
    """Raises InputError if the tokens are spent, or can't be counted."""
    if not self._max_tokens:
      return
    used = self._endpoint.tokens_used()
    if used is None:
      raise errors.InputError(
        f"--max_tokens={self._max_tokens}: the endpoint doesn't say how many tokens a reply took; "
        "limit --max_requests instead"
      )
    if used >= self._max_tokens:
      raise errors.InputError(
        f"--max_tokens={self._max_tokens}: are spent ({used}); the same command goes on"
      )


@runtime_checkable
class LocalReader(Protocol):
  """A model that was loaded into this process, such as train.judge_local.LocalModel."""

  def ask(self, questions: Sequence[model_endpoint.EndpointQuestion]) -> list[Grades | None]:
    """Returns what each question reads in its reply."""
    ...

  def is_too_long(self, question: model_endpoint.EndpointQuestion) -> bool:
    """Whether a question has more tokens than the model takes; it would not be asked."""
    ...

  def close(self) -> None:
    """Frees it."""


class LocalGrader:
  """A `GradingModel` in this process. Its replies are greedy, so it is asked once."""

  def __init__(self, model: LocalReader):
    self._model = model

  def grade_all(
    self, wanted: Mapping[bytes, Wanted], cache: grade_cache.GradeCache, tick: Tick
  ) -> dict[bytes, str]:
    """See `GradingModel`. A prompt that is too long is no attempt, and is not stored."""
    keys = [key for key, each in wanted.items() if not self._model.is_too_long(each.question)]
    problems = dict.fromkeys(wanted.keys() - {*keys}, TOO_LONG)
    for start in range(0, len(keys), _AT_ONCE):
      some = keys[start : start + _AT_ONCE]
      grades = self._model.ask([wanted[key].question for key in some])
      for key, each in zip(some, grades, strict=True):
        cache.add_attempt(key, each)
      tick(len(problems) + start + len(some))
    return problems

  def close(self) -> None:
    """Frees the model."""
    self._model.close()
