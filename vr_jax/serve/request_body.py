"""Reads bodies of requests within limits of bytes and time, and notices clients that hang up."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette import requests

from vr_jax.serve import request_error

Result = TypeVar("Result")

_AHEAD = 1 << 18  # bytes of a body that are read while the request waits
_PACE = 1 << 20  # bytes a second that a client has to send, after some time for any body


class RequestBody:
  """The body of one request, which is read once it is the request's turn.

  size: bytes that the client declared, or `most` if it did not.
  """

  def __init__(self, request: requests.Request, most: int):
    """Initialises it. most: bytes that it may have. Raises RequestError (413) above that."""
    self._receive, self._most = request.receive, most
    self._content = bytearray()
    self._complete = self._gone = False
    declared = request.headers.get("content-length", "")
    self.size = int(declared) if declared.isdecimal() else most
    self._check(self.size)

  async def read_beginning(self, seconds: float) -> None:
    """Reads all of a small body, or some of a large one. Raises as `read` does."""
    await self._read_to(_AHEAD, seconds)

  async def read(self, seconds: float) -> bytes:
    """Reads all of it.

    seconds: that any client has, in addition to a second for each MiB.

    Raises RequestError (408 or 413), and ClientDisconnect if the client hangs up.
    """
    await self._read_to(self._most + 1, seconds + self.size / _PACE)
    content, self._content = self._content, bytearray()
    return bytes(content)

  async def or_disconnect(
    self, work: "Coroutine[Any, Any, Result] | asyncio.Future[Result]"
  ) -> Result:
    """Waits for `work`. Raises ClientDisconnect, and cancels it, if the client hangs up before.

    Of a body that has yet to be read, a small part is read to see that. A client that hangs up
    after more than that is noticed when the rest is read.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._disconnected())
    try:
      await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
      if task.done():
        return task.result()
      gone.result()
      raise requests.ClientDisconnect
    finally:
      gone.cancel()
      task.cancel()

  async def _read_to(self, size: int, seconds: float) -> None:
    try:
      async with asyncio.timeout(seconds):
        while not self._complete and len(self._content) < size:
          await self._read_piece()
    except TimeoutError:
      raise request_error.RequestError(
        408, "the body comes too slowly; send less, or over a faster line", code="too_slow"
      ) from None

  async def _disconnected(self) -> None:
    """Returns when the client has hung up, or raises why its request can't go on."""
    try:
      while True:
        if not self._complete and len(self._content) >= _AHEAD:
          await asyncio.Event().wait()  # for ever
        await self._read_piece()
    except requests.ClientDisconnect:
      return

  async def _read_piece(self) -> None:
    """Waits for the next piece. Raises ClientDisconnect if the client has hung up instead."""
    message: Any = {"type": "http.disconnect"} if self._gone else await self._receive()
    if message["type"] == "http.disconnect":
      self._gone = True
      raise requests.ClientDisconnect
    self._content += message.get("body", b"")
    self._complete = not message.get("more_body", False)
    self._check(len(self._content))

  def _check(self, size: int) -> None:
    if size > self._most:
      raise request_error.RequestError(
        413, f"the body has more than {self._most / 2**20:g} MiB", code="too_large"
      )


class ByteBudget:
  """Bytes that requests share. Who asks for more than are left waits, first come, first served."""

  def __init__(self, most: int):
    self._left = most
    self._turn, self._returned = asyncio.Lock(), asyncio.Event()

  async def take(self, size: int) -> None:
    """Waits for so many bytes; at most all of them."""
    async with self._turn:
      while self._left < size:
        self._returned.clear()
        await self._returned.wait()
      self._left -= size

  def give_back(self, size: int) -> None:
    """Lets others have them."""
    self._left += size
    self._returned.set()
