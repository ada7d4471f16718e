import dataclasses
import json
import pathlib
import subprocess
import sys

from hypothesis import given, strategies
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from vr_jax import records
from vr_jax.data import examples
from vr_jax.errors import InputError

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


def example(**fields):
  values = {
    "id": "one",
    "video": "a.mp4",
    "question": "What?",
    "answer": "x",
    "problem_type": "free-form",
    "shown": records.Span(start=0.0, end=8.1),
  }
  return records.Example(**values | fields)


@given(
  videos=strategies.sets(strategies.text(max_size=8), max_size=60),
  seed=strategies.integers(0, 9),
  test=strategies.sampled_from([0.0, 0.1, 0.25, 0.5]),
)
def test_every_video_is_in_one_split_and_shares_are_exact_to_a_video(videos, seed, test):
  fractions = {"train": 0.9 - test, "validation": 0.1, "test": test}
  splits = examples.split_videos(sorted(videos), fractions, seed=seed)
  assert sorted(video for part in splits.values() for video in part) == sorted(videos)
  for split, part in splits.items():
    assert abs(len(part) - fractions[split] * len(videos)) <= 1


def test_a_split_depends_on_names_and_seed_alone():
  names = [f"{index}.mp4" for index in range(50)]
  splits = examples.split_videos(names, FRACTIONS, seed=3)
  assert examples.split_videos(names[::-1], FRACTIONS, seed=3) == splits
  assert examples.split_videos(names, FRACTIONS, seed=4) != splits
  # Written down: another machine or a later version must draw the same split.
  assert splits["test"] == ("35.mp4", "31.mp4", "24.mp4", "32.mp4", "4.mp4")


@pytest.mark.parametrize("fractions", [{"train": 0.8, "test": 0.1}, {"train": 1.1, "test": -0.1}])
def test_fractions_that_are_no_partition_are_an_error(fractions):
  with pytest.raises(InputError, match="split fractions"):
    examples.split_videos(["a.mp4"], fractions, seed=0)


# Microseconds, for times are kept to one.
times = strategies.integers(0, 10**11).map(lambda microseconds: microseconds / 1e6)
texts = strategies.text(max_size=12)
spans = strategies.tuples(times, times).map(
  lambda pair: records.Span(start=min(pair), end=max(pair))
)
steps = strategies.builds(records.Step, text=texts, start=times, end=times)
states = strategies.builds(records.State, object=texts, time=times, attribute=texts, value=texts)
whole = strategies.integers(1, 4000)
sides = strategies.floats(0, 4000, width=32) | strategies.just(float("nan"))
tracks = strategies.integers(0, 4).flatmap(
  lambda frames: strategies.builds(
    lambda times, boxes, **fields: records.ObjectTrack(
      times=np.array(sorted(times), np.float64),
      boxes=np.array(boxes, np.float32).reshape(frames, 4),
      **fields,
    ),
    times=strategies.lists(times, min_size=frames, max_size=frames, unique=True),
    boxes=strategies.lists(sides, min_size=4 * frames, max_size=4 * frames),
    height=whole,
    width=whole,
    instances=strategies.lists(texts, max_size=2).map(tuple),
  )
)
any_example = strategies.builds(
  records.Example,
  id=texts,
  video=texts,
  question=texts,
  answer=texts,
  problem_type=texts,
  shown=spans,
  options=strategies.lists(texts, max_size=3).map(tuple),
  masked=strategies.none() | spans,
  relevant=strategies.lists(spans, max_size=3).map(tuple),
  steps=strategies.lists(steps, max_size=3).map(tuple),
  states=strategies.lists(states, max_size=3).map(tuple),
  source=texts,
  observation=texts,
  reasoning=texts,
  extra=strategies.dictionaries(texts, texts | strategies.integers(), max_size=2),
  object_track=strategies.none() | tracks,
)


@given(any_example)
def test_an_example_survives_its_record(value):
  assert examples._from_record(examples._to_record(value)) == value


@given(any_example)
def test_a_record_is_the_one_that_tfds_makes(value):
  """As a message: the order of its fields says nothing. A NaN is not equal to itself."""
  features = examples._dataset_info(pathlib.Path("unused")).features
  theirs = tf_example_pb2.Example.FromString(features.serialize_example(_tfds_features(value)))
  ours = tf_example_pb2.Example.FromString(examples._to_record(value))
  pairs = [each.features.feature.pop("track/boxes").float_list.value for each in (ours, theirs)]
  np.testing.assert_array_equal(*pairs)
  assert ours == theirs


