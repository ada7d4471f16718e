"""SIGTERM: a machine that is taken away gives notice, and training stops at a step that is saved.

A TPU machine that is taken away, and Kubernetes, send SIGTERM and end the process some seconds
later. With several processes JAX agrees on the step at which all stop, even if only one of them had
the signal. Outside of such loops each process that had the signal stops at once; what it had not
finished is done again. A process that does not come to its end within a grace, as the main thread
waits for a device or another process, ends from another thread.
"""

from collections.abc import Callable, Iterator
import contextlib
import ctypes
import itertools
import math
import os
import signal
import sys
import threading

from jax.experimental import multihost_utils

from vr_jax import errors
from vr_jax.parallel import processes

EXIT_CODE = 75  # EX_TEMPFAIL: the same command goes on
OUTSIDE = "all that was complete is kept"
GRACE = 25.0  # seconds; Google Cloud gives a Spot machine 30
VARIABLE = "VR_JAX_GRACE"  # of the environment, for machines that give more
# Seconds outside of loops, with several processes: less than those for which one that could stop
# waits for the others before it takes the coordinator away (main.py).
WAITING = 5.0
_MEETING = 3.0  # seconds for the others to end at the same time


class _Received:
  """What this process knows: signals that came, loops that will look, and calls so far.

  clock: ends the process after `grace` seconds. stopped: whether it need not any more.
  """

  def __init__(self) -> None:
    self.signals: list[int] = []
    self.loops = 0
    self.calls = itertools.count(1)
    self.clock: threading.Timer | None = None
    self.stopped = False
    self.grace = GRACE


_received = _Received()


@contextlib.contextmanager
def noticed() -> Iterator[None]:
  """Within it, SIGTERM stops a run as this module says.

  Call it in the main thread, once the processes of a run have joined. Another handler than the
  system's own, or JAX's, is left alone.

  Raises InputError if VR_JAX_GRACE is no number of seconds.
  """
  _received.grace = read_grace()
  default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # JAX's is unknown to Python
  if not default or threading.current_thread() is not threading.main_thread():
    yield
    return
  _received.signals.clear()
  _received.clock, _received.stopped = None, False
  tell_jax = _system_handler() if processes.count_joined() > 1 else None
  # A handler of Python's waits for the main thread; what the system writes to a pipe does not.
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  thread = threading.Thread(target=_watch, args=(reading, tell_jax), name="SIGTERM", daemon=True)
  thread.start()
  signal.signal(signal.SIGTERM, _note)
  before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if tell_jax:
      ctypes.CDLL(None).signal(signal.SIGTERM, tell_jax)
    os.close(writing)
    thread.join()
    os.close(reading)
    _stop_clock()


def read_grace() -> float:
  """Seconds from SIGTERM to the end of a process that is late. Raises InputError."""
  text = os.environ.get(VARIABLE, "")
  if not text:
    return GRACE
  try:
    seconds = float(text)
  except ValueError:
    seconds = 0.0
  if not 0 < seconds < math.inf:
    raise errors.InputError(f"{VARIABLE}={text}: needs a number of seconds above 0; unset it")
  return seconds


def _system_handler() -> Callable[[int], None] | None:
  """What the system calls for SIGTERM: JAX's own function, by which all processes are told."""
  action = ctypes.create_string_buffer(256)  # struct sigaction, which begins with the address
  if ctypes.CDLL(None).sigaction(signal.SIGTERM, None, action):
    return None
  address = ctypes.c_void_p.from_buffer(action).value or 0
  return ctypes.CFUNCTYPE(None, ctypes.c_int)(address) if address > 1 else None


def _watch(reading: int, tell_jax: Callable[[int], None] | None) -> None:
  """Tells JAX of a signal, and starts the clock at the first one. Ends with the pipe."""
  while number := os.read(reading, 1):
    if number[0] != signal.SIGTERM:
      continue
    if tell_jax:
      tell_jax(signal.SIGTERM)
    if _received.clock is None:
      waits = not _received.loops and processes.count_joined() > 1
      _received.clock = threading.Timer(WAITING if waits else _received.grace, _give_up)
      _received.clock.daemon = True
      _received.clock.start()
      if _received.stopped:  # meanwhile
        _received.clock.cancel()


def _note(number: int, frame: object) -> None:
  """Takes note of a signal, in the main thread."""
  _received.signals.append(number)
  if not _received.loops:
    raise errors.Preempted(OUTSIDE)


def _stop_clock() -> None:
  _received.stopped = True
  if _received.clock:
    _received.clock.cancel()


def _give_up() -> None:
  """Ends a process that did not come to its end in time, together with others that do the same."""
  late = f"no step ended within {_received.grace:.0f} s" if _received.loops else OUTSIDE
  print(
    f"vr-jax: SIGTERM: {late}; the same command goes on from the last checkpoint",
    file=sys.stderr,
    flush=True,
  )
  processes.meet_to_end(_MEETING)
  os._exit(EXIT_CODE)


@contextlib.contextmanager
def stops_between_steps() -> Iterator[None]:
  """Within it a signal does not interrupt: a training loop asks `stops_after` after each step.

  Raises errors.Preempted at its end if a signal came too late for that. Several processes go on
  then, until the next loop that asks, or the end of the grace.
  """
  _received.loops += 1
  try:
    yield
  finally:
    _received.loops -= 1
  if came() and processes.count_joined() == 1:
    raise errors.Preempted(OUTSIDE)


def stops_between_batches() -> contextlib.AbstractContextManager[None]:
  """As `stops_between_steps` for several processes; one that is alone is interrupted at once."""
  return stops_between_steps() if processes.count_joined() > 1 else contextlib.nullcontext()


def came() -> bool:
  """Whether this process had the signal."""
  return bool(_received.signals)


def stops_after() -> bool:
  """Whether the step that has just ended is the last one. All processes ask after every step."""
  call = next(_received.calls)
  if processes.count_joined() == 1:
    stops = came()
  else:
    stops = multihost_utils.reached_preemption_sync_point(call)
  if stops:
    _stop_clock()  # from here on there is a step to save
  return stops
