"""Keeps what was made for one request for the next one, up to a number of bytes."""

import collections
from collections.abc import Callable, Hashable
from concurrent import futures
import threading
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
  """Values by key. The one that was used longest ago leaves first. Several threads may use it.

  hits, misses: of all calls so far.
  """

  def __init__(self, most_bytes: int, size: Callable[[Value], int]):
    """Initialises an empty cache. size: bytes of a value; one above `most_bytes` is not kept."""
    self.hits = self.misses = self.bytes = 0
    self._most, self._size = most_bytes, size
    self._values: collections.OrderedDict[Hashable, Value] = collections.OrderedDict()
    self._pending: dict[Hashable, futures.Future[Value]] = {}
    self._lock = threading.Lock()

  def get_or_make(self, key: Hashable, make: Callable[[], Value]) -> Value:
    """Returns the value of a key; `make` is called if there is none.

    Who asks for a value that another thread is making waits for that one. What `make` raises, all
    who wait get, so it must not name the request of the one that made it; nothing is kept then.
    """
    with self._lock:
      if key in self._values:
        self.hits += 1
        self._values.move_to_end(key)
        return self._values[key]
      pending = self._pending.get(key)
      if pending is None:
        self.misses += 1
        made = self._pending[key] = futures.Future()
      else:
        self.hits += 1
    if pending is not None:
      return pending.result()
    try:
      value = make()
    except BaseException as error:
      with self._lock:
        del self._pending[key]
      made.set_exception(error)
      raise
    with self._lock:
      del self._pending[key]
      self._keep(key, value)
    made.set_result(value)
    return value

  def peek(self, key: Hashable) -> Value | None:
    """The value of a key, if there is one. This is a use of it."""
    with self._lock:
      if key in self._values:
        self._values.move_to_end(key)
      return self._values.get(key)

  def _keep(self, key: Hashable, value: Value) -> None:
    size = self._size(value)
    if size > self._most:
      return
    self._values[key] = value
    self.bytes += size
    while self.bytes > self._most:
      _, left = self._values.popitem(last=False)
      self.bytes -= self._size(left)
