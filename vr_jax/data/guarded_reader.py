"""Reads videos and pictures in processes of their own: a bad file can't end or stop the caller.

FFmpeg and Pillow decode files of strangers in C. A damaged or hostile file may crash the process
that decodes it, keep it for ever, or fill the memory. Here that process is a worker
(decode_worker.py) with limits of time, memory and pixels. A file that breaks one is named by an
error like any other bad file, and the next file gets a new worker.
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import json
import math
import os
from pathlib import Path
import select
import signal
import subprocess
import sys
import time
import types
from typing import Any

import numpy as np

from vr_jax.data import decode_worker, image_folder, video_file
from vr_jax.errors import InputError

# Seconds between two looks at the workers. A longer wait counts as one second at most: a run that
# was stopped (Ctrl-Z) may go on.
_POLL = 0.1
_LONGEST_WAIT = 1.0
# Files that each worker may be ahead of the one that the caller waits for.
_AHEAD = 4
# Frames a second, where a video is decoded for its length.
_FIRST_ALONE = 1e-6
# A process is worth its start for so many bytes of files.
_BYTES_PER_PROCESS = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeLimits:
  """Number of worker processes, and what one file may take.

  processes: at most; 0: one a CPU core, at most 16.
  seconds: without a new frame, after which a file counts as one that hangs the decoder.
  memory_gib: of a worker, beyond what it takes when it starts.
  megapixels: of a picture or a video's frame, as they are in the file.
  """

  processes: int = 0
  seconds: float = 120.0
  memory_gib: float = 8.0
  megapixels: float = 100.0


_Result = video_file.ExtractedVideo | InputError


def extract(
  path: Path,
  *,
  fps: float,
  quality: int,
  max_side: int,
  limits: DecodeLimits,
  folder: image_folder.FolderFrames | None = None,
  kept_pixels: int | None = None,
  most_frames: int | None = None,
) -> video_file.ExtractedVideo:
  """Reads one file; the arguments are those of `extract_all`.

  folder: the frames of a path that is a folder of pictures.

  Raises:
    InputError: the file is bad, or breaks a limit.
  """
  (result,) = extract_all(
    [path],
    fps=fps,
    quality=quality,
    max_side=max_side,
    limits=limits,
    folders={} if folder is None else {path: folder},
    kept_pixels=kept_pixels,
    most_frames=most_frames,
  )
  if isinstance(result, InputError):
    raise result
  return result


def extract_all(
  paths: Sequence[Path],
  *,
  fps: float,
  quality: int,
  max_side: int,
  limits: DecodeLimits,
  folders: Mapping[Path, image_folder.FolderFrames] = types.MappingProxyType({}),
  kept_pixels: int | None = None,
  most_frames: int | None = None,
) -> Generator[_Result, None, None]:
  """Yields what `video_file.extract` or `picture_file.extract` gives for each file, in their order.

  For a file that is bad, or breaks a limit, yields the error that says so. The workers end when
  the iterator is closed.

  fps, quality, max_side, kept_pixels, most_frames: see `video_file.extract`; a folder may have any
    number of frames.
  folders: the frames of the paths that are folders of pictures.

  Raises:
    RuntimeError: a worker could not start.
  """
  settings = {
    "fps": fps,
    "quality": quality,
    "max_side": max_side,
    "max_pixels": round(limits.megapixels * 1e6),
    "kept_pixels": kept_pixels,
    "most_frames": most_frames,
  }
  size = sum(map(_bytes, paths))
  most = min(limits.processes or min(_cores(), 16), len(paths))
  count = max(1, min(most, math.ceil(size / _BYTES_PER_PROCESS)))
  workers = [_Worker(limits) for _ in range(count)]
  waiting = deque(enumerate(paths))
  results: dict[int, _Result] = {}
  try:
    for place in range(len(paths)):
      while place not in results:
        for worker in workers:
          if worker.place is None and waiting and waiting[0][0] < place + _AHEAD * count:
            request_place, path = waiting.popleft()
            frames = dataclasses.asdict(folders[path]) if path in folders else {}
            worker.request(request_place, path, settings | frames)
        results |= _wait(workers)
      yield results.pop(place)
  finally:
    for worker in workers:
      worker.kill()


def extract_chosen(
  path: Path,
  *,
  choose: Callable[[float], Sequence[float]],
  quality: int,
  max_side: int,
  limits: DecodeLimits,
  kept_pixels: int | None = None,
  folder: image_folder.FolderFrames | None = None,
) -> video_file.ExtractedVideo:
  """Reads the frames of one file that are on the screen at times that depend on its length.

  Of a still picture, which has no length, the picture. A video is decoded once, where its file
  tells its length (`video_file.read_length`), else twice.

  choose: the times, see `video_file.extract`, for a length in seconds. What it raises for the
    video's length is raised.
  quality, max_side, kept_pixels: see `video_file.extract`.
  folder: the frames of a path that is a folder of pictures.

  Raises:
    InputError: the file is bad, or breaks a limit.
    RuntimeError: the worker could not start.
  """
  settings = {
    "fps": _FIRST_ALONE,
    "quality": quality,
    "max_side": max_side,
    "max_pixels": round(limits.megapixels * 1e6),
    "kept_pixels": kept_pixels,
  }
  worker = _Worker(limits)

  def ask(**settings: Any) -> video_file.ExtractedVideo:
    worker.request(0, path, settings)
    while not (results := _wait([worker])):
      pass
    if isinstance(results[0], InputError):
      raise results[0]
    return results[0]

  try:
    times = None
    if folder is not None:
      settings |= dataclasses.asdict(folder)
      length = len(folder.names) / folder.frame_rate
    else:
      length = ask(length_only=True).duration
    if length:
      with contextlib.suppress(InputError):  # which may be wrong of this length alone
        times = list(choose(length))
    extracted = ask(at=times, **settings)
    if extracted.duration and times != (right := list(choose(extracted.duration))):
      return ask(at=right, **settings)
    if not extracted.duration and times is not None:
      return ask(**settings)
    return extracted
  finally:
    worker.kill()


def _bytes(path: Path) -> int:
  """Size of a file, or of the files in a folder."""
  files = [path] if path.is_file() else path.iterdir() if path.is_dir() else []
  return sum(file.stat().st_size for file in files if file.is_file())


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _wait(workers: Sequence["_Worker"]) -> dict[int, _Result]:
  """Waits until a worker has sent something or a moment is over.

  Returns the results that are complete, by their files' places.
  """
  busy = {worker.answers: worker for worker in workers if worker.place is not None}
  poller = select.poll()
  for answers in busy:
    poller.register(answers, select.POLLIN)
  begun = time.monotonic()
  ready = {answers for answers, _ in poller.poll(1000 * _POLL)}
  waited = min(time.monotonic() - begun, _LONGEST_WAIT)
  results = {}
  for answers, worker in busy.items():
    place = worker.place
    result = worker.receive() if answers in ready else worker.wait(waited)
    if result is not None and place is not None:
      results[place] = result
  return results


class _Worker:
  """One worker process. It is started for its first file, and anew after one that ended it.

  place: of the file that it reads, among all; None if it reads none.
  """

  def __init__(self, limits: DecodeLimits):
    self.place: int | None = None
    self._limits = limits
    self._process: subprocess.Popen[bytes] | None = None
    self._path = Path()
    self._alive = False  # whether it has sent anything since its start
    self._waited = 0.0  # seconds since it last did
    self._header: dict[str, Any] | None = None  # of the answer that it is sending
    self._received = bytearray()

  @property
  def answers(self) -> int:
    """The descriptor to wait for."""
    assert self._process and self._process.stdout
    return self._process.stdout.fileno()

  def request(self, place: int, path: Path, settings: dict[str, Any]) -> None:
    """Gives it a file to read."""
    if self._process is None or self._process.poll() is not None:
      self._start()
    assert self._process and self._process.stdin
    self.place, self._path, self._waited = place, path, 0.0
    line = json.dumps({"path": str(path), **settings})
    try:
      self._process.stdin.write(line.encode() + b"\n")
      self._process.stdin.flush()
    except BrokenPipeError:  # it has just ended; `receive` says so
      pass

  def receive(self) -> _Result | None:
    """Takes what it has sent; returns the result for its file if that is complete."""
    data = os.read(self.answers, 1 << 20)
    if not data:
      return self._ended()
    self._alive, self._waited = True, 0.0
    self._received += data
    header = self._header
    if header is None:
      line, newline, rest = self._received.lstrip(decode_worker.LIFE).partition(b"\n")
      if not newline:
        return None
      header = self._header = json.loads(line)
      self._received = rest
    if len(self._received) < header.get("bytes", 0):
      return None
    jpegs = memoryview(self._received)
    self._finish()
    if "memory" in header:
      self.kill()
      return self._memory_error()
    if "problem" in header:
      return InputError(header["problem"])
    borders = np.cumsum([0, *header["sizes"]]).tolist()
    return video_file.ExtractedVideo(
      jpegs=tuple(bytes(jpegs[a:b]) for a, b in itertools.pairwise(borders)),
      timestamps=np.array(header["timestamps"], np.float64),
      ends=np.array(header["ends"], np.float64),
      height=header["height"],
      width=header["width"],
      duration=header["duration"],
      original_height=header["original_height"],
      original_width=header["original_width"],
    )

  def wait(self, seconds: float) -> InputError | None:
    """Counts seconds without a sign of life; returns an error, and ends it, if these are too many.

    A worker that has yet to start, on a slow disk say, has all the time it takes.
    """
    self._waited += seconds if self._alive else 0.0
    if self._waited < self._limits.seconds:
      return None
    self.kill()
    self._finish()
    return InputError(
      f"{self._path}: keeps the decoder busy for {self._limits.seconds:g} s without a frame; "
      "write it anew (ffmpeg -i OLD NEW.mp4), or raise config.data.decode.seconds"
    )

  def kill(self) -> None:
    """Ends the process, whatever it does."""
    process, self._process = self._process, None
    if process:
      process.kill()
      process.wait()
      for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was still to be written
          assert pipe
          pipe.close()

  def _start(self) -> None:
    self.kill()
    self._alive = False
    most = round(self._limits.memory_gib * 2**30)
    self._process = subprocess.Popen(
      # -P: modules are found where this process finds them, not in the current directory.
      [sys.executable, "-P", "-m", decode_worker.__name__, str(most)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      process_group=0,  # Ctrl-C and Ctrl-Z are for this process alone
      env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
    )

  def _finish(self) -> None:
    """Makes it ready for another file."""
    self.place, self._header, self._received = None, None, bytearray()

  def _ended(self) -> InputError:
    """Returns the error for a file during which the process ended."""
    assert self._process
    code = self._process.wait()
    self.kill()
    if not self._alive:
      raise RuntimeError(f"a process that decodes videos could not start (exit code {code})")
    if code == -signal.SIGKILL:
      how = "the system ended its decoder, perhaps for lack of memory"
    else:
      how = f"crashes the decoder ({signal.Signals(-code).name if code < 0 else f'exit {code}'})"
    self._finish()
    return InputError(f"{self._path}: {how}; write it anew (ffmpeg -i OLD NEW.mp4) or leave it out")

  def _memory_error(self) -> InputError:
    return InputError(
      f"{self._path}: needs more than {self._limits.memory_gib:g} GiB of memory; "
      "make it smaller, or raise config.data.decode.memory_gib"
    )
