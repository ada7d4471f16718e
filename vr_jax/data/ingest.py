"""Ingests a data set: from videos, pictures and an annotation file to stored frames and examples.

The output directory has:

    frames/              the frame store
    masks/               the masks of objects, if queries ask for them
    moss_video/1.3.0/    the examples, a TFDS dataset with splits train, validation and test
    bad_records.jsonl    with on_bad "skip": what was skipped, and why
    ingest.json          fingerprint of inputs and config, hashes of the annotations, the report
"""

from collections.abc import Callable, Generator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import types
from typing import Any
import zlib

from vr_jax import atomic, plain_json, records
from vr_jax.data import (
  annotations,
  examples,
  foreign_records,
  frame_store,
  guarded_reader,
  image_folder,
  ingest_masks,
  mask_store,
  sampling,
  video_file,
)
from vr_jax.errors import InputError

Splits = Mapping[str, Sequence[records.Example]]

_FORMAT = 1
# Bytes at a video's start, middle and end that go into the fingerprint.
_FINGERPRINT_BYTES = 16 * 1024
_REPORT_FILE = "ingest.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestConfig:
  """What to keep of the videos, and how to split them."""

  fps: float = 2.0  # frames kept a second of video
  quality: int = 90  # of JPEG, 1 to 95
  max_side: int = 448  # pixels; larger frames are scaled down
  shard_megabytes: float = 256.0
  validation_fraction: float = 0.1  # of the videos
  test_fraction: float = 0.1  # of the videos; the rest is for training
  split_seed: int = 0
  # How batches will sample. A question with fewer stored frames than it requires is a bad record.
  rule: sampling.Rule = sampling.LEAST
  span_tolerance: float = 0.05  # seconds that an annotated time may be after the video's end
  on_bad: str = "stop"  # or "skip": leave out bad videos and records, and list them

  def __post_init__(self):
    if self.on_bad not in ("stop", "skip"):
      raise InputError(f"data.on_bad: {self.on_bad!r} is neither 'stop' nor 'skip'")
    if not 1 <= self.quality <= 95:
      raise InputError(f"data.quality: {self.quality} is not between 1 and 95")
    for field in ("fps", "max_side", "shard_megabytes"):
      if not getattr(self, field) > 0:
        raise InputError(f"data.{field}: {getattr(self, field)} is not above 0")
    sampling.check_rate(self.rule, self.fps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """How much an ingestion kept and skipped.

  examples: number by split.
  copies: videos with the same frames as another one, and that one. Both are in one split.
  """

  videos: int
  frames: int
  examples: dict[str, int]
  skipped_videos: int
  skipped_records: int
  copies: dict[str, str] = dataclasses.field(default_factory=dict)


class BadInputs:
  """Raises at the first bad video or record, or collects them with on_bad "skip"."""

  def __init__(self, on_bad: str):
    self._stop = on_bad == "stop"
    self.entries: list[dict[str, str]] = []

  def __call__(self, where: str, error: InputError) -> None:
    """Raises the error of a record (file:line) or video, or collects it."""
    if self._stop:
      raise error
    self.entries.append({"where": where, "problem": str(error).removeprefix(f"{where}: ")})


def ingest(
  videos: Path,
  annotations: Path,
  output: Path,
  config: IngestConfig,
  *,
  limits: guarded_reader.DecodeLimits = guarded_reader.DecodeLimits(),
  check: Callable[[Splits], None] = lambda _: None,
  check_record: annotations.Check | None = None,
  progress: Callable[[int, int], None] | None = None,
  compared: Callable[[int, int], None] | None = None,
) -> Report:
  """Cuts every video that a question refers to, and writes frames and examples to `output`.

  The directory is written completely or not at all. If it already exists, made from the same inputs
  and config, nothing is done and its report is returned. Then `on_bad` may differ, if nothing was
  skipped.
  Videos are compared by name, size and the bytes at their start, middle and end, but not by their
  modification time, which copying changes.

  Args:
    videos: directory of video and picture files; may have sub-directories.
    annotations: JSON lines or a JSON list, gzipped or not, or a pattern of such files; see
      docs/data.md.
    output: directory to create.
    config: what to keep.
    limits: of the processes that decode.
    check: is called with the examples of each split before any frame is extracted; may raise
      InputError. Examples of bad videos are among them.
    check_record: says what is wrong with an example, "" if nothing is; asked before that.
    progress: called after each video with (videos done, all videos).
    compared: called before that, after each file that is compared, with (files done, all files).

  Raises:
    InputError: a bad input (unless those are skipped), no good record at all, a full disk, or an
      `output` made from other inputs, with another config, or by something else.
  """
  foreign_records.check_place(videos, "config.data.videos")
  files = video_file.find(videos)
  hashes = _hash_annotations(annotations)
  inputs = _digest_inputs(videos, files, annotations, hashes, compared)
  atomic.finish_move(output)
  if output.is_dir() and any(output.iterdir()):
    check_annotations(output, annotations)
    return _read_report(output, inputs, config)
  with atomic.directory(output) as partial:
    report = _fill(
      partial, videos, files, annotations, config, limits, check, check_record, progress
    )
    fingerprint = _fingerprint(inputs, config)
    outcome = {
      "fingerprint": fingerprint,
      "annotations": hashes,
      "report": dataclasses.asdict(report),
    }
    (partial / _REPORT_FILE).write_text(json.dumps(outcome, indent=2) + "\n")
  return report


def open_split(output: Path, split: str) -> tuple[examples.ExampleSource, frame_store.FrameStore]:
  """Opens the examples of a split (train, validation or test), and the frames of all videos."""
  return examples.ExampleSource(output, split), frame_store.FrameStore(output / "frames")


def check_annotations(output: Path, annotation_file: Path) -> None:
  """Raises InputError if an annotation file is not one that `output` was ingested from.

  Files that are missing are no error: frames and examples may have been copied alone. Nor are data
  of an older version, which does not know its annotations, or data that were not ingested.
  """
  try:
    known = plain_json.parse((output / _REPORT_FILE).read_bytes()).get("annotations")
    hashes = known.values() if isinstance(known, dict) else ()
    files = annotations.find_files(annotation_file)
  except (OSError, ValueError, AttributeError, InputError):
    return
  for path in files if hashes else ():
    if path.is_file() and _hash_file(path) not in hashes:
      raise InputError(
        f"{path}: is not as it was when {output} was ingested; restore it, or choose another "
        "--workdir (config.data.directory) and run --mode=data for it as it is now"
      )


def _hash_annotations(annotation_file: Path) -> dict[str, str]:
  """The hash of each annotation file, by its name."""
  return {path.name: _hash_file(path) for path in annotations.find_files(annotation_file)}


def _hash_file(path: Path) -> str:
  try:
    with path.open("rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _digest_inputs(
  videos: Path,
  files: Sequence[str],
  annotation_file: Path,
  hashes: Mapping[str, str],
  compared: Callable[[int, int], None] | None,
) -> bytes:
  """What the fingerprint depends on besides the config. hashes: of the annotation files."""
  # Records may stay as they are when the masks that they name change.
  hashes = {
    **hashes,
    **{str(p): _hash_file(p) for p in annotations.find_mask_files(annotation_file)},
  }
  sums = []
  for done, file in enumerate(files, start=1):
    sums.append([file, *_size_and_checksum(videos / file)])
    if compared:
      compared(done, len(files))
  return b"".join([*map(bytes.fromhex, hashes.values()), json.dumps(sums).encode()])


def _fingerprint(inputs: bytes, config: IngestConfig) -> str:
  described = json.dumps([_FORMAT, dataclasses.asdict(config)])
  return hashlib.sha256(described.encode() + inputs).hexdigest()


def _size_and_checksum(path: Path) -> tuple[int, int]:
  """Size of a file in bytes, and CRC-32 of its start, middle and end."""
  try:
    with path.open("rb") as file:
      size = file.seek(0, os.SEEK_END)
      checksum = 0
      for offset in (0, (size - _FINGERPRINT_BYTES) // 2, size - _FINGERPRINT_BYTES):
        file.seek(max(offset, 0))
        checksum = zlib.crc32(file.read(_FINGERPRINT_BYTES), checksum)
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror}") from error
  return size, checksum


def _read_report(output: Path, inputs: bytes, config: IngestConfig) -> Report:
  """Reads the report of an earlier ingestion. Raises InputError if it had other inputs."""
  path = output / _REPORT_FILE
  other = dataclasses.replace(config, on_bad="skip" if config.on_bad == "stop" else "stop")
  try:
    outcome: dict[str, Any] = plain_json.parse(path.read_bytes())
    fingerprint, report = outcome["fingerprint"], plain_json.build(Report, outcome["report"])
  except FileNotFoundError as error:
    raise InputError(
      f"{output}: is not empty and holds no ingested data; give another directory"
    ) from error
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path}: is damaged; remove {output} and ingest again") from error
  if fingerprint == _fingerprint(inputs, config):
    return report
  if fingerprint == _fingerprint(inputs, other):
    # Where nothing was skipped, `on_bad` makes no difference.
    if not (report.skipped_videos or report.skipped_records):
      return report
    raise InputError(
      f"{output}: ingested with data.on_bad=skip, which left out {report.skipped_videos} videos "
      f"and {report.skipped_records} records (bad_records.jsonl); give it, or another directory"
    )
  raise InputError(
    f"{output}: was ingested from other inputs or with another config; give another directory"
  )


