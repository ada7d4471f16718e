"""MVBench: 20 tasks of 200 questions with options, in JSON files of their own.

The revision `main` has whole videos, where five tasks are about a part of them (`start`, `end`);
the revision `video` has these parts as files. Which one it is, is seen by its folders. Fields:
`video`, `question`, `candidates`, `answer` (the text of a candidate).

Source: OpenGVLab/Ask-Anything, video_chat2/mvbench.ipynb, for the tasks and their folders; the
folders of the revision `video`: lmms-eval, tasks/mvbench.
"""

from collections.abc import Iterator
import dataclasses
from pathlib import Path, PurePosixPath
from typing import Literal

from vr_jax import records
from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import benchmark_set, media_files, options, released_files
from vr_jax.errors import InputError

_FRAMES_FPS = 3.0  # of TVQA's pictures, named 00001.jpg, 00002.jpg, …


@dataclasses.dataclass(frozen=True, kw_only=True)
class MVBenchTask:
  """A task's title and folder of videos; `cut` is its folder in the revision `video`."""

  title: str
  folder: str
  cut: str = ""
  bounded: bool = False


_STAR, _STAR_CUT = "star/Charades_v1_480", "star/Charades_segment"
_TASKS = {
  "action_sequence": ("Action Sequence", _STAR, _STAR_CUT, True),
  "action_prediction": ("Action Prediction", _STAR, _STAR_CUT, True),
  "action_antonym": ("Action Antonym", "ssv2_video", "ssv2_video_mp4", False),
  "fine_grained_action": ("Fine-grained Action", "Moments_in_Time_Raw/videos", "", False),
  "unexpected_action": ("Unexpected Action", "FunQA_test/test", "", False),
  "object_existence": ("Object Existence", "clevrer/video_validation", "", False),
  "object_interaction": ("Object Interaction", _STAR, _STAR_CUT, True),
  "object_shuffle": ("Object Shuffle", "perception/videos", "", False),
  "moving_direction": ("Moving Direction", "clevrer/video_validation", "", False),
  "action_localization": ("Action Localization", "sta/sta_video", "sta/sta_video_segment", True),
  "scene_transition": ("Scene Transition", "scene_qa/video", "", False),
  "action_count": ("Action Count", "perception/videos", "", False),
  "moving_count": ("Moving Count", "clevrer/video_validation", "", False),
  "moving_attribute": ("Moving Attribute", "clevrer/video_validation", "", False),
  "state_change": ("State Change", "perception/videos", "", False),
  "fine_grained_pose": ("Fine-grained Pose", "nturgbd", "nturgbd_convert", False),
  "character_order": ("Character Order", "perception/videos", "", False),
  "egocentric_navigation": ("Egocentric Navigation", "vlnqa", "", False),
  "episodic_reasoning": (
    *("Episodic Reasoning", "tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment"),
    True,
  ),
  "counterfactual_inference": (
    *("Counterfactual Inference", "clevrer/video_validation", ""),
    False,
  ),
}
TASKS = {
  name: MVBenchTask(title=title, folder=folder, cut=cut, bounded=bounded)
  for name, (title, folder, cut, bounded) in _TASKS.items()
}
# Below which the folders stand: as downloaded, as unpacked by lmms-eval, and the supplement.
_PLACES = ("video/", "", "video/data0613/", "data0613/")


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads the questions of all tasks. `root` has json/ and video/."""
  del split  # there is one
  revision = find_revision(root)
  files = media_files.MediaFiles(root=root)
  for name, task in TASKS.items():
    (path,) = released_files.find_files(root, f"json/{name}.json", f"{name}.json")
    for index, record in enumerate(released_files.read_records(path)):
      yield record.where, _item(record, f"{name}-{index}", task, revision, files)


def find_revision(root: Path) -> Literal["main", "video"]:
  """The revision by its folders; "main" if no folder of either is there.

  Raises InputError if there are folders of both: the same question would be about two videos.
  """
  whole = _first_folder(root, [task.folder for task in TASKS.values() if task.cut])
  cut = _first_folder(root, [task.cut for task in TASKS.values() if task.cut])
  if whole and cut:
    raise InputError(
      f"{root}: has {whole!r} of MVBench's revision main and {cut!r} of its revision video; "
      "keep each in a directory of its own"
    )
  return "video" if cut else "main"


def _first_folder(root: Path, folders: list[str]) -> str:
  places = (f"{place}{folder}" for folder in folders for place in _PLACES)
  return next((place for place in places if (root / place).is_dir()), "")


def _item(
  record: released_files.ReleasedRecord,
  name: str,
  task: MVBenchTask,
  revision: str,
  files: media_files.MediaFiles,
) -> benchmark_item.Item:
  where = record.where
  candidates = record.texts("candidates")
  video = record.text("video")
  folder = task.cut if revision == "video" and task.cut else task.folder
  path = files.find(where, *(f"{place}{folder}/{video}" for place in _PLACES))
  is_absent = not files.exists(path)
  has_frames = files.is_folder(path) or (is_absent and folder.startswith("tvqa/frames"))
  clip = None
  if task.bounded and revision == "main":
    clip = records.Span(start=record.number("start"), end=record.number("end"))
  return benchmark_item.Item(
    id=name,
    benchmark="mvbench",
    split="test",
    video=path,
    question=record.text("question"),
    scorer="choice",
    answer=options.letter_of_text(record.name("answer"), candidates, where),
    options=candidates,
    clip=clip,
    media="frames" if has_frames else "video",
    frames_fps=_FRAMES_FPS if has_frames else None,
    strata={"task": (task.title,)},
    cluster=f"{folder.split('/', maxsplit=1)[0]}/{PurePosixPath(video).stem}",
    source_record=record.source(),
  )


BENCHMARK = benchmark_set.BenchmarkSet(
  name="mvbench",
  title="MVBench",
  read=read,
  splits=("test",),
  published={
    "test": {
      **benchmark_set.in_all(4000),
      "task": {task.title: 200 for task in TASKS.values()},
    }
  },
  source="https://huggingface.co/datasets/OpenGVLab/MVBench",
  licence="MIT; the videos have those of their sources",
)
