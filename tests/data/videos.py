"""Writes small video files, good and bad, for the tests of the data room."""

from fractions import Fraction
from pathlib import Path

import av
from jaxtyping import UInt8
import numpy as np


def picture(index: int, *, size: int = 64, mark: int = 20) -> UInt8[np.ndarray, "size size 3"]:
  """Frame `index` of a test video: a grey that encodes the index, a red mark at the top left.

  mark: green of the mark's colour; videos with other marks are other videos.
  """
  image = np.full((size, size, 3), 10 + 3 * (index % 80), np.uint8)
  image[: size // 4, : size // 4] = (220, mark, 20)
  return image


def write(
  path: Path,
  *,
  frames: int = 80,
  fps: int = 8,
  size: int = 64,
  start: float = 0.0,
  times: list[float] | None = None,
  pictures: list[UInt8[np.ndarray, "height width 3"]] | None = None,
  container_options: dict[str, str] | None = None,
  mark: int = 20,
) -> Path:
  """Writes an H.264 file. `times` (seconds) and `pictures` replace the default times and frames."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w", options=container_options or {}) as container:
    stream = container.add_stream("libx264", rate=fps, options={"crf": "10"})
    stream.height, stream.width = pictures[0].shape[:2] if pictures else (size, size)
    stream.pix_fmt = "yuv420p"
    stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
    for index in range(frames):
      time = times[index] if times else start + index / fps
      image = pictures[index] if pictures else picture(index, size=size, mark=mark)
      frame = av.VideoFrame.from_ndarray(image, format="rgb24")
      frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def write_audio(path: Path) -> Path:
  """Writes an .mp4 with a second of silence and no video."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("aac", rate=16000, layout="mono")
    for _ in range(16):
      silence = np.zeros((1, 1024), np.float32)
      frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
      frame.sample_rate = 16000
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def damage(path: Path, *, start: float, length: int) -> Path:
  """Changes `length` bytes of a file, from the fraction `start` of its size on."""
  data = bytearray(path.read_bytes())
  begin = int(len(data) * start)
  for index in range(begin, begin + length):
    data[index] ^= 0x5A
  path.write_bytes(data)
  return path


def truncate(path: Path, fraction: float) -> Path:
  """Keeps only the first `fraction` of a file."""
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * fraction)])
  return path