def _tfds_features(value):
  """An example as the features of TFDS take it."""

  def micro(*times):
    return [round(time * 1_000_000) for time in times]

  track = value.object_track
  return {
    **{
      field: getattr(value, field)
      for field in (
        *("id", "video", "question", "answer", "problem_type", "source"),
        *("observation", "reasoning"),
      )
    },
    "extra": json.dumps(dict(value.extra)) if value.extra else "",
    "options": list(value.options),
    "shown": micro(value.shown.start, value.shown.end),
    "masked": [micro(value.masked.start, value.masked.end)] if value.masked else [],
    "relevant": [micro(span.start, span.end) for span in value.relevant],
    "steps": [{"text": step.text, "span": micro(step.start, step.end)} for step in value.steps],
    "states": [
      {**dataclasses.asdict(state), "time": micro(state.time)[0]} for state in value.states
    ],
    "track": {
      "size": [track.height, track.width] if track else [],
      "times": micro(*track.times.tolist()) if track else [],
      "boxes": track.boxes.ravel().tolist() if track else [],
      "instances": list(track.instances) if track else [],
    },
  }


@pytest.mark.parametrize(
  "extra", [{"clip": {"speed": 1.5}, "tags": ["é", None]}, {"half": "\ud800", "count": 3}]
)
def test_other_fields_of_an_annotation_come_back_as_they_were(tmp_path, extra):
  examples.write(tmp_path, {"train": [example(extra=extra)]})
  assert examples.ExampleSource(tmp_path, "train")[0] == example(extra=extra)


def test_a_data_set_of_the_version_before_object_tracks_is_read_without_them(tmp_path):
  record = examples._to_record(example())
  old = tf_example_pb2.Example.FromString(record)
  for field in [name for name in old.features.feature if name.startswith("track/")]:
    del old.features.feature[field]
  assert examples._from_record(old.SerializeToString()) == example()
  examples.write(tmp_path, {"train": [example()]})
  (tmp_path / "moss_video" / "1.3.0").rename(tmp_path / "moss_video" / "1.2.0")
  assert examples.ExampleSource(tmp_path, "train")[0] == example()


def test_a_data_set_of_the_version_before_extra_fields_is_read_without_them(tmp_path):
  record = examples._to_record(example(extra={"a": 1}))
  old = tf_example_pb2.Example.FromString(record)
  del old.features.feature["extra"]
  assert examples._from_record(old.SerializeToString()) == example()
  examples.write(tmp_path, {"train": [example()]})
  versions = tmp_path / "moss_video"
  (versions / "1.3.0").rename(versions / "1.1.0")
  assert examples.ExampleSource(tmp_path, "train")[0] == example()


def test_a_data_set_of_the_version_before_traces_is_read_without_them(tmp_path):
  examples.write(tmp_path, {"train": [example(observation="seen", reasoning="thought")]})
  versions = tmp_path / "moss_video"
  (versions / "1.3.0").rename(versions / "1.0.0")
  record = examples._to_record(example(observation="seen"))
  old = tf_example_pb2.Example.FromString(record)
  for field in ("observation", "reasoning"):
    del old.features.feature[field]
  assert examples._from_record(old.SerializeToString()) == example()
  assert examples.ExampleSource(tmp_path, "train")[0].reasoning == "thought"
  del old.features.feature["question"]
  with pytest.raises(KeyError, match="question"):
    examples._from_record(old.SerializeToString())


def test_examples_are_read_back_in_any_order(tmp_path):
  written = {
    "train": [example(id=str(index)) for index in range(7)],
    "validation": [],
    "test": [example(id="t", answer="é", masked=records.Span(start=8.1, end=9.0))],
  }
  examples.write(tmp_path, written)
  train = examples.ExampleSource(tmp_path, "train")
  assert len(train) == 7
  assert [train[index].id for index in (6, 0, 3)] == ["6", "0", "3"]
  assert examples.ExampleSource(tmp_path, "test")[0] == written["test"][0]
  assert len(examples.ExampleSource(tmp_path, "validation")) == 0


def test_the_files_are_those_that_tfds_would_write(tmp_path, monkeypatch):
  monkeypatch.setattr(examples, "_EXAMPLES_PER_SHARD", 3)
  splits = {"train": [example(id=str(index)) for index in range(7)], "test": []}
  examples.write(tmp_path / "ours", {split: iter(part) for split, part in splits.items()})
  ours, theirs = (tmp_path / name / "moss_video" / "1.3.0" for name in ("ours", "theirs"))
  theirs.mkdir(parents=True)
  writer = tfds.core.SequentialWriter(
    examples._dataset_info(theirs), max_examples_per_shard=3, file_format="array_record"
  )
  writer.initialize_splits(list(splits))
  writer.add_examples({split: list(map(_tfds_features, part)) for split, part in splits.items()})
  writer.close_all()
  names = sorted(path.name for path in ours.iterdir())
  assert names == sorted(path.name for path in theirs.iterdir()) and len(names) == 5
  infos = [json.loads((each / "dataset_info.json").read_text()) for each in (ours, theirs)]
  assert infos[0] == infos[1]
  assert (ours / "features.json").read_text() == (theirs / "features.json").read_text()
  for root in ("ours", "theirs"):
    source = examples.ExampleSource(tmp_path / root, "train")
    assert list(source) == splits["train"]


