"""MLVU: nine tasks on long videos: seven with options (dev), two open, and a test set with options.

Fields: `video`, `duration`, `question`, `candidates`, `answer` (a text), `question_type`; the open
tasks 8 (a question about a part, with `scoring_points`) and 9 (a summary) have no candidates. The
test set adds `question_id`; its answers were released in March 2025. lmms-eval's copy has
`video_name`, the options in the question, the letter as answer, and `task_type`.

Source: JUNJIE99/MLVU and FlagOpen/FlagEmbedding (MLVU/data); lmms-eval, tasks/mlvu.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import benchmark_set, media_files, options, released_files
from vr_jax.errors import InputError

_DEV = (
  *("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco"),
  "7_topic_reasoning",
)
_DEV_OPEN = ("8_sub_scene", "9_summary")
_TASKS = tuple(folder.partition("_")[2] for folder in (*_DEV, *_DEV_OPEN))
# Names of tasks in the records that are not those of their files.
_OTHER_NAMES = {"findNeedle": "needle", "subPlot": "sub_scene"}
_TEST = ("test-ground-truth/test_mcq_gt.json", "test_mcq_gt.json", "test_question.json")
_COPY = ("mlvu/test-*.parquet", "data/*.parquet", "*.parquet")


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads a split: dev, dev_open or test. `root` has json/ and video/, a folder for each task."""
  files = media_files.MediaFiles(root=root)
  if split == "test":
    paths = [(path, "") for path in released_files.find_files(root, *_TEST, *_COPY)]
  elif split == "dev" and not any(
    (root / place / "1_plotQA.json").exists() for place in ("json", "")
  ):
    patterns = ("json/1_plotQA.json", *_COPY)
    paths = [(path, "") for path in released_files.find_files(root, *patterns)]
  else:
    paths = [
      (path, folder)
      for folder in (_DEV_OPEN if split == "dev_open" else _DEV)
      for path in released_files.find_files(root, f"json/{folder}.json", f"{folder}.json")
    ]
  for path, folder in paths:
    for index, record in enumerate(released_files.read_records(path)):
      name = f"{folder}-{index}" if folder else f"{split}-{index}"
      if record.has("question_id"):
        name = record.name("question_id")
      make = _copied_item if record.has("video_name") else _item
      yield record.where, make(record.named(name), name, split, folder, files)


def _item(
  record: released_files.ReleasedRecord,
  name: str,
  split: str,
  folder: str,
  files: media_files.MediaFiles,
) -> benchmark_item.Item:
  where, video = record.where, record.text("video")
  task = _task(record, "question_type", folder)
  answer, choices = record.name("answer") if record.has("answer") else "", ()
  if split != "dev_open":
    choices = record.texts("candidates")
    # The answers of the test set were out later than its questions.
    if answer or split != "test":
      answer = options.letter_of_text(record.name("answer"), choices, where)
  else:
    answer = record.text("answer")
    if task == "sub_scene":
      record.value("scoring_points")
  return benchmark_item.Item(
    id=name,
    benchmark="mlvu",
    split=split,
    video=files.find(where, *_video_paths(video, folder)),
    question=record.text("question"),
    scorer="choice" if choices else "rubric",
    answer=answer,
    options=choices,
    strata={"task": (task,)},
    cluster=f"{task}/{PurePosixPath(video).stem}",
    source_record=record.source(),
  )


def _copied_item(
  record: released_files.ReleasedRecord,
  name: str,
  split: str,
  folder: str,
  files: media_files.MediaFiles,
) -> benchmark_item.Item:
  """An item of lmms-eval's copy."""
  where, video = record.where, record.text("video_name")
  question, choices = options.split_question(record.text("question"), where)
  task = _task(record, "task_type", folder)
  folders = [each for each in _DEV if each.partition("_")[2] == task]
  return benchmark_item.Item(
    id=name,
    benchmark="mlvu",
    split=split,
    video=files.find(where, video, *_video_paths(video, *folders)),
    question=question,
    scorer="choice",
    answer=options.check_letter(record.text("answer"), choices, where),
    options=choices,
    strata={"task": (task,)},
    cluster=f"{task}/{PurePosixPath(video).stem}",
    source_record=record.source(),
  )


def _video_paths(video: str, *folders: str) -> list[str]:
  places = [f"video/{folder}/{video}" for folder in folders if folder]
  return [*places, f"video/{video}", video]


def _task(record: released_files.ReleasedRecord, field: str, folder: str) -> str:
  """The name of a record's task: that of its file, where each task has one."""
  task = record.text(field)
  task = _OTHER_NAMES.get(task, task)
  of_file = folder.partition("_")[2] or task
  if task != of_file and task in _TASKS:
    raise InputError(f"{record.where}: task {task!r:.40} is not that of its file, {folder!r}")
  return of_file


BENCHMARK = benchmark_set.BenchmarkSet(
  name="mlvu",
  title="MLVU",
  read=read,
  splits=("dev", "dev_open", "test"),
  published={
    "dev": benchmark_set.in_all(2175),
    "dev_open": benchmark_set.in_all(418),
    "test": benchmark_set.in_all(502),
  },
  source="https://huggingface.co/datasets/MLVU/MVLU, and MLVU/MLVU_Test there for the test set",
  licence="CC BY-NC-SA 4.0",
)
