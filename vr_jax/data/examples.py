"""Examples on disk: the TFDS dataset `moss_video`, in ArrayRecord files.

It is written and read without TensorFlow, which the builders of TFDS need to prepare a dataset.
Records are made and parsed here: TFDS takes over ten times as long to encode one. What is written
is what it would write, and `tfds.builder_from_directory(...).as_data_source(split)` reads it.

A tf.Example stores floats as float32, which is too coarse for times in a long video. So times are
int64 microseconds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar, cast

from array_record.python import (
  array_record_module,  # pyright: ignore[reportAttributeAccessIssue] a C extension without stubs
)
from google.protobuf import message
from jaxtyping import Int
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from vr_jax import records
from vr_jax.data import annotations
from vr_jax.errors import InputError

T = TypeVar("T")

NAME = "moss_video"
VERSION = "1.3.0"
# 1.2.0 lacks `object_track`, 1.1.0 also `extra`, and 1.0.0 also `observation` and `reasoning`. They
# are empty then.
_READABLE = (VERSION, "1.2.0", "1.1.0", "1.0.0")
SPLITS = ("train", "validation", "test")
_EXAMPLES_PER_SHARD = 100_000
_FILE_FORMAT = "array_record"
_WRITER_OPTIONS = "group_size:1"  # as TFDS writes: any record is read alone
# What reading or parsing a damaged record raises.
_DAMAGED = (RuntimeError, LookupError, ValueError, message.DecodeError)
_READ_AT_ONCE = 256  # records; in order, one by one takes ten times as long


def split_videos(
  videos: Sequence[str], fractions: Mapping[str, float], *, seed: int
) -> dict[str, tuple[str, ...]]:
  """Assigns each video to one split. Returns the videos of each split.

  Videos are sorted by a hash of seed and name, and cut at the rounded cumulative fractions. So the
  result depends on the set of names, but not on their order or on a library's random numbers.

  Args:
    videos: unique names.
    fractions: by split, in the order of cutting; they sum to 1.
    seed: part of the hash.

  Raises:
    InputError: a fraction is negative, or they don't sum to 1.
  """
  if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-9:
    raise InputError(f"split fractions {dict(fractions)}: must be 0 or more and sum to 1")
  ordered = sorted(videos, key=lambda video: hashlib.sha256(f"{seed}/{video}".encode()).digest())
  bounds = np.round(np.cumsum([0.0, *fractions.values()]) * len(ordered)).astype(int)
  return {
    split: tuple(ordered[start:stop])
    for split, start, stop in zip(fractions, bounds[:-1], bounds[1:], strict=True)
  }


def write(root: Path, splits: Mapping[str, Iterable[records.Example]]) -> None:
  """Writes the dataset `moss_video` below `root`, one example in memory at a time.

  Raises:
    InputError: writing fails, for example because the disk is full, or a text is no UTF-8.
  """
  directory = _directory(root)
  try:
    directory.mkdir(parents=True)
    info = _dataset_info(directory)
    info.set_file_format(_FILE_FORMAT)
    written = [_write_split(directory, split, part) for split, part in splits.items()]
    info.set_splits(tfds.core.SplitDict(written))
    info.write_to_directory(directory)
  except OSError as error:
    raise InputError(f"{directory}: cannot write examples: {error.strerror or error}") from error
  except RuntimeError as error:  # the only exception that ArrayRecord raises
    raise InputError(f"{directory}: cannot write examples: {error}") from error


def _write_split(
  directory: Path, split: str, part: Iterable[records.Example]
) -> tfds.core.SplitInfo:
  """Writes the shards of a split; returns what the dataset's description says of them."""
  files = tfds.core.ShardedFileTemplate(
    dataset_name=NAME,
    data_dir=cast(Any, directory),
    split=split,
    filetype_suffix=_FILE_FORMAT,
    template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
  )
  lengths, size, writer = [], 0, None
  for example in part:
    if writer is None or lengths[-1] == _EXAMPLES_PER_SHARD:
      if writer is not None:
        writer.close()
      path = files.sharded_filepath(shard_index=len(lengths), num_shards=None)
      writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
      lengths.append(0)
    try:
      record = _to_record(example)
    except UnicodeEncodeError as error:
      raise InputError(f"example {example.id!r}: cannot be written: {error}") from error
    writer.write(record)
    lengths[-1] += 1
    size += len(record)
  if writer is not None:
    writer.close()
  return tfds.core.SplitInfo(
    name=split, shard_lengths=lengths, num_bytes=size, filename_template=files
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleOutline:
  """What is read of an example to sort or filter a split. Fields as in `records.Example`."""

  id: str
  video: str
  shown: records.Span


class ExampleSource:
  """Random access to the examples of one split, as Grain reads data sources."""

  def __init__(self, root: Path, split: str):
    """Opens a split of the dataset that `write` wrote below `root`.

    Raises:
      InputError: the dataset or split doesn't exist, or can't be read.
    """
    directory = _find_directory(root)
    self._where = f"{directory} ({split})"
    try:
      builder = tfds.builder_from_directory(str(directory))
      if split not in builder.info.splits:
        raise InputError(
          f"{self._where}: there is no such split, but {', '.join(builder.info.splits)}"
        )
      # TFDS can't open a split without files.
      empty = builder.info.splits[split].num_examples == 0
      raw = tfds.decode.DeserializeMethod.RAW_BYTES
      open_split = cast(Any, builder).as_data_source  # whose decorator hides its parameters
      self._source: Any = () if empty else open_split(split, deserialize_method=raw)
    except (OSError, ValueError, RuntimeError) as error:
      raise InputError(f"{self._where}: cannot be read: {error}; ingest again") from error

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: SupportsIndex) -> records.Example:
    position = index.__index__()
    if not 0 <= position < len(self):
      raise IndexError(f"{self._where}: no record {position} among {len(self)}")
    try:
      return _from_record(self._source[position])
    except _DAMAGED as error:
      raise self._damaged(position, error) from error

  def __iter__(self) -> Iterator[records.Example]:
    """The examples in order, one in memory at a time."""
    return self._parsed(_from_record)

  def outlines(self) -> Iterator[ExampleOutline]:
    """The outlines of the examples in order, in a fraction of the time of whole ones."""
    return self._parsed(_outline)

  def about(self, videos: Set[str]) -> Iterator[records.Example]:
    """Yields the examples about some videos, in order.

    Only records in which a name stands as bytes are parsed: a large split has many others.
    """
    written = [video.encode() for video in videos]

    def parse(record: bytes) -> records.Example | None:
      return _from_record(record) if any(name in record for name in written) else None

    found = self._parsed(parse)
    return (example for example in found if example is not None and example.video in videos)

  def _parsed(self, parse: Callable[[bytes], T]) -> Iterator[T]:
    """Reads all records in order, some at once, and parses each when it is asked for."""
    for start in range(0, len(self), _READ_AT_ONCE):
      positions = range(start, min(start + _READ_AT_ONCE, len(self)))
      try:
        read = iter(self._source.__getitems__(list(positions)))
      except _DAMAGED:  # which does not say which record is damaged
        read = (self._source[position] for position in positions)
      for position in positions:
        try:
          parsed = parse(next(read))
        except _DAMAGED as error:
          raise self._damaged(position, error) from error
        yield parsed

  def _damaged(self, position: int, error: Exception) -> InputError:
    return InputError(f"{self._where}: record {position} is damaged: {error}; ingest again")

  def __repr__(self) -> str:
    return f"ExampleSource({self._where})"

  def __str__(self) -> str:
    """The directory and the split, for messages; Grain compares the representation on resuming."""
    return self._where


