"""Judges behind an endpoint, through the official SDKs: OpenAI's chat completions (which many servers speak) and Anthropic's
messages.

Requests run on an event loop in a thread of the judge's own, so that whoever waits for verdicts may be interrupted or stopped.
The key is given to the SDK and to nobody else; what an endpoint says about a key it refuses is not repeated.
"""

import asyncio
import collections
from collections.abc import Coroutine, Mapping, Sequence
import dataclasses
import email.utils
import importlib
import json
import random
import sys
import threading
import time
from types import ModuleType
from typing import Any, Protocol, runtime_checkable
import urllib.parse

from vr_jax import errors
from vr_jax.rewards import judge_prompt

URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}

_COUNTED = ("requests", "retries", "over_budget", "unanswered")
_PASSING = (408, 409, 425, 429)  # statuses below 500 after which the same request may succeed
_LONGEST_BACKOFF = 30.0  # seconds
_LONGEST_PAUSE = 300.0  # seconds; an endpoint that asks for more is tried again after this


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What an endpoint is asked at most.

  in_flight: requests at the same time. requests_per_minute: 0 for any number. timeout: seconds for one request, its reply read.
  retries: further requests for a verdict that did not come. budget: requests of this process, retries included; 0 for any
  number. max_tokens: of a reply. backoff: seconds before the first retry, doubled before each further one.
  """

  in_flight: int = 32
  requests_per_minute: float = 0.0
  timeout: float = 30.0
  retries: int = 4
  budget: int = 0
  max_tokens: int = 256
  backoff: float = 0.5


@runtime_checkable
class Asked(Protocol):
  """What is put to a model: a judge's question, or another with a system turn and a user turn."""

  system: str
  text: str

  def read(self, reply: str) -> Any:
    """What a reply says; None where it can't be used, and the model is asked again."""


