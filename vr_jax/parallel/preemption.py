"""SIGTERM: a machine that is taken away gives notice, and training stops at a step that is saved.

A TPU machine that is taken away, and Kubernetes, send SIGTERM and end the process some seconds
later. With several processes JAX agrees on the step at which all stop, even if only one of them had
the signal. Outside of a training loop a process that is alone stops at once; what it had not
finished is done again.
"""

from collections.abc import Iterator
import contextlib
import itertools
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


class _Received:
  """What this process knows: signals that came, loops that will look, and calls so far."""

  def __init__(self) -> None:
    self.signals: list[int] = []
    self.loops = 0
    self.calls = itertools.count(1)
    self.clock: threading.Timer | None = None


_received = _Received()


@contextlib.contextmanager
def noticed() -> Iterator[None]:
  """Within it, SIGTERM stops a run as this module says.

  Call it in the main thread, once the processes of a run have joined. Another handler than the
  system's own is left alone.
  """
  alone = processes.count_joined() == 1  # else JAX's own handler tells all processes
  default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  if not (alone and default and threading.current_thread() is threading.main_thread()):
    yield
    return
  _received.signals.clear()
  signal.signal(signal.SIGTERM, _note)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _note(number: int, frame: object) -> None:
  """Takes note of a signal. Only the first one starts the clock."""
  _received.signals.append(number)
  if len(_received.signals) == 1:
    _received.clock = threading.Timer(GRACE, _give_up)
    _received.clock.daemon = True
    _received.clock.start()
  if not _received.loops:
    raise errors.Preempted(OUTSIDE)


def _give_up() -> None:
  """Ends a process whose step took longer than the grace."""
  print(
    f"vr-jax: SIGTERM: no step ended within {GRACE:.0f} s; the same command goes on from the last "
    "checkpoint",
    file=sys.stderr,
    flush=True,
  )
  os._exit(EXIT_CODE)


@contextlib.contextmanager
def stops_between_steps() -> Iterator[None]:
  """Within it a signal does not interrupt: a training loop asks `stops_after` after each step.

  Raises errors.Preempted at its end if a signal came too late for that.
  """
  _received.loops += 1
  try:
    yield
  finally:
    _received.loops -= 1
  if came():
    raise errors.Preempted(OUTSIDE)


def came() -> bool:
  """Whether this process had the signal. With several processes JAX keeps that to itself."""
  return bool(_received.signals)


def stops_after() -> bool:
  """Whether the step that has just ended is the last one. All processes ask after every step."""
  call = next(_received.calls)
  if processes.count_joined() == 1:
    if came() and _received.clock:
      _received.clock.cancel()  # from here on there is a step to save
    return came()
  return multihost_utils.reached_preemption_sync_point(call)