def _fill(
  directory: Path,
  videos: Path,
  files: Sequence[str],
  annotation_file: Path,
  config: IngestConfig,
  limits: guarded_reader.DecodeLimits,
  check: Callable[[Splits], None],
  check_record: annotations.Check | None,
  progress: Callable[[int, int], None] | None,
) -> Report:
  """Writes everything but `ingest.json`."""
  bad = BadInputs(config.on_bad)
  questions = annotations.read(annotation_file, frozenset(files), on_bad=bad, check=check_record)
  questions = ingest_masks.without_conflicts(questions, bad)
  unreadable = len(bad.entries)
  check(split([question.example for question in questions], config))
  names = sorted({question.example.video for question in questions})
  folders = ingest_masks.folder_frames(questions, files)
  bad_videos = _extract_videos(
    videos, names, folders, directory / "frames", config, limits, bad, progress
  )
  store = frame_store.FrameStore(directory / "frames")
  kept = check_spans(questions, store, bad_videos, config, bad)
  if not kept:
    first = bad.entries[0]
    raise InputError(
      f"{annotation_file}: not one good record is left; first, {first['where']}: {first['problem']}"
    )
  copies = _find_copies(store)
  splits = split(kept, config, copies)
  examples.write(directory, splits)
  mask_store.write(directory / "masks", ingest_masks.mask_files_of(questions, kept, files))
  if config.on_bad == "skip":
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in bad.entries)
    (directory / "bad_records.jsonl").write_text(lines, encoding="utf-8")
  return Report(
    videos=len(store.videos),
    frames=sum(len(store.timestamps(video)) for video in store.videos),
    examples={split: len(part) for split, part in splits.items()},
    skipped_videos=len(bad_videos),
    skipped_records=unreadable + len(questions) - len(kept),
    copies=copies,
  )


