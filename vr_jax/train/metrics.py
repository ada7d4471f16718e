"""Writes the metrics of a run: as JSON, one object a line, and for TensorBoard."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import math
from pathlib import Path
import resource
import time
from typing import BinaryIO

import jax
from jaxtyping import UInt8
import ml_collections
import numpy as np

from vr_jax import atomic, errors, goodput, plain_json
from vr_jax.parallel import processes
from vr_jax.train import background, rollout_samples, tensorboard_log, wandb_log

SEND_PERIOD = 30.0  # seconds after which lines are seen on other hosts, where a bucket is mounted


class MetricsLog:
  """Appends the metrics of one stage to `metrics.jsonl` and `tensorboard/` of a workdir.

  A thread writes, while the next step runs. If it can't, the next call of `write`, `wait` or
  `close` raises OSError.

  A line is {"stage", "step", "values"}. Values under `perf/` (times and rates) and `vision/`
  (hits of the cache) differ from run to run. A run that was killed and started again reproduces
  all others bit for bit.
  """

  def __init__(
    self,
    workdir: Path,
    stage: str,
    *,
    first_step: int,
    config: ml_collections.ConfigDict | None = None,
  ) -> None:
    """Opens the files, and drops lines of this stage that are newer than the resumed checkpoint.

    Only the first process writes; in the others all methods do nothing.

    first_step: the next step; its line and all later ones of this stage are dropped.
    config: of the run; None: nothing is sent to Weights & Biases.

    Raises InputError if Weights & Biases refuses the run.
    """
    self._writes = processes.is_first()
    if not self._writes:
      return
    self._path = path = workdir / "metrics.jsonl"
    self._workdir, self._stage = workdir, stage
    keep = [
      line
      for line in read(path, complete=False)
      if line["stage"] != stage or line["step"] < first_step
    ]
    atomic.write_json_lines(path, keep)
    self._file = _open(path)
    self._times = goodput.open_file(workdir)
    goodput.note_stage(self._times, stage, first_step)
    self._sent = time.monotonic()
    board = workdir / "tensorboard" / stage
    self._board = tensorboard_log.TensorBoardLog(board, first_step=first_step)
    self._wandb = None
    if config is not None and config.log.wandb:
      self._wandb = wandb_log.WandbLog(workdir, stage, config)
    self._writer = background.BackgroundWriter("metrics")

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the values of a step. Values that are not finite become null: JSON has no nan."""
    if self._writes:
      self._writer.submit(self._put, step, dict(values))

  def write_samples(
    self,
    step: int,
    pair: rollout_samples.SampledPair,
    frames: UInt8[np.ndarray, "height width 3"] | None,
  ) -> None:
    """Writes two replies of a step, for TensorBoard and Weights & Biases.

    frames: a picture of what was shown.
    """
    if self._writes:
      self._writer.submit(self._put_samples, step, pair, frames)

  def wait(self) -> None:
    """Waits until all is on disk. Call it before saving a checkpoint of the same step."""
    if self._writes:
      self._writer.submit(self._send)
      self._writer.wait()

  def close(self) -> None:
    """Waits, then closes all."""
    if not self._writes:
      return
    try:
      self._writer.close()
    finally:
      self._file.close()
      self._times.close()
      self._board.close()
      if self._wandb:
        self._wandb.close()

  def _put(self, step: int, values: Mapping[str, float]) -> None:
    clean = {name: float(value) for name, value in values.items()}
    finite = {name: value if math.isfinite(value) else None for name, value in clean.items()}
    with _named(self._path):
      line = json.dumps({"stage": self._stage, "step": step, "values": finite}).encode() + b"\n"
      while line:  # a disk that is nearly full takes a part of it
        line = line[self._file.write(line) :]
    goodput.note_step(self._times, self._stage, step, clean)
    with _named(self._workdir / "tensorboard"):
      self._board.write_scalars(step, clean)
    if self._wandb:
      self._wandb.write_scalars(step, clean)
    if time.monotonic() - self._sent >= SEND_PERIOD:
      self._send()

  def _send(self) -> None:
    """Closes the files, whereby a mounted bucket gets them, and opens them again."""
    self._sent = time.monotonic()
    with _named(self._path):
      try:
        atomic.close_published(self._file)
      finally:
        self._file = _open(self._path)
    try:
      with contextlib.suppress(OSError):
        atomic.close_published(self._times)
    finally:
      self._times = goodput.open_file(self._workdir)
    with _named(self._workdir / "tensorboard"):
      self._board.publish()

  def _put_samples(
    self,
    step: int,
    pair: rollout_samples.SampledPair,
    frames: UInt8[np.ndarray, "height width 3"] | None,
  ) -> None:
    for name, reply in pair.replies().items():
      self._board.write_text(
        step, f"completions/{name}", rollout_samples.markdown(pair.line, reply)
      )
    if frames is not None:
      self._board.write_image(step, "completions/frames", frames)
    if self._wandb:
      self._wandb.write_samples(step, pair, frames)


def _open(path: Path) -> BinaryIO:
  return path.open("ab", buffering=0)  # a full disk is noticed by the write, not by close


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
  """Gives an OSError, as of a full disk, the name of the file: what writes to it knows none."""
  try:
    yield
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(path)) from error


def read(path: Path, *, complete: bool = True) -> list[dict]:
  """Reads the lines of a metrics file; [] if there is no file.

  complete: False leaves out a last line that a kill has cut short.

  Raises InputError for any other line that does not parse.
  """
  if not path.exists():
    return []
  lines = path.read_bytes().splitlines()
  parsed = []
  for number, line in enumerate(lines, 1):
    try:
      value = plain_json.parse(line)
    except ValueError as error:
      if not complete and number == len(lines):
        break
      raise errors.InputError(f"{path}:{number}: not a JSON object: {error}") from error
    if not isinstance(value, dict) or not {"stage", "step", "values"} <= value.keys():
      raise errors.InputError(f"{path}:{number}: needs stage, step and values; delete the line")
    parsed.append(value)
  return parsed


def memory() -> dict[str, float]:
  """The memory of this process, in MiB.

  perf/host_peak_mib: most resident memory so far.
  perf/device_peak_mib: most memory so far on its first device, if the backend counts it.
  perf/device_memory_mib: what is in use there now.
  """
  found = {"perf/host_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
  counted = jax.local_devices()[0].memory_stats() or {}
  for name, field in (("peak", "peak_bytes_in_use"), ("memory", "bytes_in_use")):
    if field in counted:
      found[f"perf/device_{name}_mib"] = counted[field] / 2**20
  return found
