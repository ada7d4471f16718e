"""Work on other threads: what goes on beside a run, and files that are written in order."""

from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import threading
from typing import Any

_MOST = 16  # writes that wait


@contextlib.contextmanager
def beside(name: str, work: Callable[[threading.Event], None]) -> Iterator[None]:
  """Runs work(stop) on a thread; at the end sets `stop`, at which work returns, and waits for it.

  A process that ends otherwise does not wait for the thread. name: of the thread.
  """
  stop = threading.Event()
  thread = threading.Thread(target=work, args=(stop,), name=name, daemon=True)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()


class BackgroundWriter:
  """One thread that writes.

  If a write fails, the next call of `submit`, `wait` or `close` raises its error.
  """

  def __init__(self, name: str) -> None:
    self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix=name)
    self._unwritten: list[futures.Future[None]] = []
    self._lock = threading.Lock()

  def submit(self, write: Callable[..., None], *arguments: Any) -> None:
    """Calls `write(*arguments)` after all that was submitted before. Any thread may submit.

    If a slow disk leaves many writes waiting, it waits for the first of them: they hold memory.
    """
    with self._lock:
      while self._unwritten and (self._unwritten[0].done() or len(self._unwritten) >= _MOST):
        self._unwritten.pop(0).result()
      self._unwritten.append(self._thread.submit(write, *arguments))

  def wait(self) -> None:
    """Waits until all is written."""
    with self._lock:
      while self._unwritten:
        self._unwritten.pop(0).result()

  def close(self) -> None:
    """Waits, then ends the thread."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
