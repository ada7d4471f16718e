"""LVBench: questions with four options about 103 videos of about an hour, which you download.

A line of video_info.meta.jsonl is a video: `key` (YouTube's id) and `qa`, a list of `uid`,
`question` (the options follow it in lines), `answer` (a letter) and `question_type`, one or more of
six abilities. lmms-eval's copy has a row for each question, with `video_path`.

Source: THUDM/LVBench, lvbench/metrics/compute_accuracy.py; lmms-eval, tasks/lvbench.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import benchmark_set, media_files, options, released_files

_NAME = "video_info.meta.jsonl"
_FOLDERS = ("videos", "video", "all_videos", "scripts/videos")


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads the questions. `root` has video_info.meta.jsonl and videos/<key>.mp4."""
  files = media_files.MediaFiles(root=root)
  patterns = (_NAME, f"data/{_NAME}", "data/*.parquet", "*.parquet")
  for path in released_files.find_files(root, *patterns):
    for record in released_files.read_records(path):
      if record.has("video_path"):
        video = record.text("video_path")
        paths = (video, *(f"{folder}/{video}" for folder in _FOLDERS))
        name = PurePosixPath(video).stem
        yield record.where, _item(record, name, split, files.find(record.where, *paths))
        continue
      key = record.text("key")
      paths = tuple(f"{folder}/{key}.mp4" for folder in _FOLDERS)
      video = files.find(record.where, *paths)
      for index, question in enumerate(_questions(record)):
        where = f"{record.where} ({key}), question {index}"
        one = released_files.ReleasedRecord(where=where, fields=question)
        yield where, _item(one, key, split, video)


def _questions(record: released_files.ReleasedRecord) -> list[dict[str, Any]]:
  questions = record.value("qa")
  if not isinstance(questions, list) or not all(isinstance(each, dict) for each in questions):
    raise record.wrong("qa", "a list of objects")
  return questions


def _item(
  record: released_files.ReleasedRecord, key: str, split: str, video: str
) -> benchmark_item.Item:
  name = record.name("uid")
  record = record.named(f"uid {name}")
  if record.has("options"):
    question = record.text("question")
    choices = options.strip_letters(record.texts("options"), record.where)
  else:
    question, choices = options.split_question(record.text("question"), record.where)
  return benchmark_item.Item(
    id=name,
    benchmark="lvbench",
    split=split,
    video=video,
    question=question,
    scorer="choice",
    answer=options.check_letter(record.text("answer"), choices, record.where),
    options=choices,
    strata={"task": tuple(dict.fromkeys(record.texts("question_type")))},
    cluster=key,
    source_record=record.source(),
  )


BENCHMARK = benchmark_set.BenchmarkSet(
  name="lvbench",
  title="LVBench",
  read=read,
  splits=("test",),
  published={"test": benchmark_set.in_all(1549, videos=103)},
  source="https://huggingface.co/datasets/THUDM/LVBench; the videos from YouTube by their keys",
  licence="CC BY-NC-SA 4.0",
)