def test_examples_in_order_are_those_at_each_index(tmp_path, monkeypatch):
  monkeypatch.setattr(examples, "_READ_AT_ONCE", 4)
  monkeypatch.setattr(examples, "_EXAMPLES_PER_SHARD", 6)
  written = [example(id=str(index), video=f"{index % 3}.mp4") for index in range(11)]
  examples.write(tmp_path, {"train": written})
  source = examples.ExampleSource(tmp_path, "train")
  assert [source[index] for index in range(11)] == list(source) == written
  outlines = [(each.id, each.video, each.shown) for each in source.outlines()]
  assert outlines == [(each.id, each.video, each.shown) for each in written]
  assert list(source.about({"1.mp4"})) == written[1::3]


def test_examples_before_a_damaged_one_are_read_and_it_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(examples, "_READ_AT_ONCE", 4)
  letters = np.random.default_rng(0).integers(97, 123, (11, 20_000), np.uint8)  # hard to compress
  written = [example(id=str(row), question=letters[row].tobytes().decode()) for row in range(11)]
  examples.write(tmp_path, {"train": written})
  (shard,) = tmp_path.rglob("*array_record*")
  content = bytearray(shard.read_bytes())
  content[80_000:80_064] = bytes(64)
  shard.write_bytes(content)
  source, read = examples.ExampleSource(tmp_path, "train"), []
  with pytest.raises(InputError) as error:
    read.extend(example.id for example in source)
  assert read == ["0", "1", "2", "3", "4", "5"]
  assert "(train): record 6 is damaged" in str(error.value)
  assert source[7] == written[7]


@pytest.mark.parametrize(
  "error", [IndexError("Requested 2 records but got 1"), ValueError("group")]
)
def test_where_reading_many_at_once_fails_each_is_read_alone(tmp_path, monkeypatch, error):
  written = [example(id=str(row)) for row in range(3)]
  examples.write(tmp_path, {"train": written})
  source = examples.ExampleSource(tmp_path, "train")

  def fail(_, positions):
    raise error

  reader = type(source._source)
  monkeypatch.setattr(reader, "__getitems__", fail)
  assert list(source) == written
  monkeypatch.setattr(reader, "__getitem__", fail)
  with pytest.raises(InputError, match=rf"\(train\): record 0 is damaged: {error}; ingest again"):
    list(source)
  with pytest.raises(InputError, match=rf"\(train\): record 2 is damaged: {error}; ingest again"):
    source[2]


def test_a_text_that_is_no_utf_8_is_named(tmp_path):
  with pytest.raises(InputError, match=r"example 'half': cannot be written: .*surrogates"):
    examples.write(tmp_path, {"train": [example(id="half", question="\ud800")]})


def test_tensorflow_is_not_needed_and_plain_tfds_reads_what_is_written(tmp_path):
  script = '''
from importlib import machinery
import pathlib
import sys

class WithoutTensorFlow(machinery.PathFinder):
  """Finds what is installed but for TensorFlow, as if it were not."""

  @classmethod
  def find_spec(cls, name, path=None, target=None):
    return None if name.split(".")[0] == "tensorflow" else super().find_spec(name, path, target)

sys.meta_path = [
  WithoutTensorFlow if finder is machinery.PathFinder else finder for finder in sys.meta_path
]

from vr_jax import records
from vr_jax.data import examples
import tensorflow_datasets as tfds

root = pathlib.Path(sys.argv[1])
shown = records.Span(start=0.0, end=8.1)
example = records.Example(
  id="one", video="a.mp4", question="What?", answer="x", problem_type="OCR", shown=shown
)
examples.write(root, {"train": [example], "test": []})
assert examples.ExampleSource(root, "train")[0] == example
builder = tfds.builder_from_directory(str(root / "moss_video" / "1.3.0"))
assert builder.info.splits["train"].num_examples == 1
features = builder.as_data_source("train")[0]
assert features["video"] == b"a.mp4" and features["shown"].tolist() == [0, 8_100_000]
assert "tensorflow" not in sys.modules
print("done")
'''
  command = [sys.executable, "-c", script, str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.stdout.strip() == "done", done.stderr


def test_what_cannot_be_read_is_named(tmp_path):
  with pytest.raises(InputError, match=r"moss_video.*\(train\): cannot be read"):
    examples.ExampleSource(tmp_path, "train")
  examples.write(tmp_path, {"train": [example()]})
  with pytest.raises(InputError, match=r"\(valid\): there is no such split, but train"):
    examples.ExampleSource(tmp_path, "valid")
  (shard,) = tmp_path.rglob("*array_record*")
  shard.write_bytes(shard.read_bytes()[:1000])
  with pytest.raises(InputError, match=r"\(train\): record 0 is damaged") as error:
    examples.ExampleSource(tmp_path, "train")[0]
  assert "\n" not in str(error.value)
