"""A language model behind an endpoint, through the official clients: OpenAI's chat completions (which many servers
speak) and Anthropic's messages.

Retries, their backoff and time-outs are the clients' own. What clients lack is here: a rate, a budget, waiting
together when an endpoint asks for it, and asking again when a reply cannot be used.

Requests run on an event loop in a thread of the endpoint's own, so that whoever waits for them may be interrupted.
The key is given to the client and to nobody else; what an endpoint says about a key that it refuses is not repeated.
"""

import asyncio
import collections
from collections.abc import Coroutine, Mapping, Sequence
import contextlib
import dataclasses
import email.utils
import importlib
import json
import os
import sys
import threading
import time
from types import ModuleType
from typing import Any, Protocol, runtime_checkable
import urllib.parse
import weakref

from vr_jax import errors

# Passed to the client, which otherwise takes the address from the environment.
URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}

_COUNTED = ("requests", "retries", "over_budget", "unanswered")
_TRANSIENT = (408, 409, 429)  # statuses below 500 that the clients retry
_LONGEST_PAUSE = 120.0  # seconds; OpenAI's client does not retry where it is asked to wait longer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Limits of what an endpoint is asked.

  in_flight: requests at the same time.
  requests_per_minute: 0 for any number.
  timeout: seconds that a request may take, as the client counts them: to connect, and of silence.
  retries: further requests for a question whose request failed, or whose reply cannot be used.
  budget: requests of this process, retries included; 0 for any number.
  max_tokens: of a reply.
  """

  in_flight: int = 32
  requests_per_minute: float = 0.0
  timeout: float = 30.0
  retries: int = 4
  budget: int = 0
  max_tokens: int = 256


@runtime_checkable
class Question(Protocol):
  """A system turn and a user turn, and how to read the reply."""

  @property
  def system(self) -> str:
    """The system turn."""
    ...

  @property
  def text(self) -> str:
    """The user turn."""
    ...

  def read(self, reply: str) -> Any:
    """What a reply says; None where it cannot be used, and the model is asked again."""


class _Failure(errors.InputError):
  """status: of the response; 0 where there was none."""

  def __init__(self, message: str, status: int = 0):
    super().__init__(message)
    self.status = status


class Unavailable(_Failure):
  """The endpoint is down, or failed to the last retry."""


class Refused(_Failure):
  """The endpoint refuses the key, the model or the request, and would again."""


class OverBudget(errors.InputError):
  """All requests of the budget are spent."""


def connect(
  section: str, kind: str, *, model: str, base_url: str, key_variable: str, limits: Limits
) -> "Endpoint":
  """An endpoint that has answered. Whoever connects closes it.

  Args:
    section: of the config, such as "config.judge", for messages.
    kind: "openai" or "anthropic", the protocol.
    base_url: empty for the vendor's own (`URLS`).
    key_variable: the environment variable that holds the key.

  Raises:
    InputError: no such variable, and what `Endpoint` and its `check` raise.
  """
  key = os.environ.get(key_variable, "")
  if not key:
    raise errors.InputError(
      f"{section}.key_variable={key_variable}: the environment has no such variable; export the key in it "
      "(any word where the endpoint asks for none)"
    )
  made = Endpoint(section, kind, model=model, base_url=base_url, key=key, limits=limits)
  with contextlib.ExitStack() as on_failure:
    on_failure.callback(made.close)
    made.check()
    on_failure.pop_all()
  return made


class Endpoint:
  """A model that answers over HTTP. May be asked from several threads. See judge_text.Model."""

  def __init__(
    self, section: str, kind: str, *, model: str, base_url: str, key: str, limits: Limits
  ):
    """Starts the thread; nothing is sent yet. Arguments as `connect` takes them.

    Raises:
      InputError: the client is not installed, or the address or the key can't be sent.
    """
    self._sdk = _sdk(section, kind)
    self._section, self._kind, self._model, self._limits = section, kind, model, limits
    self._url = _checked_url(section, base_url or URLS[kind])
    if not (key.isascii() and key.isprintable()) or " " in key:
      raise errors.InputError(
        f"{section}.key_variable: the key has characters that no key has (a line end or a space?); export it again"
      )
    client, failure = {
      "openai": ("AsyncOpenAI", "OpenAIError"),
      "anthropic": ("AsyncAnthropic", "AnthropicError"),
    }[kind]
    # A client wraps and retries exceptions that are not of its own family.
    self._over_budget = type("OverBudget", (getattr(self._sdk, failure),), {})
    hooks = {"request": [self._before_request], "response": [self._after_response]}
    self._client = getattr(self._sdk, client)(
      api_key=key,
      base_url=self._url,
      timeout=limits.timeout,
      max_retries=limits.retries,
      http_client=self._sdk.DefaultAsyncHttpxClient(event_hooks=hooks),
    )
    self._counts: collections.Counter[str] = collections.Counter()
    self._spent = 0  # requests of this process
    self._next = 0.0  # time of the loop before which no request starts
    self._asking: weakref.WeakSet[asyncio.Task] = weakref.WeakSet()
    self._slots = asyncio.Semaphore(limits.in_flight)
    self._gate = asyncio.Lock()
    self._loop = asyncio.new_event_loop()
    self._thread = threading.Thread(target=self._loop.run_forever, name=section, daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Sends one tiny request, and retries it.

    A reply without text will do: models that reason may spend all their tokens on it. So will one that is busy.

    Raises:
      InputError: the endpoint is down or fails to the last, or refuses key, model or request.
    """
    retries = min(self._limits.retries, (self._limits.budget or sys.maxsize) - 1)
    try:
      reply, _ = self._wait_for(self._send("This is a test.", "Reply with the word Yes.", retries))
    except Unavailable as error:
      if error.status != 429:
        raise
    else:
      if reply is None:
        raise errors.InputError(
          f"{self._section}.base_url={self._url}: answers, but not in the protocol of {self._kind}; "
          "correct the address or the protocol"
        )

  def ask(self, questions: Sequence[Question]) -> list[Any]:
    """What is read in the replies, after as many retries as allowed; None where nothing was, or the budget is spent.

    Raises InputError where the endpoint refuses the key.
    """
    return self._wait_for(self._all(questions))

  def reply(self, system: str, content: str | list[dict[str, Any]]) -> str | None:
    """The text of the reply to one user turn; None where the body is not one of the protocol.

    Args:
      system: opens the conversation; empty for none.
      content: the user turn, a text or the parts that the protocol knows.

    Raises:
      Unavailable, Refused, OverBudget: each with one line to show.
    """
    return self._wait_for(self._send(system, content, self._limits.retries))[0]

  def counts(self) -> Mapping[str, float]:
    """Counts since the last call.

    requests: sent.
    retries: those of them that were not a question's first.
    over_budget: questions that were not put for it.
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

  async def _all(self, questions: Sequence[Question]) -> list[Any]:
    try:
      async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(self._answer(question)) for question in questions]
    except ExceptionGroup as failed:
      raise failed.exceptions[0] from None
    return [task.result() for task in tasks]

  async def _answer(self, question: Question) -> Any:
    retries, reply = self._limits.retries, None
    while retries >= 0:
      try:
        reply, taken = await self._send(question.system, question.text, retries)
      except OverBudget:
        self._counts["over_budget"] += 1
        return None
      except Unavailable:
        reply = None
        break
      except Refused as error:
        if error.status == 401:
          raise
        return None
      answer = None if reply is None else question.read(reply)
      if answer is not None:
        return answer
      retries -= taken + 1
    self._counts["unanswered"] += reply is None
    return None

  async def _send(
    self, system: str, content: str | list[dict[str, Any]], retries: int
  ) -> tuple[str | None, int]:
    """(text of the reply or None where the body is not one of the protocol, retries that it took); raises as `reply`."""
    user = {"role": "user", "content": content}
    fields: dict[str, Any] = {"model": self._model, "max_tokens": self._limits.max_tokens}
    client = self._client.with_options(max_retries=retries)
    if self._kind == "openai":
      opening = [{"role": "system", "content": system}] if system else []
      create = client.chat.completions.with_raw_response.create
      fields |= {"messages": [*opening, user], "temperature": 0}
    else:  # the protocol knows no temperature any more
      create = client.messages.with_raw_response.create
      fields |= {"messages": [user], **({"system": system} if system else {})}
    async with self._slots:
      try:
        raw = await create(**fields)
      except self._over_budget:
        raise OverBudget(f"{self._section}.budget: is spent") from None
      except self._sdk.APIStatusError as error:
        raise self._problem(error) from None
      except self._sdk.APIError:  # no connection or a time-out
        raise Unavailable(
          f"{self._section}.base_url={self._url}: no answer; start the endpoint or correct the address, and the "
          "same command goes on"
        ) from None
    return _text(raw.http_response.text), raw.retries_taken

  async def _before_request(self, request: Any) -> None:
    """Waits until a request may start, a retry too, and counts it; a hook of the HTTP client."""
    minute = self._limits.requests_per_minute
    async with self._gate:  # one after the other, since a wait may grow while it lasts
      while (wait := self._next - self._loop.time()) > 0:
        await asyncio.sleep(wait)
      self._next = self._loop.time() + (60 / minute if minute else 0)
    if self._limits.budget and self._spent >= self._limits.budget:
      raise self._over_budget
    self._spent += 1
    task = asyncio.current_task()  # of one question
    self._counts.update(requests=1, retries=task in self._asking)
    self._asking.add(task)

  async def _after_response(self, response: Any) -> None:
    """Lets no request start before an endpoint that is busy wants more; a hook of the HTTP client."""
    if not _is_transient(response.status_code):
      return
    wait = min(_seconds_to_wait(response.headers), _LONGEST_PAUSE)
    if wait > 0:  # not so of nan
      self._next = max(self._next, self._loop.time() + wait)
      response.headers["retry-after-ms"] = str(
        1000 * wait
      )  # what the client waits before it retries

  def _problem(self, error: Any) -> errors.InputError:
    """A status that is no success; of a refused key nothing that the endpoint says, which may repeat it."""
    status = error.status_code
    if _is_transient(status):
      return Unavailable(
        f"{self._section}.base_url={self._url}: fails (status {status}), retries included; once it answers, "
        "the same command goes on",
        status,
      )
    if status in (401, 403):
      return Refused(
        f"{self._section}.key_variable: {self._url} refuses its key (status {status}); export a valid one, "
        "or correct base_url",
        status,
      )
    told = " ".join(error.response.text.split()).replace(self._client.api_key, "…")[:300]
    return Refused(
      f"{self._section}: {self._url} refuses what {self._model!r} is asked (status {status}: {told!r}); "
      "correct model or base_url, or change what it names",
      status,
    )


def _sdk(section: str, kind: str) -> ModuleType:
  """The client's package, which is named like the protocol."""
  try:
    return importlib.import_module(kind)
  except ImportError as error:
    raise errors.InputError(
      f"{section}: the package {kind} is missing; pip install 'vr_jax[judge]'"
    ) from error


