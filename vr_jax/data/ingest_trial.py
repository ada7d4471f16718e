"""Reads a data set as ingestion would, but only for some seconds, and keeps nothing.

All records are checked, and all problems collected instead of stopping at the first one.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import hashlib
from pathlib import Path
import tempfile
import time

from vr_jax import records
from vr_jax.data import (
  annotations,
  frame_store,
  guarded_reader,
  ingest,
  ingest_masks,
  video_file,
)
from vr_jax.errors import InputError

_MANY = 20  # videos after which the start of the processes is left out of the time


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestTrial:
  """What was found, while the store of the frames exists.

  problems: one line for each bad record or video.
  splits: all valid records, by split; spans may still be unbounded.
  examples: those about the videos that were read.
  store: the frames of these videos.
  videos: number of videos that records refer to.
  read: number of these that were read, bad ones included.
  bad: number of these that can't be used.
  seconds_per_video: that reading took.
  stored_bytes: of their frames.
  """

  problems: list[str]
  splits: ingest.Splits
  examples: list[records.Example]
  store: frame_store.FrameStore
  videos: int
  read: int
  bad: int
  seconds_per_video: float
  stored_bytes: int


@contextlib.contextmanager
def try_ingest(
  videos: Path,
  annotation_file: Path,
  config: ingest.IngestConfig,
  *,
  limits: guarded_reader.DecodeLimits,
  check_record: annotations.Check | None,
  seconds: float,
) -> Iterator[IngestTrial]:
  """Yields what ingestion would find; see `ingest.ingest`.

  seconds: no further video is read after this time. The first ones are drawn by a hash.

  Raises InputError if the directory or the annotation file can't be read at all.
  """
  bad = ingest.BadInputs("skip")
  files = video_file.find(videos)
  questions = annotations.read(annotation_file, frozenset(files), on_bad=bad, check=check_record)
  questions = ingest_masks.without_conflicts(questions, bad)
  named = {question.example.video for question in questions}
  names = sorted(named, key=lambda name: hashlib.sha256(name.encode()).digest())
  with tempfile.TemporaryDirectory() as directory:
    writer = frame_store.FrameStoreWriter(
      Path(directory), fps=config.fps, shard_megabytes=config.shard_megabytes
    )
    begun, stored, read, bad_videos = time.monotonic(), 0, [], set()
    times = [begun]
    folders = ingest_masks.folder_frames(questions, files)
    results = ingest.extract_each(videos, names, writer, config, limits, bad, folders)
    with contextlib.closing(results):
      for name, result in results:
        read.append(name)
        if isinstance(result, InputError):
          bad_videos.add(name)
        else:
          stored += sum(map(len, result.jpegs))
        times.append(time.monotonic())
        if times[-1] > begun + seconds:
          break
    writer.close()
    store = frame_store.FrameStore(Path(directory))
    about = [q for q in questions if q.example.video in read and q.example.video not in bad_videos]
    examples = ingest.check_spans(about, store, {}, config, bad)
    yield IngestTrial(
      problems=[f"{entry['where']}: {_one_line(entry)}" for entry in bad.entries],
      splits=ingest.split([question.example for question in questions], config),
      examples=examples,
      store=store,
      videos=len(names),
      read=len(read),
      bad=len(bad_videos),
      seconds_per_video=_seconds_per_video(times),
      stored_bytes=stored,
    )


def _seconds_per_video(times: Sequence[float]) -> float:
  """How long a video takes. times: of the start, and of each result, in seconds.

  Results come in order, so one may come at once after another that took longer, and the first one
  waits for the processes to start. So the time of few videos is divided among all of them; of many,
  the later half counts.
  """
  count = len(times) - 1
  first = 0 if count < _MANY else count // 2
  return (times[-1] - times[first]) / max(count - first, 1)


def _one_line(entry: dict[str, str]) -> str:
  return entry["problem"].removeprefix(f"{entry['where']}: ")
