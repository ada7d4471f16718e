"""Examples on disk: the TFDS dataset `moss_video`, in ArrayRecord files.

It is written and read without TensorFlow. The builders of TFDS need TensorFlow to prepare a
dataset. Its sequential writer doesn't, if the format is ArrayRecord, and
`tfds.builder_from_directory(...).as_data_source(split)` can read the result.

A tf.Example stores floats as float32, which is too coarse for times in a long video. So times are
int64 microseconds.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, SupportsIndex, cast

from google.protobuf import message
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from vr_jax import records
from vr_jax.data import annotations
from vr_jax.errors import InputError

NAME = "moss_video"
VERSION = "1.3.0"
# 1.2.0 lacks `object_track`, 1.1.0 also `extra`, and 1.0.0 also `observation` and `reasoning`. They
# are empty then.
_READABLE = (VERSION, "1.2.0", "1.1.0", "1.0.0")
SPLITS = ("train", "validation", "test")
_EXAMPLES_PER_SHARD = 100_000
_EXAMPLES_AT_ONCE = 1000  # converted before they are written: each takes kilobytes then


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


def write(root: Path, splits: Mapping[str, Sequence[records.Example]]) -> None:
  """Writes the dataset `moss_video` below `root`.

  Raises:
    InputError: writing fails, for example because the disk is full.
  """
  directory = _directory(root)
  try:
    directory.mkdir(parents=True)
    writer = tfds.core.SequentialWriter(
      _dataset_info(directory),
      max_examples_per_shard=_EXAMPLES_PER_SHARD,
      file_format="array_record",
    )
    writer.initialize_splits(list(splits))
    for split, part in splits.items():
      for start in range(0, len(part), _EXAMPLES_AT_ONCE):
        some = part[start : start + _EXAMPLES_AT_ONCE]
        writer.add_examples({split: [_to_features(example) for example in some]})
    writer.close_all()
  except OSError as error:
    raise InputError(f"{directory}: cannot write examples: {error.strerror or error}") from error
  except RuntimeError as error:  # the only exception that ArrayRecord raises
    raise InputError(f"{directory}: cannot write examples: {error}") from error


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
      self._source = () if empty else open_split(split, deserialize_method=raw)
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
    except (RuntimeError, KeyError, ValueError, message.DecodeError) as error:
      raise InputError(
        f"{self._where}: record {position} is damaged: {error}; ingest again"
      ) from error

  def __iter__(self) -> Iterator[records.Example]:
    """The examples in order, one in memory at a time."""
    return (self[position] for position in range(len(self)))

  def about(self, videos: Set[str]) -> Iterator[records.Example]:
    """Yields the examples about some videos, in order.

    Only records in which a name stands as bytes are parsed: a large split has many others.
    """
    written = [video.encode() for video in videos]
    for position in range(len(self)):
      if any(name in self._source[position] for name in written):
        example = self[position]
        if example.video in videos:
          yield example

  def __repr__(self) -> str:
    return f"ExampleSource({self._where})"

  def __str__(self) -> str:
    """The directory and the split, for messages; Grain compares the representation on resuming."""
    return self._where


@dataclasses.dataclass(frozen=True)
class ExampleSubset:
  """A subset of a source. indices: of its examples in the source."""

  source: ExampleSource
  indices: Sequence[int]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: SupportsIndex) -> records.Example:
    return self.source[self.indices[index.__index__()]]

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


_TRACE = ("observation", "reasoning")
_TEXTS = ("id", "video", "question", "answer", "problem_type", "source", *_TRACE)
_LISTS = ("options", "steps/text", "states/object", "states/attribute", "states/value")
_TIMES = ("shown", "masked", "relevant", "steps/span", "states/time")
_REQUIRED = {*_TEXTS, *_LISTS, *_TIMES} - {*_TRACE}


def _to_features(example: records.Example) -> dict[str, Any]:
  return {
    **{field: getattr(example, field) for field in _TEXTS},
    "extra": json.dumps(dict(example.extra)) if example.extra else "",
    "options": list(example.options),
    "shown": _span_to_features(example.shown),
    "masked": [_span_to_features(example.masked)] if example.masked else [],
    "relevant": [_span_to_features(span) for span in example.relevant],
    "steps": [{"text": step.text, "span": _span_to_features(step)} for step in example.steps],
    "states": [
      {
        "object": state.object,
        "time": round(state.time * annotations.MICROSECONDS),
        "attribute": state.attribute,
        "value": state.value,
      }
      for state in example.states
    ],
    "track": _track_to_features(example.object_track),
  }


def _track_to_features(track: records.ObjectTrack | None) -> dict[str, Any]:
  if track is None:
    return {"size": [], "times": [], "boxes": [], "instances": []}
  return {
    "size": [track.height, track.width],
    "times": [round(time * annotations.MICROSECONDS) for time in track.times.tolist()],
    "boxes": track.boxes.ravel().tolist(),
    "instances": list(track.instances),
  }


def _from_record(record: bytes) -> records.Example:
  """Parses an example. TFDS's own decoder takes over twice as long, because it makes arrays."""
  message_type = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue] (made at import)
  fields = message_type.FromString(record).features.feature
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


def _span_to_features(span: records.Span | records.Step) -> list[int]:
  return [round(time * annotations.MICROSECONDS) for time in (span.start, span.end)]
