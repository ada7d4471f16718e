"""Damaged video files through our reader, and through FFmpeg's command for comparison.

    python -m benchmarks.fuzz_videos --files=2000

For each container, a short video with sound is written and damaged in many ways: flipped bits, cut
ends, blocks that are removed, doubled, exchanged or overwritten, and numbers of headers set to odd
values. Each file is read in a worker process with limits (vr_jax/data/guarded_reader.py). One that
is accepted is decoded by FFmpeg's command as well, which is another version of FFmpeg with its own
rules about times. Violations are: a file that stops the reader itself; one that hangs its decoder;
one that is accepted with a length that differs from what FFmpeg's command finds by more than three
frames, unless it is read like the undamaged file.

Prints one JSON line for each container: how many files were accepted, refused, and ended their
decoder (a crash, which the reader survives and names); of the accepted ones, how many were read
like the undamaged file (some of these unlike by FFmpeg's command), and how many have another number
of frames than FFmpeg's command finds; and the violations. Exit code 1 after a violation; `--keep`
is a directory for those files. Needs imageio-ffmpeg, as the tests do.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
import dataclasses
import json
from pathlib import Path
import random
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import imageio_ffmpeg

from benchmarks import damage
from vr_jax.data import guarded_reader, video_file

SECONDS, RATE = 5, 8
_H264 = ("-c:v", "libx264", "-preset", "veryfast", "-g", "8", "-bf", "2")
_AAC = ("-c:a", "aac", "-b:a", "24k")
_FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof"
# How the video of each container is written; the words after a space are part of the name alone.
CONTAINERS = {
  "mp4": (*_H264, *_AAC, "-f", "mp4"),
  "faststart.mp4": (*_H264, *_AAC, "-movflags", "faststart", "-f", "mp4"),
  "fragmented.mp4": (*_H264, *_AAC, "-movflags", _FRAGMENTS, "-f", "mp4"),
  "mov": (*_H264, *_AAC, "-f", "mov"),
  "mkv": (*_H264, *_AAC, "-f", "matroska"),
  "webm": ("-c:v", "libvpx-vp9", "-g", "8", "-c:a", "libopus", "-b:a", "24k", "-f", "webm"),
  "avi": ("-c:v", "mpeg4", "-g", "8", "-c:a", "libmp3lame", "-b:a", "32k", "-f", "avi"),
  "ts": (*_H264, *_AAC, "-f", "mpegts"),
  "flv": (*_H264, *_AAC, "-f", "flv"),
  "mpg": ("-c:v", "mpeg2video", "-r", "25", "-c:a", "mp2", "-b:a", "32k", "-f", "mpeg"),
  "wmv": ("-c:v", "wmv2", "-g", "8", "-c:a", "wmav2", "-b:a", "32k", "-f", "asf"),
}
_LIMITS = guarded_reader.DecodeLimits(processes=1, seconds=10.0, memory_gib=2.0)
_FFMPEG_SECONDS = 60  # of one run of FFmpeg's command
_AT_ONCE = 50  # files on disk
_FRAMES = 3.1  # by which lengths may differ; the reader lets headers be wrong by three


@dataclasses.dataclass(frozen=True)
class _Length:
  """What a reader finds in a file: number of frames, and seconds to the end of the last one."""

  frames: int
  seconds: float

  def agrees(self, other: "_Length", tolerance: float) -> bool:
    return abs(self.seconds - other.seconds) <= tolerance


def _ffmpeg(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
  command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-v", "error", *map(str, words)]
  return subprocess.run(command, capture_output=True, check=False, timeout=_FFMPEG_SECONDS)


def write_video(path: Path, container: str) -> None:
  """Writes the undamaged video of a container: 40 frames in 5 s (mpg: 125), with a tone."""
  picture = ("-f", "lavfi", "-i", f"testsrc=s=64x64:r={RATE}:d={SECONDS}")
  tone = ("-f", "lavfi", "-i", f"sine=duration={SECONDS}:sample_rate=16000")
  done = _ffmpeg(*picture, *tone, "-pix_fmt", "yuv420p", *CONTAINERS[container], path)
  if done.returncode:
    raise ValueError(f"{container}: {done.stderr.decode()}")


def measure_with_ffmpeg(path: Path) -> _Length:
  """What FFmpeg's command decodes; 0 frames if it gives up."""
  times = ("-fps_mode", "passthrough", "-enc_time_base", "demux")
  lines = _ffmpeg("-i", path, "-an", "-sn", "-dn", *times, "-f", "framecrc", "-").stdout.decode()
  unit, starts, ends = 0.0, [], []
  for line in lines.splitlines():
    if line.startswith("#tb 0: "):
      above, below = line.removeprefix("#tb 0: ").split("/")
      unit = int(above) / int(below)
    elif not line.startswith("#"):
      _, _, start, duration, *_ = line.split(",")
      starts.append(int(start) * unit)
      ends.append((int(start) + int(duration)) * unit)
  return _Length(len(starts), ends[-1] - starts[0]) if starts else _Length(0, 0.0)


