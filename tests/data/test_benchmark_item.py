"""Items of benchmarks survive the disk, and what contradicts itself is refused."""

import json

import pytest

from vr_jax import records
from vr_jax.data import benchmark_item
from vr_jax.errors import InputError

ITEM = benchmark_item.Item(
  id="a-1",
  benchmark="mvbench",
  split="test",
  video="clips/K1.mp4",
  question="What did she do after?",
  scorer="choice",
  answer="B",
  options=("Sat", "Ran"),
  clip=records.Span(start=3.0, end=9.5),
  strata={"task": ("Action Sequence",), "abilities": ("a", "b")},
  cluster="K1",
  steps=(benchmark_item.ItemStep(text="She ran.", times=(4.0, 9.0)),),
  source_record={"video": "K1.mp4", "nested": [1, None]},
)


def test_an_item_comes_back_from_disk_as_it_was(tmp_path):
  plain = benchmark_item.Item(
    id="2", benchmark="vsi", split="test", video="v.mp4", question="Size?", scorer="mra", answer="3"
  )
  benchmark_item.write(tmp_path / "items.jsonl", [ITEM, plain])
  assert list(benchmark_item.read(tmp_path / "items.jsonl")) == [ITEM, plain]


@pytest.mark.parametrize(
  ("changes", "complaint"),
  [
    ({"answer": "C"}, "is none of AB"),
    ({"video": "../secret.mp4"}, "no path below"),
    ({"images": ["/etc/passwd"]}, "no path below"),
    ({"clip": [9.5, 3.0]}, "is empty"),
    ({"clip": [3.0]}, "argument 2 is shorter|zip"),
    ({"options": ["Sat"], "answer": "A"}, "needs at least 2"),
    ({"media": "frames"}, "frames_fps"),
    ({"scorer": "luck"}, "scorer"),
    ({"colour": "red"}, "unknown"),
    ({"steps": [{"text": 3}]}, "text"),
    ({"strata": {"task": "Counting"}}, "strata"),
  ],
)
def test_an_item_that_contradicts_itself_is_refused_with_its_line(tmp_path, changes, complaint):
  path = tmp_path / "items.jsonl"
  path.write_text(json.dumps({**benchmark_item.to_json(ITEM), **changes}) + "\n")
  with pytest.raises(InputError, match=rf"line 1: .*({complaint})"):
    list(benchmark_item.read(path))


def test_what_is_no_json_is_refused_with_its_line(tmp_path):
  (tmp_path / "items.jsonl").write_text(json.dumps(benchmark_item.to_json(ITEM)) + "\n{\n")
  with pytest.raises(InputError, match="line 2: is no JSON"):
    list(benchmark_item.read(tmp_path / "items.jsonl"))
