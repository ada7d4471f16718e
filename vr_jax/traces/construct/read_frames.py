"""Reads the frames of videos once, and keeps what `frame_hashes` needs of them.

Results are written batch by batch, so an interrupted run decodes no video again but those of the
batch that was in progress. A bad video is not kept: it is tried again at each start, as more time
or memory may be what it needs.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import json
from pathlib import Path
import types

from vr_jax import atomic, plain_json
from vr_jax.data import guarded_reader, image_folder
from vr_jax.errors import InputError
from vr_jax.traces.construct import frame_hashes
from vr_jax.train import console

_BATCH = 64  # videos
_QUALITY, _MAX_SIDE = 90, 256  # of JPEGs that are hashed and thrown away


def read(
  videos: Path,
  names: Sequence[str],
  cache: Path,
  *,
  fps: float,
  limits: guarded_reader.DecodeLimits,
  on_bad: Callable[[str, InputError], None],
  pictures: Mapping[str, image_folder.FolderFrames] = types.MappingProxyType({}),
) -> list[frame_hashes.FrameHashes]:
  """Reads `fps` frames a second of each video, in the order of `names`; bad videos are left out.

  videos: directory that the names are relative to.
  cache: directory of the results.
  on_bad: called with the path and the error of each bad video; may raise the error.
  pictures: the frames of names that are folders of pictures.

  Raises:
    InputError: what `on_bad` raises, or the cache can't be written or is damaged.
  """
  found = []
  with console.progress("frames", len(names)) as tick:
    for start in range(0, len(names), _BATCH):
      batch = names[start : start + _BATCH]
      path = cache / f"{_batch_key(videos, batch, fps, pictures)}.jsonl"
      known = _load(path, batch) if path.is_file() else {}
      new, problems = _read_batch(
        videos, [each for each in batch if each not in known], fps, limits, pictures
      )
      if new:
        known |= new
        cache.mkdir(parents=True, exist_ok=True)
        atomic.write_json_lines(path, [frames.to_json() for frames in known.values()])
      for name in batch:
        if name in known:
          found.append(known[name])
        else:
          on_bad(str(videos / name), problems[name])
      tick(start + len(batch))
  return found


def _read_batch(
  videos: Path,
  names: Sequence[str],
  fps: float,
  limits: guarded_reader.DecodeLimits,
  pictures: Mapping[str, image_folder.FolderFrames],
) -> tuple[dict[str, frame_hashes.FrameHashes], dict[str, InputError]]:
  """The frames of each good video, and the error of each bad one, by name."""
  good, problems = {}, {}
  if not names:
    return good, problems
  paths = [videos / name for name in names]
  results = guarded_reader.extract_all(
    paths,
    fps=fps,
    quality=_QUALITY,
    max_side=_MAX_SIDE,
    limits=limits,
    folders={videos / name: pictures[name] for name in names if name in pictures},
  )
  for name, result in zip(names, results, strict=True):
    if isinstance(result, InputError):
      problems[name] = result
    else:
      times = result.timestamps.tolist()
      good[name] = frame_hashes.of_jpegs(name, result.jpegs, times, result.duration)
  return good, problems


def _batch_key(
  videos: Path,
  names: Sequence[str],
  fps: float,
  pictures: Mapping[str, image_folder.FolderFrames],
) -> str:
  """Names a batch by its files: their names, sizes and times of change."""
  facts = []
  files = [
    f"{name}/{each}" if each else name
    for name in names
    for each in (pictures[name].names if name in pictures else ("",))
  ]
  for name in files:
    try:
      status = (videos / name).stat()
    except OSError as error:
      raise InputError(f"{videos / name}: cannot be read: {error.strerror}") from error
    facts.append([name, status.st_size, status.st_mtime_ns])
  content = json.dumps([str(videos.absolute()), fps, _QUALITY, _MAX_SIDE, facts])
  return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _load(path: Path, names: Sequence[str]) -> dict[str, frame_hashes.FrameHashes]:
  """What is kept of a batch, by name. Raises InputError if the file is damaged."""
  try:
    values = [plain_json.parse(line) for line in path.read_bytes().split(b"\n") if line]
    found = {frames.name: frames for frames in map(frame_hashes.from_json, values)}
    if not found or not found.keys() <= set(names):
      raise ValueError("other videos")
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path}: is damaged; remove it, and its videos are read again") from error
  return found