@dataclasses.dataclass(frozen=True)
class ExampleSubset:
  """A subset of a source. indices: of its examples in the source."""

  source: ExampleSource
  indices: Sequence[int] | Int[np.ndarray, "examples"]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: SupportsIndex) -> records.Example:
    return self.source[int(self.indices[index.__index__()])]

  def __repr__(self) -> str:
    return f"{self.source!r}, {len(self)} of them"


def _directory(root: Path) -> Path:
  return root / NAME / VERSION


def _find_directory(root: Path) -> Path:
  """Finds the dataset below `root`, of any readable version; by default the path of `VERSION`."""
  paths = (root / NAME / version for version in _READABLE)
  return next((path for path in paths if path.is_dir()), _directory(root))


def _dataset_info(directory: Path) -> tfds.core.DatasetInfo:
  text, span = tfds.features.Text(), tfds.features.Tensor(shape=(2,), dtype=np.int64)
  identity = tfds.core.DatasetIdentity(
    name=NAME, version=tfds.core.Version(VERSION), data_dir=str(directory), module_name=__name__
  )
  return tfds.core.DatasetInfo(
    builder=identity,
    description="Questions about videos, with references. Times are microseconds.",
    features=tfds.features.FeaturesDict(
      {
        **{field: text for field in _TEXTS},
        "extra": text,  # JSON
        "options": tfds.features.Sequence(text),
        "shown": span,
        "masked": tfds.features.Sequence(span),  # zero or one
        "relevant": tfds.features.Sequence(span),
        "steps": tfds.features.Sequence({"text": text, "span": span}),
        "states": tfds.features.Sequence(
          {"object": text, "time": np.int64, "attribute": text, "value": text}
        ),
        # Zero or one track, whose frames are numbered through; a box that is not there is NaN.
        "track": {
          "size": tfds.features.Sequence(np.int64),  # height and width, in pixels
          "times": tfds.features.Sequence(np.int64),
          "boxes": tfds.features.Sequence(np.float32),  # four a frame
          "instances": tfds.features.Sequence(text),
        },
      }
    ),
  )


