"""LongVideoBench: questions that refer to moments of videos of up to an hour, with subtitles.

Fields of lvb_val.json and lvb_test_wo_gt.json: `id`, `video_path`, `subtitle_path`, `question`,
`candidates`, `correct_choice` (from 0; not in the test file), `duration_group`, `duration`,
`question_category`, `starting_timestamp_for_subtitles`. The Parquet files have `option0` to
`option4` for the candidates, filled with "N/A".

Subtitles are of the video that the clip was cut from: see `subtitles.read`.

Source: longvideobench/LongVideoBench; lmms-eval, tasks/longvideobench.
"""

from collections.abc import Iterator
from pathlib import Path

from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import benchmark_set, media_files, options, released_files

_FILES = {
  "validation": ("lvb_val.json", "validation-*.parquet"),
  "test": ("lvb_test_wo_gt.json", "test-*.parquet"),
}
_NONE = "N/A"
_DURATION_GROUPS = (15, 60, 600, 3600)  # seconds


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads a split: validation, or test, whose answers are "". `root` has videos/, subtitles/."""
  files = media_files.MediaFiles(root=root)
  for path in released_files.find_files(root, *_FILES[split]):
    for record in released_files.read_records(path):
      name = record.text("id")
      yield record.where, _item(record.named(name), name, split, files)


def _item(
  record: released_files.ReleasedRecord, name: str, split: str, files: media_files.MediaFiles
) -> benchmark_item.Item:
  where = record.where
  group = record.whole("duration_group")
  if group not in _DURATION_GROUPS:
    raise record.wrong("duration_group", f"one of {_DURATION_GROUPS}")
  if record.has("candidates"):
    candidates = record.texts("candidates")
  else:
    candidates = tuple(record.text(f"option{index}") for index in range(5))
  choices = options.drop_empty(candidates, (_NONE,), where)
  answer = ""
  if split == "validation":
    answer = options.letter_of_index(record.whole("correct_choice"), choices, where)
  record.number("duration")
  record.number("starting_timestamp_for_subtitles")
  subtitles = files.find(where, f"subtitles/{record.text('subtitle_path')}")
  return benchmark_item.Item(
    id=name,
    benchmark="longvideobench",
    split=split,
    video=files.find(where, f"videos/{record.text('video_path')}"),
    question=record.text("question"),
    scorer="choice",
    answer=answer,
    options=choices,
    subtitles=subtitles,
    strata={"duration": (str(group),), "category": (record.text("question_category"),)},
    cluster=record.text("video_id"),
    source_record=record.source(),
  )


BENCHMARK = benchmark_set.BenchmarkSet(
  name="longvideobench",
  title="LongVideoBench",
  read=read,
  splits=("validation", "test"),
  published={
    "validation": benchmark_set.in_all(1337, videos=753),
    "test": benchmark_set.in_all(5341),  # 6,678 in all
  },
  source="https://huggingface.co/datasets/longvideobench/LongVideoBench",
  licence="CC BY-NC-SA 4.0",
)