def _is_transient(status: int) -> bool:
  """Whether the same request may succeed later."""
  return status in _TRANSIENT or status >= 500


def _seconds_to_wait(headers: Mapping[str, str]) -> float:
  """What an endpoint asks for: in milliseconds, in seconds, or until a date; 0 where it asks for nothing readable."""
  for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
    with contextlib.suppress(KeyError, ValueError):
      return float(headers[name]) / unit
  date = email.utils.parsedate_tz(headers.get("retry-after", ""))
  return email.utils.mktime_tz(date) - time.time() if date else 0.0


def _checked_url(section: str, url: str) -> str:
  try:
    parts = urllib.parse.urlsplit(url)
    fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
  except ValueError:  # of a port that is no number, or brackets
    fits = False
  if not fits or parts.username is not None:
    raise errors.InputError(
      f"{section}.base_url: needs the form http(s)://host[:port][/path], without a user; keys come from the environment"
    )
  return url


def _text(body: str) -> str | None:
  """The text of a reply in either protocol, without thoughts; None if the body is something else.

  What UTF-8 cannot hold is replaced: an emoji that max_tokens cut is half a surrogate pair.
  """
  try:
    reply = json.loads(body)
  except (ValueError, RecursionError):
    return None
  match reply:
    case {"choices": [{"message": {"content": str() | None as text}}, *_]}:
      text = text or ""
    case {"content": [*blocks]}:
      told = [block for block in blocks if isinstance(block, dict) and block.get("type") == "text"]
      text = "".join(str(block.get("text", "")) for block in told)
    case _:
      return None
  return text.encode("utf-8", "replace").decode()
