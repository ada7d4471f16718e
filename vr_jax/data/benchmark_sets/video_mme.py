"""Video-MME: three questions with four options about each of 900 videos, short, medium and long.

Fields of the Parquet file: `videoID`, `duration`, `domain`, `task_type`, `question_id`, `question`,
`options` ("A. …"), `answer` (a letter). Subtitles (SubRip) exist for 744 videos; an item of another
video has none.

Source: VLMEvalKit, vlmeval/dataset/videomme.py, and lmms-eval, tasks/videomme.
"""

from collections.abc import Iterator
from pathlib import Path

from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import benchmark_set, media_files, options, released_files

_DURATIONS = ("short", "medium", "long")


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads the questions. `root` has videomme/test-*.parquet, data/ (videos) and subtitle/."""
  patterns = (f"videomme/{split}-*.parquet", f"{split}-*.parquet")
  files = media_files.MediaFiles(root=root)
  for path in released_files.find_files(root, *patterns):
    for record in released_files.read_records(path):
      name = record.text("question_id")
      yield record.where, _item(record.named(name), name, split, files)


def _item(
  record: released_files.ReleasedRecord, name: str, split: str, files: media_files.MediaFiles
) -> benchmark_item.Item:
  video, duration = record.text("videoID"), record.text("duration")
  if duration not in _DURATIONS:
    raise record.wrong("duration", " or ".join(_DURATIONS))
  choices = options.strip_letters(record.texts("options"), record.where, required=True)
  subtitles = files.find(record.where, f"subtitle/{video}.srt")
  return benchmark_item.Item(
    id=name,
    benchmark="video_mme",
    split=split,
    video=files.find(record.where, f"data/{video}.mp4", f"videos/{video}.mp4"),
    question=record.text("question"),
    scorer="choice",
    answer=options.check_letter(record.text("answer"), choices, record.where),
    options=choices,
    subtitles=subtitles if files.exists(subtitles) else "",
    strata={
      "duration": (duration,),
      "category": (record.text("domain"),),
      "task": (record.text("task_type"),),
    },
    cluster=video,
    source_record=record.source(),
  )


BENCHMARK = benchmark_set.BenchmarkSet(
  name="video_mme",
  title="Video-MME",
  read=read,
  splits=("test",),
  published={
    "test": {
      **benchmark_set.in_all(2700, videos=900, subtitles=744),
      "duration": dict.fromkeys(_DURATIONS, 900),
    }
  },
  source="https://huggingface.co/datasets/lmms-lab/Video-MME",
  licence="academic research only; no redistribution",
)
