"""The HTTP side: routes, the token, limits, streams, and clients that hang up.

Requests are prepared on threads and decoded by the engine; this module only waits. A response of a
failure is OpenAI's JSON of an error, with no word about this machine.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent import futures
import contextlib
import dataclasses
import hmac
import sys
import time
import traceback
from typing import Any

from starlette import applications, requests, responses, routing, types

from vr_jax.serve import chat_request, engine, loopback, preparation, request_body, request_error
from vr_jax.serve import responses as responses_lib

_PREPARERS = 4  # threads that parse, fetch, decode and encode
_BODIES = 4  # of the largest size that are held together
_RETRY_AFTER = "5"  # seconds, when the queue is full


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppSettings:
  """How requests are taken.

  model: its name.
  token: that clients have to send; "" for none.
  queue: the most requests that wait for a slot, being prepared or prepared.
  max_body_bytes: of a request. Bodies that are being read or prepared have four times as many
    together.
  body_seconds: in which a client has to send a body, in addition to a second for each MiB.
  is_local: whether only this machine can connect; requests then have to name it (`Host`), so that
    pages of strangers in a browser can't ask.
  """

  model: str
  token: str = dataclasses.field(default="", repr=False)
  queue: int = 256
  max_body_bytes: int = 256 << 20
  body_seconds: float = 30.0
  is_local: bool = True


class ChatServer:
  """The application. `app` is what uvicorn serves.

  model: its name.
  waiting: requests without a slot.
  """

  def __init__(
    self, decoder: engine.Engine, preparer: preparation.Preparer, settings: AppSettings
  ) -> None:
    self.decoder, self.preparer, self._settings = decoder, preparer, settings
    self.model = settings.model
    self._threads = futures.ThreadPoolExecutor(_PREPARERS, "prepare")
    # Work for them waits here, not in their queue: there, it keeps its body if the client has gone.
    self._free_threads = asyncio.Semaphore(_PREPARERS)
    # Prompts with their frames are large, and so are bodies: only so many requests are read.
    self.read_ahead = asyncio.Semaphore(2 * decoder.rows + _PREPARERS)
    self._body_bytes = request_body.ByteBudget(_BODIES * settings.max_body_bytes)
    self.waiting, self._created = 0, int(time.time())
    self.app = applications.Starlette(
      routes=[
        routing.Route("/health", self._health, methods=["GET"]),
        routing.Route("/v1/models", self._guarded(self._models), methods=["GET"]),
        routing.Route("/v1/models/{name:path}", self._guarded(self._model), methods=["GET"]),
        routing.Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
      ],
      exception_handlers={404: _not_found, 405: _wrong_method},
    )

  def close(self) -> None:
    """Ends the threads of requests that are being prepared."""
    self._threads.shutdown(cancel_futures=True)

  def _guarded(
    self, answer: Callable[[requests.Request], Awaitable[responses.Response]]
  ) -> Callable[[requests.Request], Awaitable[responses.Response]]:
    """A handler that checks who asks, and answers failures."""

    async def handle(request: requests.Request) -> responses.Response:
      try:
        self._check_client(request)
        return await answer(request)
      except request_error.RequestError as error:
        return _failure(error)
      except requests.ClientDisconnect:
        return responses.Response(status_code=499)  # nobody reads it
      except Exception:
        traceback.print_exc(file=sys.stderr)
        return _failure(engine.internal_error())

    return handle

  def _check_client(self, request: requests.Request) -> None:
    if self._settings.is_local and not loopback.is_host(request.headers.get("host", "")):
      raise request_error.RequestError(403, "the Host of the request is not this machine")
    if not self._settings.token:
      return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), self._settings.token.encode())
    if scheme.lower() != "bearer" or not right:
      raise request_error.RequestError(
        401, "needs the server's token as Authorization: Bearer …", code="invalid_api_key"
      )

  async def _health(self, request: requests.Request) -> responses.Response:
    del request
    told = {
      "status": "ok" if self.decoder.is_alive else "failed",
      "slots": self.decoder.rows,
      "running": self.decoder.running,
      "waiting": self.waiting,
      "completed": self.decoder.completed,
      "cancelled": self.decoder.cancelled,
    }
    return responses.JSONResponse(told, status_code=200 if self.decoder.is_alive else 503)

  async def _models(self, request: requests.Request) -> responses.Response:
    del request
    return responses.JSONResponse({"object": "list", "data": [self._about_model()]})

  async def _model(self, request: requests.Request) -> responses.Response:
    self._check_model(request.path_params["name"])
    return responses.JSONResponse(self._about_model())

  def _about_model(self) -> dict[str, Any]:
    return {
      "id": self._settings.model,
      "object": "model",
      "created": self._created,
      "owned_by": "vr-jax",
    }

  def _check_model(self, name: str) -> None:
    if name and name != self._settings.model:
      raise request_error.RequestError(
        404,
        f"model: {name[:80]!r} is not served here; {self._settings.model} is",
        code="model_not_found",
        param="model",
      )

  async def _chat(self, request: requests.Request) -> responses.Response:
    if not self.decoder.is_alive:
      raise request_error.RequestError(503, "the server has failed; its log says how")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
      raise request_error.RequestError(415, "needs the Content-Type application/json")
    if self.waiting >= self._settings.queue:
      raise request_error.RequestError(
        429, f"{self._settings.queue} requests wait already; try again later", code="queue_full"
      )
    place = _Place(self)
    try:
      body = request_body.RequestBody(request, self._settings.max_body_bytes)
      # Before it takes a place that others need: who sends slowly keeps nobody else waiting.
      await body.read_beginning(self._settings.body_seconds)
      await body.or_disconnect(place.wait_to_read())
      prepared = await self._prepare(body)
      events: asyncio.Queue[engine.ReplyEvent] = asyncio.Queue()
      loop = asyncio.get_running_loop()

      def deliver(event: engine.Event) -> None:
        if not isinstance(event, engine.TurnUpdate):
          place.leave()
        if not isinstance(event, engine.Started):
          events.put_nowait(event)

      def pass_on(event: engine.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
          loop.call_soon_threadsafe(deliver, event)

      job = engine.ServingJob(prepared, pass_on)
      self.decoder.submit(job)
      head = responses_lib.make_head(self._settings.model)
      if prepared.request.stream:
        return _EventStream(self._stream(job, events, head), job, place)
      done = await self._wait(job, events, body)
    except BaseException:
      place.leave()
      raise
    return responses.JSONResponse(responses_lib.whole(head, prepared, done))

  async def _prepare(self, body: request_body.RequestBody) -> preparation.PreparedRequest:
    """Reads a body; parses and prepares the request in it on a thread."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as held:  # until the thread is done, even if the client has gone

      async def take_bytes() -> None:
        await self._body_bytes.take(body.size)
        held.callback(self._body_bytes.give_back, body.size)

      async def take_thread() -> None:
        await self._free_threads.acquire()
        held.callback(self._free_threads.release)

      await body.or_disconnect(take_bytes())
      content = await body.read(self._settings.body_seconds)
      await body.or_disconnect(take_thread())
      work = self._threads.submit(self._parse_and_prepare, content)
      del content
      release = held.pop_all().close

    def let_others_on(_: object) -> None:
      with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(release)

    work.add_done_callback(let_others_on)
    return await body.or_disconnect(asyncio.wrap_future(work))

  def _parse_and_prepare(self, content: bytes) -> preparation.PreparedRequest:
    asked = chat_request.parse(content)
    self._check_model(asked.model)
    return self.preparer.prepare(asked, self.decoder.find_features)

  async def _wait(
    self,
    job: engine.ServingJob,
    events: "asyncio.Queue[engine.ReplyEvent]",
    body: request_body.RequestBody,
  ) -> engine.FinishedReply:
    """Waits for a whole reply; if the client hangs up, the job is cancelled."""

    async def last_event() -> engine.ReplyEvent:
      while isinstance(event := await events.get(), engine.TurnUpdate):
        pass
      return event

    try:
      event = await body.or_disconnect(last_event())
    except BaseException:
      job.cancel()
      raise
    if isinstance(event, request_error.RequestError):
      raise event
    assert isinstance(event, engine.FinishedReply)
    return event

  async def _stream(
    self,
    job: engine.ServingJob,
    events: "asyncio.Queue[engine.ReplyEvent]",
    head: responses_lib.ResponseHead,
  ) -> AsyncIterator[bytes]:
    """The events of a stream: text as it is sampled, or the answer at the end."""
    prepared, piece = job.prepared, responses_lib.piece
    at_end, turn = responses_lib.wants_answer(prepared), 0
    yield piece(head, {"role": "assistant", "content": ""})
    while True:
      event = await events.get()
      if isinstance(event, engine.TurnUpdate):
        text = "\n" * (event.turn - turn) + event.text
        turn = event.turn
        if text and not at_end:
          yield piece(head, {"content": text})
        continue
      if isinstance(event, request_error.RequestError):
        yield responses_lib.event(event.body)
        yield responses_lib.END
        return
      if at_end:
        yield piece(head, {"content": responses_lib.content(prepared, event)})
      details = responses_lib.details(prepared, event)
      yield piece(head, {}, event.finish_reason, vr_jax=details)
      if prepared.request.include_usage:
        fields = head.fields(responses_lib.PIECE)
        yield responses_lib.event({**fields, "choices": [], "usage": responses_lib.usage(event)})
      yield responses_lib.END
      return


