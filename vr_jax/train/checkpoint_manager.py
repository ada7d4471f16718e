"""Orbax's manager of checkpoints as training loops need it, and what its errors mean."""

import asyncio
from collections.abc import Callable
import errno
import logging
import os
from pathlib import Path
import re
from typing import Any

import jax
import orbax.checkpoint as ocp

from vr_jax import atomic

# What the system says of a write that fails again until somebody has done something.
_LASTING = tuple(
  os.strerror(each)
  for each in (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
  )
)


class StepwiseManager(ocp.CheckpointManager):
  """Leaves preemptions to the training loops (parallel/preemption.py), and tells of failed writes.

  Orbax would ask JAX for preemptions, too, with numbers of its own, and JAX agrees on a number at
  which to stop. And what fails in one of several processes it keeps until all have met.

  on_failure: called with the error of a write in the background, on the thread that met it.
  """

  def __init__(
    self, directory: Path, *, on_failure: Callable[[Exception], None], **options: Any
  ) -> None:
    logging.getLogger("absl").addFilter(_is_not_orbax_traceback)
    self._on_failure = on_failure
    super().__init__(directory, **options)

  def reached_preemption(self, step: int) -> bool:
    """No."""
    return False

  def _wait_for_checkpointers(self) -> None:
    """Waits until this process's part is written, and all others' are."""
    try:
      super()._wait_for_checkpointers()
    except Exception as error:
      self._on_failure(error)
      raise


class MarkedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """A directory that Orbax fills, then renames, also where that moves its files one by one."""

  async def finalize(self) -> None:
    """Gives it its name; a mark tells until then that it is not whole (atomic.py)."""
    await asyncio.to_thread(atomic.mark_move, Path(self.get()), Path(self.get_final()))
    try:
      await super().finalize()
    except OSError as error:
      if not atomic.is_refusal(error):
        raise
    await asyncio.to_thread(atomic.finish_move, Path(self.get_final()))


def is_of_another(error: Exception) -> bool:
  """Whether a write failed because another process did not come to where Orbax meets it."""
  return isinstance(error.__cause__, jax.errors.JaxRuntimeError)


def system_reason(error: Exception) -> str | None:
  """Why the system refused to write, if it did. TensorStore's errors are ValueErrors."""
  match = re.search(r"([^:]+) \[os_error_code=", str(error))
  if match:
    return match[1].strip()
  if not isinstance(error, OSError) or is_of_another(error):
    return None
  return error.strerror or str(error)


def is_lasting(reason: str) -> bool:
  """Whether writes fail for this reason of the system until space or permission is given."""
  return reason in _LASTING


def _is_not_orbax_traceback(record: logging.LogRecord) -> bool:
  """Whether to log a message: not tracebacks of Orbax's threads, whose errors are raised, too."""
  return not (record.exc_info and "orbax" in record.pathname)
