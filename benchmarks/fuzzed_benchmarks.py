"""Files of released benchmarks for benchmarks/fuzz_inputs.py."""

import json
from pathlib import Path
import random

import pyarrow
from pyarrow import parquet

from benchmarks import benchmark_files, damage, fuzzed_files
from vr_jax.data import subtitles
from vr_jax.data.benchmark_sets import registry

# The files of each benchmark that are damaged, and the split that reads them.
_FILES = (
  ("mvbench", "test", "json/action_sequence.json"),
  ("mmvu", "validation", "validation.json"),
  ("video_mme", "test", "videomme/test-00000-of-00001.parquet"),
  ("mlvu", "dev", "json/2_needle.json"),
  ("mlvu", "dev_open", "json/8_sub_scene.json"),
  ("egoschema", "test", "questions.json"),
  ("egoschema", "subset", "subset_answers.json"),
  ("longvideobench", "validation", "lvb_val.json"),
  ("lvbench", "test", "video_info.meta.jsonl"),
  ("tempcompass", "caption_matching", "questions/caption_matching.json"),
  ("tempcompass", "captioning", "questions/multi-choice.json"),
  ("vsi_bench", "test", "test-00000-of-00001.parquet"),
  ("video_mmmu", "adaptation", "Adaptation/test-00000-of-00001.parquet"),
  ("vcr_bench", "test", "v1/videos/meta_info_video.json"),
  ("moss_video", "test", "test.jsonl"),
)
_KINDS = {".json": damage.damage_json, ".jsonl": damage.damage_json_lines}


def benchmark_inputs(folder: Path) -> list[damage.FuzzedInput]:
  """Annotation files of all benchmarks, and files of subtitles."""
  found = []
  for name, split, place in _FILES:
    root = folder / f"{name}-{split}"
    benchmark_files.write(name, root)

    def read(name: str = name, root: Path = root, split: str = split) -> None:
      items = registry.read_items(name, root, split).items
      if not all(item.id and item.question and item.video for item in items):
        raise ValueError("an item without id, question or video")

    kind = _KINDS.get((root / place).suffix, _damage_parquet)
    found.append(fuzzed_files.in_file(root / place, kind, read, name=f"{name}/{place}"))
  for name, content in (
    ("a.srt", benchmark_files.SRT.encode()),
    ("a.json", json.dumps(benchmark_files.SUBTITLES).encode()),
  ):
    path = folder / name
    path.write_bytes(content)

    def read_subtitles(path: Path = path) -> None:
      subtitles.at_times(subtitles.read(path, offset=1.0, duration=9.0), [1.5, 12.0])

    kind = _KINDS.get(path.suffix, damage.damage_bytes)
    found.append(fuzzed_files.in_file(path, kind, read_subtitles))
  return found


def _damage_parquet(rng: random.Random, whole: bytes) -> bytes:
  """Damages the bytes of a Parquet file, or puts other values into its records."""
  if rng.random() < 0.5:
    return damage.damage_bytes(rng, whole)
  table = parquet.read_table(pyarrow.BufferReader(whole))
  plain = table.drop_columns([name for name in table.column_names if name.startswith("image")])
  try:
    records = json.loads(damage.damage_json(rng, json.dumps(plain.to_pylist()).encode()))
    damaged = pyarrow.Table.from_pylist(records)
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(damaged, sink)
  except (
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    LookupError,
    RecursionError,
    pyarrow.ArrowException,
  ):
    return damage.damage_bytes(rng, whole)  # no table can hold these values
  return sink.getvalue().to_pybytes()