def damaged(whole: bytes, container: str, number: int, seed: int) -> bytes:
  """The damaged file of this number, the same in every run."""
  rng, data = random.Random(f"{seed} {container} {number}"), bytearray(whole)
  for _ in range(rng.choice((1, 1, 1, 2))):
    rng.choice(damage.BYTES)(rng, data)
  return bytes(data)


def _read(paths: Sequence[Path]) -> Iterator[tuple[Path, _Length | str]]:
  """What our reader finds in each file, or its error."""
  # A rate so high that each frame is kept.
  results = guarded_reader.extract_all(paths, fps=5000.0, quality=50, max_side=64, limits=_LIMITS)
  for path, result in zip(paths, results, strict=True):
    if isinstance(result, video_file.ExtractedVideo):
      yield path, _Length(len(result.jpegs), result.duration)
    else:
      yield path, str(result).removeprefix(f"{path}: ")


def _check(path: Path, found: _Length | str, whole: _Length, counts: Counter) -> str:
  """Counts the outcome of one file, and returns what it violates, if anything."""
  if isinstance(found, _Length):
    other, tolerance = measure_with_ffmpeg(path), _FRAMES * whole.seconds / whole.frames
    same, as_whole = found.agrees(other, tolerance), found == whole
    counts["accepted"] += 1
    counts["as if whole"] += as_whole
    counts["with another number of frames"] += found.frames != other.frames
    counts["whole, unlike FFmpeg's command"] += as_whole and not same
    if same or as_whole:
      return ""
    return f"accepted as {found}, FFmpeg's command finds {other}"
  if "keeps the decoder busy" in found:
    return found
  ended = "crashes the decoder" in found or "ended its decoder" in found
  counts["ended the decoder" if ended else "refused"] += 1
  counts["over the memory limit"] += "GiB of memory" in found
  return "" if "\n" not in found else f"an error of several lines: {found}"


def run(container: str, files: int, *, seed: int = 0, keep: Path | None = None) -> dict[str, Any]:
  """Damages and reads files of one container, and returns the fields of its JSON line."""
  counts, violations, begun = Counter(), [], time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    original = Path(folder) / f"whole.{container}"
    write_video(original, container)
    expected = measure_with_ffmpeg(original)
    for first in range(0, files, _AT_ONCE):
      paths = [original]
      for number in range(first, min(first + _AT_ONCE, files)):
        paths.append(Path(folder) / f"{number:05d}.{container}")
        paths[-1].write_bytes(damaged(original.read_bytes(), container, number, seed))
      results = _read(paths)
      _, whole = next(results)
      if isinstance(whole, str) or not whole.agrees(expected, 0.01):
        raise ValueError(f"{container}: the undamaged file is read as {whole}")
      for path, found in results:
        if violation := _check(path, found, whole, counts):
          violations.append(f"{path.name}: {violation}")
          if keep:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, keep / path.name)
        path.unlink()
  return {
    "container": container,
    "files": files,
    **{name: counts[name] for name in ("accepted", "as if whole")},
    **{name: counts[name] for name in ("whole, unlike FFmpeg's command", "refused")},
    **{name: counts[name] for name in ("ended the decoder", "over the memory limit")},
    "with another number of frames": counts["with another number of frames"],
    "violations": violations,
    "seconds": round(time.perf_counter() - begun, 1),
  }


def _read_containers(text: str) -> list[str]:
  """The value of --only."""
  names = text.split(",")
  if unknown := [name for name in names if name not in CONTAINERS]:
    raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {','.join(CONTAINERS)}")
  return names


def main(argv: Sequence[str]) -> int:
  """Runs the containers and prints a JSON line for each."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.fuzz_videos",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--files", type=int, default=2000, help="files of each container")
  parser.add_argument("--seed", type=int, default=0, help="seed of the damages")
  parser.add_argument(
    "--only",
    type=_read_containers,
    default=[*CONTAINERS],
    help=f"containers, with commas between them, of {','.join(CONTAINERS)}",
  )
  parser.add_argument("--keep", type=Path, help="directory for files that are violations")
  options = parser.parse_args(argv)
  violations = 0
  for container in options.only:
    outcome = run(container, options.files, seed=options.seed, keep=options.keep)
    violations += len(outcome["violations"])
    print(json.dumps(outcome), flush=True)
  return 1 if violations else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