def _extract_videos(
  videos: Path,
  names: Sequence[str],
  folders: Mapping[str, image_folder.FolderFrames],
  directory: Path,
  config: IngestConfig,
  limits: guarded_reader.DecodeLimits,
  bad: BadInputs,
  progress: Callable[[int, int], None] | None,
) -> dict[str, InputError]:
  """Writes the frame store, and returns the error of each bad video."""
  directory.mkdir()
  writer = frame_store.FrameStoreWriter(
    directory, fps=config.fps, shard_megabytes=config.shard_megabytes
  )
  bad_videos = {}
  results = extract_each(videos, names, writer, config, limits, bad, folders)
  with contextlib.closing(results):
    for done, (name, result) in enumerate(results, start=1):
      if isinstance(result, InputError):
        bad_videos[name] = result
      if progress:
        progress(done, len(names))
  writer.close()
  return bad_videos


def extract_each(
  videos: Path,
  names: Sequence[str],
  writer: frame_store.FrameStoreWriter,
  config: IngestConfig,
  limits: guarded_reader.DecodeLimits,
  bad: BadInputs,
  folders: Mapping[str, image_folder.FolderFrames] = types.MappingProxyType({}),
) -> Generator[tuple[str, video_file.ExtractedVideo | InputError], None, None]:
  """Reads videos in the order of `names`; yields (name, result) once it is written or noted as bad.

  The processes that decode end when the iterator is closed.

  folders: see `ingest_masks.folder_frames`.
  """
  results = guarded_reader.extract_all(
    [videos / name for name in names],
    fps=config.fps,
    quality=config.quality,
    max_side=config.max_side,
    limits=limits,
    folders={videos / name: frames for name, frames in folders.items()},
  )
  with contextlib.closing(results):
    for name, result in zip(names, results, strict=True):
      if isinstance(result, InputError):
        bad(str(videos / name), result)
      else:
        writer.add(name, result)
      yield name, result


