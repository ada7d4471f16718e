"""Annotation records for the tests of the data room."""

import json
from pathlib import Path
from typing import Any, Never

from vr_jax.data import annotations
from vr_jax.errors import InputError

VIDEOS = frozenset({"a.mp4", "deep/b.mp4", "chart.PNG"})


def record(**fields: Any) -> dict[str, Any]:
  """A valid record of this project's schema about a.mp4 (10 s), without fields given as None."""
  value = {
    "id": "one",
    "video": "a.mp4",
    "question": "What colour will the circle be?",
    "options": ["A. red", "B. green"],
    "answer": "B",
    "problem_type": "multiple choice",
    "shown": [0, 8],
    "masked": [8, 10],
    "relevant": [[2, 4], [6, 7.5]],
    "states": [{"object": "circle", "time": 2, "attribute": "colour", "value": "red"}],
    "steps": [{"text": "At 2s, the circle is red.", "start": 2, "end": 4}],
    "source": "test",
  }
  value |= fields
  return {field: entry for field, entry in value.items() if entry is not None}


def video_r1_record(**fields: Any) -> dict[str, Any]:
  """A valid record of the Video-R1 family about a.mp4."""
  value = {
    "problem_id": 7,
    "problem": "What happens next?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. it falls", "B. it flies"],
    "solution": "<answer>A</answer>",
    "path": "./a.mp4",
    "data_source": "NeXT-QA",
  }
  value |= fields
  return {field: entry for field, entry in value.items() if entry is not None}


def all_texts(value: dict[str, Any]) -> dict[str, str]:
  """A record as in VideoP2R's RL data: every value is a string, lists as Python writes them."""
  return {field: str(entry) for field, entry in value.items()}


def write(path: Path, *values: Any) -> Path:
  """Writes one value a line: strings as they are, anything else as JSON."""
  lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
  path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
  return path


def fail(where: str, error: InputError) -> Never:
  """Raises the error of a bad record."""
  raise error


def read(tmp_path: Path, *values: Any) -> list[annotations.Annotation]:
  """Writes records to a file and reads them as annotations of VIDEOS; a bad one raises."""
  path = write(tmp_path / "notes.jsonl", *values)
  return annotations.read(path, VIDEOS, on_bad=fail)
