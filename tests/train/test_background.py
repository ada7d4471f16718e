"""Writes on another thread: in order, with their errors, and never too many at a time."""

import threading

import pytest

from vr_jax.train import background


def test_writes_keep_their_order_and_an_error_reaches_the_next_call():
  written, writer = [], background.BackgroundWriter("test")
  for number in range(40):
    writer.submit(written.append, number)
  writer.wait()
  assert written == list(range(40))
  writer.submit(lambda: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    writer.wait()
  writer.close()


def test_a_slow_disk_stops_the_run_instead_of_filling_its_memory():
  writer, go, submitted = background.BackgroundWriter("test"), threading.Event(), []

  def submit_many():
    for number in range(3 * background._MOST):
      writer.submit(go.wait)
      submitted.append(number)

  thread = threading.Thread(target=submit_many)
  thread.start()
  thread.join(0.5)
  assert thread.is_alive() and len(submitted) == background._MOST
  go.set()
  thread.join()
  writer.close()