class Endpoint:
  """A model that answers over HTTP. See judge_text.Model."""

  def __init__(self, kind: str, *, model: str, base_url: str, key: str, limits: Limits):
    """Starts the thread; nothing is sent yet.

    kind: "openai" or "anthropic", the protocol. base_url: empty for the vendor's own (`URLS`).

    Raises:
      InputError: the SDK is not installed, or the address or the key can't be sent.
    """
    self._sdk = _sdk(kind)
    self._kind, self._model, self._limits = kind, model, limits
    self._url = _checked_url(base_url or URLS[kind])
    if not (key.isascii() and key.isprintable()) or " " in key:
      raise errors.InputError(
        "config.judge.key_variable: the key has characters that no key has (a line end or a space?); export it again"
      )
    client = self._sdk.AsyncOpenAI if kind == "openai" else self._sdk.AsyncAnthropic
    self._client = client(api_key=key, base_url=self._url, timeout=limits.timeout, max_retries=0)
    self._counts: collections.Counter[str] = collections.Counter()
    self._spent = 0  # requests of this process
    self._next = 0.0  # time of the loop before which no request starts
    self._slots = asyncio.Semaphore(limits.in_flight)
    self._gate = asyncio.Lock()
    self._loop = asyncio.new_event_loop()
    self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Sends one tiny request, and again where it fails as one with a question is sent again.

    Raises InputError where the endpoint is down or fails to the last, or refuses key, model or request.
    """
    self._wait_for(self._check())

  def ask(self, questions: Sequence[Asked]) -> list[Any]:
    """What is read in the replies, after as many retries as allowed; None where nothing was, or the budget is spent.

    Raises InputError where the endpoint refuses the key.
    """
    return self._wait_for(self._all(questions))

  def counts(self) -> Mapping[str, float]:
    """requests: sent. retries: those of them that were not the first. over_budget: questions that were not put for it.
    unanswered: questions whose last request failed too, or had no reply of the protocol.
    """
    taken, self._counts = self._counts, collections.Counter()
    return {name: float(taken[name]) for name in _COUNTED}

  def close(self) -> None:
    """Cancels what is under way and ends the thread."""
    if self._loop.is_closed():
      return
    self._wait_for(self._shut())
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join()
    self._loop.close()

  def _wait_for(self, work: Coroutine[Any, Any, Any]) -> Any:
    """Runs work on the loop; where waiting for it is interrupted, it is cancelled."""
    future = asyncio.run_coroutine_threadsafe(work, self._loop)
    try:
      return future.result()
    finally:
      future.cancel()

  async def _shut(self) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
      task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await self._client.close()

  async def _check(self) -> None:
    greeting = judge_prompt.Question(system="This is a test.", text="Reply with the word Yes.")
    address, problem = f"config.judge.base_url={self._url}", ""
    for attempt in range(min(1 + self._limits.retries, self._limits.budget or sys.maxsize)):
      await self._back_off(attempt)
      await self._turn()
      self._counts["retries"] += attempt > 0
      try:
        async with asyncio.timeout(self._limits.timeout):
          reply = await self._send(greeting)
      except self._sdk.RateLimitError:  # busy, so it is up
        return
      except self._sdk.APIStatusError as error:
        problem = self._problem(error)
        if not _passes(error.status_code):
          break
        self._pause(error.response.headers.get("retry-after", ""))
      except (self._sdk.APIError, TimeoutError) as error:
        problem = (
          f"{address}: no answer ({type(error).__name__} within {self._limits.timeout:g} s), retries included; "
          "start the endpoint, or correct the address"
        )
      else:
        if reply is not None:
          return
        problem = (
          f"{address}: answers, but not in the protocol of {self._kind}; correct kind or address"
        )
        break
    raise errors.InputError(problem)

  async def _all(self, questions: Sequence[Asked]) -> list[Any]:
    try:
      async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(self._verdict(question)) for question in questions]
    except ExceptionGroup as failed:
      raise failed.exceptions[0] from None
    return [task.result() for task in tasks]

  async def _verdict(self, question: Asked) -> Any:
    for attempt in range(1 + self._limits.retries):
      await self._back_off(attempt)
      async with self._slots:
        await self._turn()
        if self._limits.budget and self._spent >= self._limits.budget:
          self._counts["over_budget"] += 1
          return None
        self._counts["retries"] += attempt > 0
        reply = None
        try:
          async with asyncio.timeout(self._limits.timeout):
            reply = await self._send(question)
        except self._sdk.AuthenticationError as error:
          raise errors.InputError(self._problem(error)) from None
        except self._sdk.APIStatusError as error:
          if not _passes(error.status_code):
            return None
          self._pause(error.response.headers.get("retry-after", ""))
          continue
        except (self._sdk.APIError, TimeoutError):
          continue
      verdict = None if reply is None else question.read(reply)
      if verdict is not None:
        return verdict
    self._counts["unanswered"] += reply is None
    return None

  async def _back_off(self, attempt: int) -> None:
    """Waits before a further attempt, the longer the more there were."""
    if attempt:
      wait = min(self._limits.backoff * 2 ** (attempt - 1), _LONGEST_BACKOFF)
      await asyncio.sleep(wait * random.uniform(0.5, 1.5))

  async def _turn(self) -> None:
    """Waits until the next request may start: one after the other, since a wait may grow while it lasts (`_pause`)."""
    minute = self._limits.requests_per_minute
    async with self._gate:
      while (wait := self._next - self._loop.time()) > 0:
        await asyncio.sleep(wait)
      self._next = self._loop.time() + (60 / minute if minute else 0)

  def _pause(self, retry_after: str) -> None:
    """Lets no request start before an endpoint wants more: in so many seconds, or at a date."""
    try:
      seconds = float(retry_after)
    except ValueError:
      date = email.utils.parsedate_tz(retry_after)
      seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
    if seconds > 0:  # not so of nan
      self._next = max(self._next, self._loop.time() + min(seconds, _LONGEST_PAUSE))

  async def _send(self, question: Asked) -> str | None:
    """One request; the text of its reply, None where the body is not one of the protocol."""
    self._spent += 1
    self._counts["requests"] += 1
    user = {"role": "user", "content": question.text}
    fields: dict[str, Any] = {"model": self._model, "max_tokens": self._limits.max_tokens}
    if self._kind == "openai":
      system = {"role": "system", "content": question.system}
      create = self._client.chat.completions.with_raw_response.create
      raw = await create(messages=[system, user], temperature=0, **fields)
    else:  # the protocol knows no temperature any more
      create = self._client.messages.with_raw_response.create
      raw = await create(messages=[user], system=question.system, **fields)
    return _text(raw.http_response.text)

  def _problem(self, error: Any) -> str:
    """One line on a status that is no success; of a refused key nothing that the endpoint says, which may repeat it."""
    status = error.status_code
    if _passes(status):
      return (
        f"config.judge.base_url={self._url}: fails (status {status}), retries included; once it answers, the same command "
        "goes on"
      )
    if status in (401, 403):
      return f"config.judge.key_variable: {self._url} refuses its key ({status}); export a valid one, or correct base_url"
    said = " ".join(str(error).split()).replace(self._client.api_key, "…")[:200]
    return f"config.judge: {self._url} refuses {self._model!r} ({status}: {said}); correct model or base_url"


def _sdk(kind: str) -> ModuleType:
  """The SDK of a protocol, which is named like it."""
  try:
    return importlib.import_module(kind)
  except ImportError as error:
    raise errors.InputError(
      f"config.judge.kind={kind}: the package {kind} is missing; pip install 'vr_jax[judge]'"
    ) from error


def _passes(status: int) -> bool:
  """Whether the same request may succeed later."""
  return status in _PASSING or status >= 500


def _checked_url(url: str) -> str:
  try:
    parts = urllib.parse.urlsplit(url)
    fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
  except ValueError:  # of a port that is no number, or brackets
    fits = False
  if not fits or parts.username is not None:
    raise errors.InputError(
      "config.judge.base_url: needs the form http(s)://host[:port][/path], without a user; keys come from the environment"
    )
  return url


def _text(body: str) -> str | None:
  """The text of a reply in either protocol, without thoughts; None if the body is something else."""
  try:
    reply = json.loads(body)
  except (ValueError, RecursionError):
    return None
  match reply:
    case {"choices": [{"message": {"content": str(text)}}, *_]}:
      return text
    case {"content": [*blocks]}:
      told = [block for block in blocks if isinstance(block, dict) and block.get("type") == "text"]
      return "".join(str(block.get("text", "")) for block in told)
  return None
