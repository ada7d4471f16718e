"""VSI-Bench: sizes, distances, counts and orders in videos of rooms, as numbers or with options.

Fields of the Parquet file: `id`, `dataset`, `scene_name`, `question_type`, `question`, `options`
("A. …"; null where the answer is a number), `ground_truth` (a letter or a number as a text).

There are eight tasks: stratum "task". Relative direction is released in three degrees of
difficulty, which are averaged first: stratum "category" has all ten types.

Source: lmms-eval, tasks/vsibench.
"""

from collections.abc import Iterator
import math
from pathlib import Path

from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import benchmark_set, media_files, options, released_files

_DIRECTION = "object_rel_direction"
_NUMBERS = {
  "object_abs_distance": 834,
  "object_counting": 565,
  "object_size_estimation": 953,
  "room_size_estimation": 288,
}
_CHOICES = {
  f"{_DIRECTION}_easy": 217,
  f"{_DIRECTION}_medium": 378,
  f"{_DIRECTION}_hard": 373,
  "object_rel_distance": 710,
  "route_planning": 194,
  "obj_appearance_order": 618,
}
_TYPES = {**_NUMBERS, **_CHOICES}


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads the questions. `root` has test-*.parquet and a folder of videos for each data set."""
  files = media_files.MediaFiles(root=root)
  patterns = (f"{split}-*.parquet", f"{split}.parquet", f"data/{split}-*.parquet", f"{split}.jsonl")
  for path in released_files.find_files(root, *patterns):
    for record in released_files.read_records(path):
      name = record.name("id")
      yield record.where, _item(record.named(name), name, split, files)


def _item(
  record: released_files.ReleasedRecord, name: str, split: str, files: media_files.MediaFiles
) -> benchmark_item.Item:
  kind = record.text("question_type")
  if kind not in _TYPES:
    raise record.wrong("question_type", f"one of {', '.join(_TYPES)}")
  choices: tuple[str, ...] = ()
  answer = record.name("ground_truth")
  if kind in _CHOICES:
    choices = options.strip_letters(record.texts("options"), record.where, required=True)
    answer = options.check_letter(answer, choices, record.where)
  elif record.has("options"):
    raise record.wrong("options", "null, since the answer is a number")
  elif not _is_number(answer):
    raise record.wrong("ground_truth", "a number")
  scene = f"{record.text('dataset')}/{record.text('scene_name')}"
  return benchmark_item.Item(
    id=name,
    benchmark="vsi_bench",
    split=split,
    video=files.find(record.where, f"{scene}.mp4", f"videos/{scene}.mp4"),
    question=record.text("question"),
    scorer="choice" if choices else "mra",
    answer=answer,
    options=choices,
    strata={"task": (_task(kind),), "category": (kind,)},
    cluster=scene,
    source_record=record.source(),
  )


def _task(kind: str) -> str:
  return _DIRECTION if kind.startswith(_DIRECTION) else kind


def _is_number(text: str) -> bool:
  try:
    return math.isfinite(float(text))
  except ValueError:
    return False


BENCHMARK = benchmark_set.BenchmarkSet(
  name="vsi_bench",
  title="VSI-Bench",
  read=read,
  splits=("test",),
  published={
    "test": {
      **benchmark_set.in_all(5130, videos=288),
      "task": {
        task: sum(count for kind, count in _TYPES.items() if _task(kind) == task)
        for task in map(_task, _TYPES)
      },
      "category": _TYPES,
    }
  },
  source="https://huggingface.co/datasets/nyu-visionx/VSI-Bench",
  licence="Apache-2.0; the videos have those of ScanNet, ScanNet++ and ARKitScenes",
)
