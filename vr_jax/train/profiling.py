"""Traces of some steps for XProf, TensorBoard's profile page and Perfetto: <workdir>/profile."""

from collections.abc import Iterator
import contextlib
from pathlib import Path
import re

import jax

from vr_jax import errors
from vr_jax.train import console


def parse_steps(text: str) -> tuple[int, int] | None:
  """First and last step of "10:15"; None for "".

  Raises InputError for anything else.
  """
  if not text:
    return None
  match = re.fullmatch(r"(\d+):(\d+)", text)
  if match is None or not 1 <= int(match[1]) <= int(match[2]):
    raise errors.InputError(
      f"--config.log.profile_steps={text}: needs the first and the last step, as 10:15"
    )
  return int(match[1]), int(match[2])


class StepProfiler:
  """Records the steps of one stage that config.log.profile_steps asks for.

  Each process writes its own trace. Steps that a resumed run does not repeat are not recorded.
  """

  def __init__(self, workdir: Path, stage: str, steps: str) -> None:
    own = f"process-{jax.process_index()}" if jax.process_count() > 1 else ""
    self._directory, self._range = workdir / "profile" / stage / own, parse_steps(steps)
    self._running = False

  def begin(self, step: int) -> None:
    """A step begins."""
    if self._range and not self._running and self._range[0] <= step <= self._range[1]:
      jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
      self._running = True

  def end(self, step: int) -> None:
    """A step has ended, and what it computes is on the host."""
    if self._running and self._range and step >= self._range[1]:
      self.close()

  def close(self) -> None:
    """Writes the trace, if one is being recorded."""
    if self._running:
      self._running = False
      with console.doing("writing the profile", announce=True):
        try:
          jax.profiler.stop_trace()
        except (OSError, ValueError, RuntimeError) as error:  # no reason to stop a run
          console.print_note(f"vr-jax: {self._directory}: the profile can't be written: {error}")
          return
      console.print_line(f"profile: {self._directory}")


@contextlib.contextmanager
def profiler(workdir: Path, stage: str, steps: str) -> Iterator[StepProfiler]:
  """Yields the profiler of a stage; a trace that is open at the end is written."""
  made = StepProfiler(workdir, stage, steps)
  try:
    yield made
  finally:
    made.close()