class _EventStream(responses.StreamingResponse):
  """A stream whose end frees the slot and the place, even if its first event is never sent."""

  def __init__(self, content: AsyncIterator[bytes], job: engine.ServingJob, place: "_Place"):
    super().__init__(content, media_type="text/event-stream")
    self._job, self._place = job, place

  async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
    """Sends the stream. Of a reply that is complete, nothing is left to cancel."""
    try:
      await super().__call__(scope, receive, send)
    finally:  # not in the generator's: of one that has not begun, that never runs
      self._job.cancel()
      self._place.leave()


class _Place:
  """The place of a request in the queue, until it has a slot or fails."""

  def __init__(self, server: ChatServer):
    self._server, self._reads, self._left = server, False, False
    server.waiting += 1

  async def wait_to_read(self) -> None:
    """Waits until few enough requests are ahead that have been read."""
    await self._server.read_ahead.acquire()
    self._reads = True

  def leave(self) -> None:
    """Leaves the queue, once."""
    if self._left:
      return
    self._left = True
    self._server.waiting -= 1
    if self._reads:
      self._server.read_ahead.release()


def _failure(error: request_error.RequestError) -> responses.Response:
  headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
  if error.status == 408:
    headers["Connection"] = "close"  # what is left of the body is not read
  if error.status == 429:
    headers["Retry-After"] = _RETRY_AFTER
  return responses.JSONResponse(error.body, status_code=error.status, headers=headers)


async def _not_found(request: requests.Request, error: Exception) -> responses.Response:
  del request, error
  return _failure(
    request_error.RequestError(404, "no such path; there are /v1/models, /v1/chat/completions")
  )


async def _wrong_method(request: requests.Request, error: Exception) -> responses.Response:
  del error
  return _failure(request_error.RequestError(405, f"{request.method} can't be used here"))