_MESSAGE = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue] (made at import)
_TRACE = ("observation", "reasoning")
_TEXTS = ("id", "video", "question", "answer", "problem_type", "source", *_TRACE)
_LISTS = ("options", "steps/text", "states/object", "states/attribute", "states/value")
_TIMES = ("shown", "masked", "relevant", "steps/span", "states/time")
_REQUIRED = {*_TEXTS, *_LISTS, *_TIMES} - {*_TRACE}


def _to_record(example: records.Example) -> bytes:
  """Serialises an example as TFDS would, from the features of `_dataset_info`."""
  states, masked, track = example.states, example.masked, example.object_track
  texts: dict[str, Iterable[str]] = {field: (getattr(example, field),) for field in _TEXTS}
  texts |= {
    "extra": (json.dumps(dict(example.extra)) if example.extra else "",),
    "options": example.options,
    "steps/text": [step.text for step in example.steps],
    "states/object": [state.object for state in states],
    "states/attribute": [state.attribute for state in states],
    "states/value": [state.value for state in states],
    "track/instances": track.instances if track else (),
  }
  times: dict[str, Iterable[float]] = {
    "shown": _bounds((example.shown,)),
    "masked": _bounds((masked,) if masked else ()),
    "relevant": _bounds(example.relevant),
    "steps/span": _bounds(example.steps),
    "states/time": [state.time for state in states],
    "track/times": track.times.tolist() if track else (),
  }
  new = _MESSAGE()
  fields = new.features.feature
  for name, values in texts.items():
    fields[name].bytes_list.value.extend([text.encode() for text in values])
  for name, values in times.items():
    fields[name].int64_list.value.extend(
      [round(time * annotations.MICROSECONDS) for time in values]
    )
  fields["track/size"].int64_list.value.extend((track.height, track.width) if track else ())
  fields["track/boxes"].float_list.value.extend(track.boxes.ravel().tolist() if track else ())
  return new.SerializeToString()


def _from_record(record: bytes) -> records.Example:
  """Parses an example. TFDS's own decoder takes over twice as long, because it makes arrays."""
  fields = _MESSAGE.FromString(record).features.feature
  if missing := sorted(_REQUIRED - fields.keys()):
    raise KeyError(missing[0])
  texts = {name: [text.decode() for text in fields[name].bytes_list.value] for name in _LISTS}
  times = {
    name: [time / annotations.MICROSECONDS for time in fields[name].int64_list.value]
    for name in _TIMES
  }
  masked = _spans(times["masked"])
  extra = _only(fields["extra"].bytes_list.value) if "extra" in fields else b""
  return records.Example(
    **{name: _only(fields[name].bytes_list.value).decode() for name in _TEXTS if name in fields},
    extra=json.loads(extra) if extra else {},
    object_track=_track(fields) if "track/size" in fields else None,
    options=tuple(texts["options"]),
    shown=_only(_spans(times["shown"])),
    masked=_only(masked) if masked else None,
    relevant=tuple(_spans(times["relevant"])),
    steps=tuple(
      records.Step(text=text, start=span.start, end=span.end)
      for text, span in zip(texts["steps/text"], _spans(times["steps/span"]), strict=True)
    ),
    states=tuple(
      records.State(object=name, time=time, attribute=attribute, value=value)
      for name, time, attribute, value in zip(
        texts["states/object"],
        times["states/time"],
        texts["states/attribute"],
        texts["states/value"],
        strict=True,
      )
    ),
  )


def _outline(record: bytes) -> ExampleOutline:
  fields = _MESSAGE.FromString(record).features.feature
  for name in ("id", "video", "shown"):
    if name not in fields:
      raise KeyError(name)
  start, end = fields["shown"].int64_list.value
  return ExampleOutline(
    id=_only(fields["id"].bytes_list.value).decode(),
    video=_only(fields["video"].bytes_list.value).decode(),
    shown=records.Span(start=start / annotations.MICROSECONDS, end=end / annotations.MICROSECONDS),
  )


def _track(fields: Mapping[str, Any]) -> records.ObjectTrack | None:
  if not (size := fields["track/size"].int64_list.value):
    return None
  height, width = size
  times = np.array(fields["track/times"].int64_list.value, np.float64) / annotations.MICROSECONDS
  boxes = np.array(fields["track/boxes"].float_list.value, np.float32)
  return records.ObjectTrack(
    times=times,
    boxes=boxes.reshape(len(times), 4),
    height=height,
    width=width,
    instances=tuple(name.decode() for name in fields["track/instances"].bytes_list.value),
  )


def _only(values: Sequence[Any]) -> Any:
  (value,) = values
  return value


def _spans(times: Sequence[float]) -> list[records.Span]:
  """Makes spans from alternating starts and ends, in seconds."""
  pairs = zip(times[::2], times[1::2], strict=True)
  return [records.Span(start=start, end=end) for start, end in pairs]


def _bounds(spans: Iterable[records.Span | records.Step]) -> list[float]:
  """Alternating starts and ends, in seconds."""
  return [time for span in spans for time in (span.start, span.end)]