def check_spans(
  questions: Sequence[annotations.Annotation],
  store: frame_store.FrameStore,
  bad_videos: dict[str, InputError],
  config: IngestConfig,
  bad: BadInputs,
) -> list[records.Example]:
  """Returns the examples whose spans fit their videos."""
  kept = []
  for question in questions:
    where, video = question.where, question.example.video
    try:
      if video in bad_videos:
        raise InputError(f"{where}: its video is bad: {bad_videos[video]}")
      times, ends = store.timestamps(video), store.ends(video)
      example = annotations.place_in_video(
        question, store.duration(video), times, ends, tolerance=config.span_tolerance
      )
      sampling.choose(times, ends, example.shown, config.rule, where=where)
      ingest_masks.check_size(example, store, where)
    except InputError as error:
      bad(where, error)
    else:
      kept.append(example)
  return kept


def _find_copies(store: frame_store.FrameStore) -> dict[str, str]:
  """Finds videos with the same stored frames, such as a file under another name or a remuxed one.

  Maps each of them to the first of its kind, by name.
  """
  alike: dict[bytes, list[str]] = {}
  for video in sorted(store.videos):
    alike.setdefault(store.checksums(video).tobytes(), []).append(video)
  copies, first = {}, {}
  for videos in alike.values():
    if len(videos) == 1:
      continue
    for video in videos:  # the checksums of a few frames may be the same by chance
      jpegs = store.jpegs(video, range(len(store.checksums(video))))
      digest = hashlib.sha256(b"".join(hashlib.sha256(jpeg).digest() for jpeg in jpegs)).digest()
      if first.setdefault(digest, video) != video:
        copies[video] = first[digest]
  return copies


def split(
  kept: Sequence[records.Example],
  config: IngestConfig,
  copies: Mapping[str, str] = types.MappingProxyType({}),
) -> dict[str, list[records.Example]]:
  """Divides the examples by video; copies count as one video.

  copies: video -> the one that it is a copy of.
  """
  train = 1 - config.validation_fraction - config.test_fraction
  fractions: dict[str, float] = dict(
    zip(examples.SPLITS, (train, config.validation_fraction, config.test_fraction), strict=True)
  )
  names = sorted({copies.get(example.video, example.video) for example in kept})
  parts = examples.split_videos(names, fractions, seed=config.split_seed)
  split_of = {video: split for split, part in parts.items() for video in part}
  splits = {split: [] for split in examples.SPLITS}
  for example in kept:
    splits[split_of[copies.get(example.video, example.video)]].append(example)
  return splits
