"""Reads videos and pictures in a process of its own, which a bad file can end or keep for ever.

`guarded_reader` starts it as `python -m vr_jax.data.decode_worker` and writes one line of JSON to
its stdin for each file, with `length_only` where it needs no frames. On stdout it answers with
empty lines as signs of life, at the start and while frames are decoded; then with one line of JSON,
which the frames' JPEGs follow.
"""

from collections.abc import Callable, Iterator
import json
import os
from pathlib import Path
import queue
import resource
import sys
import threading
import time
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from vr_jax.data import image_folder, picture_file, video_file
from vr_jax.errors import InputError

LIFE = b"\n"  # the sign of life
_LIFE_SECONDS = 0.1  # between two of them, at least


def main() -> None:
  """Answers until stdin is closed. The argument is the most memory in bytes for one file."""
  answers = os.fdopen(os.dup(1), "wb")
  # What a library prints would come between the answers, or on the terminal.
  with open(os.devnull, "wb") as nowhere:
    os.dup2(nowhere.fileno(), 1)
    os.dup2(nowhere.fileno(), 2)
  _limit_memory(int(sys.argv[1]))
  Image.MAX_IMAGE_PIXELS = None  # each request has a limit of its own
  _send(answers, LIFE)
  for request in _requests():
    _send(answers, *_answer(request, answers))


def _requests() -> Iterator[dict[str, Any]]:
  """Yields the requests. A thread reads them, so that the end of stdin ends a decoder at work."""
  lines: queue.SimpleQueue[str] = queue.SimpleQueue()

  def read() -> None:
    for line in sys.stdin:
      lines.put(line)
    os._exit(0)

  threading.Thread(target=read, daemon=True).start()
  while True:
    yield json.loads(lines.get())


def _limit_memory(most: int) -> None:
  """Limits what this process may take beyond what it has now. Only Linux keeps to such a limit."""
  if sys.platform != "linux":
    return
  pages = int(Path("/proc/self/statm").read_text().split()[0])
  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  limit = pages * resource.getpagesize() + most
  if hard != resource.RLIM_INFINITY:
    limit = min(limit, hard)
  resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _answer(request: dict[str, Any], answers: BinaryIO) -> tuple[bytes, ...]:
  """Reads one file; returns the line of JSON and the JPEGs, or a line that says what is wrong."""
  path = Path(request.pop("path"))
  fps, most, at = (request.pop(name, None) for name in ("fps", "most_frames", "at"))
  last = time.monotonic()

  def progress() -> None:
    nonlocal last
    if time.monotonic() > last + _LIFE_SECONDS:
      last = time.monotonic()
      _send(answers, LIFE)

  try:
    if "length_only" in request:
      extracted = _without_frames(path, progress)
    elif "frame_rate" in request:
      extracted = image_folder.extract(path, fps=fps, at=at, progress=progress, **request)
    elif picture_file.is_picture(path.name):
      extracted = picture_file.extract(path, **request)
    else:
      extracted = video_file.extract(
        path, fps=fps, at=at, most_frames=most, progress=progress, **request
      )
  except InputError as error:
    return (_line({"problem": str(error)}),)
  except (MemoryError, BlockingIOError):  # the latter: no memory for another thread
    return (_line({"memory": True}),)
  except Exception as error:
    problem = f"{path}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"
    return (_line({"problem": problem}),)
  sizes = [len(jpeg) for jpeg in extracted.jpegs]
  fields = {
    "sizes": sizes,
    "bytes": sum(sizes),
    "timestamps": extracted.timestamps.tolist(),
    "ends": extracted.ends.tolist(),
    "height": extracted.height,
    "width": extracted.width,
    "duration": extracted.duration,
    "original_height": extracted.original_height,
    "original_width": extracted.original_width,
  }
  return _line(fields), *extracted.jpegs


def _without_frames(path: Path, progress: Callable[[], None]) -> video_file.ExtractedVideo:
  """The length of a video that its file tells; 0 of a picture."""
  is_picture = picture_file.is_picture(path.name)
  length = 0.0 if is_picture else video_file.read_length(path, progress=progress)
  none = np.zeros(0)
  return video_file.ExtractedVideo(
    jpegs=(), timestamps=none, ends=none, height=0, width=0, duration=length
  )


def _line(value: Any) -> bytes:
  return json.dumps(value).encode() + b"\n"


def _send(answers: BinaryIO, *chunks: bytes) -> None:
  answers.writelines(chunks)
  answers.flush()


if __name__ == "__main__":
  main()
