"""FFmpeg's command line: writes the files of real people, and decodes them independently of us."""

from pathlib import Path
import struct
import subprocess

import imageio_ffmpeg
import numpy as np

# Frame n of INDEX has the grey level 20 + 2.5 n, so a picture tells which frame it is.
INDEX = (
  *("-f", "lavfi", "-i", "color=c=black:s=64x64:r=8:d=10,format=gray,geq=lum='20+2.5*N'"),
  *("-c:v", "libx264", "-qp", "4", "-pix_fmt", "yuv420p", "-color_range", "pc", "-g", "16"),
)


def run(*arguments: str | Path) -> bytes:
  """Runs ffmpeg and returns what it writes to stdout."""
  command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, check=False)
  assert done.returncode == 0, done.stderr.decode()
  return done.stdout


def index_video(directory: Path) -> Path:
  """Writes 80 frames at 8 a second, with B-frames, as index.mp4."""
  path = directory / "index.mp4"
  run(*INDEX, "-bf", "2", path)
  return path


def first_picture(path: Path, width: int, height: int, filters: str = "null") -> np.ndarray:
  """The first frame as FFmpeg shows it, [height, width, 3]; its size is checked."""
  raw = run(
    *("-i", path, "-vf", filters, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
  )
  return np.frombuffer(raw, np.uint8).reshape(height, width, 3)


def picture_at(path: Path, seconds: float, width: int, height: int) -> np.ndarray:
  """What FFmpeg shows at a time: a picture stays until the next one. [height, width, 3]."""
  filters = f"fps=8:round=up:start_time=0,trim=start={seconds},setpts=PTS-STARTPTS"
  return first_picture(path, width, height, filters)


def write_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
  """Writes the display matrix into the track header of an MP4 file."""
  parts = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
  data = bytearray(path.read_bytes())
  place = data.index(b"tkhd") + 4 + 40
  data[place : place + 36] = struct.pack(">9i", *parts)
  path.write_bytes(data)
