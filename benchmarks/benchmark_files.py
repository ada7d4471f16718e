"""Small made-up benchmarks on disk, in the layouts and schemas in which real ones are released.

`write(name, root)` writes one; records are the constants, for tests that change them.
"""

from collections.abc import Callable, Sequence
import json
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from vr_jax.data.benchmark_sets import mvbench

PNG = b"\x89PNG\r\n\x1a\n made up"

MVBENCH = {
  "video": "K1.mp4",
  "question": "What did she do after?",
  "candidates": ["Sat", "Ran"],
  "answer": "Ran",
  "start": 3.0,
  "end": 9.5,
}
MMVU = [
  {
    "id": "val_1",
    "video": "https://h/videos/Art/7.mp4",
    "youtube_url": "https://y/a",
    "question_type": "open-ended",
    "metadata": {"subject": "Art", "textbook": "T", "rationale": "", "knowledge": []},
    "question": "Which technique?",
    "choices": {"A": "", "B": "", "C": "", "D": "", "E": ""},
    "answer": "Sfumato",
  },
  {
    "id": "val_2",
    "video": "https://h/videos/Basic_Medicine/3.mp4",
    "question_type": "multiple-choice",
    "metadata": {"subject": "Basic Medicine"},
    "question": "Which organ?",
    "choices": {"A": "Liver", "B": "Heart", "C": "Lung", "D": "Skin", "E": ""},
    "answer": "B",
  },
]
VIDEO_MME = [
  {
    **{"video_id": "901", "videoID": "aB1", "duration": "short", "domain": "Knowledge"},
    **{"sub_category": "Law", "task_type": "Counting Problem", "question_id": f"901-{number}"},
    **{"question": "How many?", "options": ["A. 1.", "B. 2.", "C. 3.", "D. 4."], "answer": "B"},
  }
  for number in (1, 2)
]
MLVU = {
  "video": "ego_900.mp4",
  "duration": 400.0,
  "question": "Where is it?",
  "candidates": ["Bin", "Box"],
  "answer": "Box",
}
MLVU_TYPES = {
  **{"1_plotQA": "plotQA", "2_needle": "findNeedle", "3_ego": "ego", "4_count": "count"},
  **{"5_order": "order", "6_anomaly_reco": "anomaly_reco", "7_topic_reasoning": "topic_reasoning"},
}
MLVU_OPEN = {
  "8_sub_scene": {
    **{"video": "s.mp4", "question": "What happens at the lake?", "answer": "She swims."},
    **{"question_type": "subPlot", "scoring_points": "swims; alone"},
  },
  "9_summary": {
    **{"video": "t.mp4", "question": "Summarize.", "answer": "A day."},
    "question_type": "summary",
  },
}
EGOSCHEMA = [
  {
    **{"q_uid": uid, "google_drive_id": "x", "question": "Main aim?", "option 0": "Cook"},
    **{"option 1": "Clean", "option 2": "Paint", "option 3": "Sew", "option 4": "Play"},
  }
  for uid in ("0-0", "0-1")
]
LONGVIDEOBENCH = {
  **{"id": "z_0", "video_id": "z", "video_path": "z.mp4", "subtitle_path": "z_en.json"},
  **{"question": "When …?", "candidates": ["a", "b", "c", "d"], "correct_choice": 2},
  **{"question_category": "S2E", "duration_group": 600, "duration": 500.0},
  "starting_timestamp_for_subtitles": 12.0,
}
LVBENCH = {
  "key": "YTid",
  "qa": [
    {
      "uid": "1",
      "question": "Year?\n(A) 1\n(B) 2\n(C) 3\n(D) 4",
      "answer": "C",
      "question_type": ["reasoning", "entity recognition"],
    }
  ],
}
TEMPCOMPASS = {
  "multi-choice": {
    "77": {"direction": [{"question": "Which way?\nA. left\nB. right", "answer": "B. right"}]}
  },
  "yes_no": {
    "77_reverse": {"direction": [{"question": "Is it moving left?", "answer": "yes"}]},
  },
  "caption_matching": {
    "77": {
      "direction": [
        {
          "question": "Which caption fits?\nCaption A: It goes left.\nCaption B: It goes right.",
          "answer": "Caption B: It goes right.",
        }
      ]
    }
  },
  "captioning": {
    "77": {
      "direction": [
        {"question": "Write a caption.\nInformation A: {'way': 'left'}", "answer": "A. left"}
      ]
    }
  },
}
VSI_BENCH = [
  {
    **{"id": 1, "dataset": "scannet", "scene_name": "s9_00", "question": "Size?"},
    **{"question_type": "room_size_estimation", "options": None, "ground_truth": "21.5"},
  },
  {
    **{"id": 2, "dataset": "scannet", "scene_name": "s9_00", "question": "Where is the door?"},
    "question_type": "object_rel_direction_hard",
    **{"options": ["A. left", "B. right"], "ground_truth": "A"},
  },
]
VIDEO_MMMU = {
  "Perception": {
    **{"id": "dev_Math_9", "question": "Which formula is shown?", "options": ["a + b", "a - b"]},
    **{"answer": "A", "question_type": "perception"},
  },
  "Comprehension": {
    **{"id": "dev_Math_9", "question": "Which step is next?", "options": ["Add", "Divide"]},
    **{"answer": "B", "question_type": "multiple-choice"},
  },
  "Adaptation": {
    **{"id": "dev_Math_9", "question": "Find x <image 1>", "options": [], "answer": "3.5"},
    **{"question_type": "open", "image 1": {"bytes": PNG, "path": "x.png"}},
  },
}
VCR_BENCH = [
  {
    **{"id": 9, "video_path": "video/a/b.mp4", "duration": 40, "dimension": "Temporal Grounding"},
    **{"question": "When …?", "multiple-choice": False},
    **{"choices": {"A": "", "B": "", "C": "", "D": ""}, "answer": "[4, 9]"},
    "reasoning": ["1. 0:04-0:09, a man runs.", "2. Therefore, from 4 to 9 s."],
  },
  {
    **{"id": 10, "video_path": "video/a/b.mp4", "duration": 40, "dimension": "Plot Analysis"},
    **{"question": "Why?A. He fell.\nB. He ran.\n", "multiple-choice": True},
    **{"choices": {"A": "He fell.", "B": "He ran."}, "answer": "B"},
    "reasoning": ["1. From 0:33 to 0:36, he runs."],
  },
]
MOSS_VIDEO = [
  {
    **{"id": "m1", "video": "v.mp4", "shown": [0, 8], "masked": [8, 10], "question": "What next?"},
    **{"options": ["A. red", "B. blue"], "answer": "A", "problem_type": "multiple choice"},
    "steps": [{"text": "At 2 s, it is blue.", "start": 2, "end": 4}, {"text": "Then it turns."}],
  },
  {
    **{"id": "m2", "video": "v.mp4", "question": "How many?", "answer": "3"},
    "problem_type": "numerical",
  },
]
SUBTITLES = [
  {"timestamp": [13.0, 15.0], "text": "Hello."},
  {"timestamp": [20.0, None], "text": "B"},
]
SRT = "1\n00:00:01,000 --> 00:00:02,500\nGood <i>day</i>.\n"


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file and the folders above it."""
  write_bytes(path, json.dumps(value).encode())


def write_lines(path: Path, values: Sequence[Any]) -> None:
  """Writes a file of one JSON value a line."""
  write_bytes(path, b"".join(json.dumps(value).encode() + b"\n" for value in values))


def write_parquet(path: Path, records: Sequence[dict[str, Any]]) -> None:
  """Writes records with the same fields as Parquet."""
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)


def write_bytes(path: Path, content: bytes = b"") -> None:
  """Writes a file and the folders above it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)


def write(name: str, root: Path) -> None:
  """Writes the small benchmark of a name, with empty files for its videos."""
  _writers()[name](root)


def names() -> tuple[str, ...]:
  """The benchmarks that there are small ones of: those whose questions have answers in words."""
  return tuple(_writers())


def _writers() -> dict[str, Callable[[Path], None]]:
  return {
    "mvbench": _write_mvbench,
    "mmvu": _write_mmvu,
    "video_mme": _write_video_mme,
    "mlvu": _write_mlvu,
    "egoschema": _write_egoschema,
    "longvideobench": _write_longvideobench,
    "lvbench": _write_lvbench,
    "tempcompass": _write_tempcompass,
    "vsi_bench": _write_vsi_bench,
    "video_mmmu": _write_video_mmmu,
    "vcr_bench": _write_vcr_bench,
    "moss_video": _write_moss_video,
  }


def _write_mvbench(root: Path) -> None:
  for name, task in mvbench.TASKS.items():
    write_json(root / "json" / f"{name}.json", [MVBENCH])
    if task.folder.startswith("tvqa"):
      write_bytes(root / "video" / task.folder / "K1.mp4" / "00001.jpg")
    else:
      write_bytes(root / "video" / task.folder / "K1.mp4")


def _write_mmvu(root: Path) -> None:
  write_json(root / "validation.json", MMVU)
  write_bytes(root / "videos" / "Art" / "7.mp4")
  write_bytes(root / "videos" / "Basic_Medicine" / "3.MP4")


def _write_video_mme(root: Path) -> None:
  write_parquet(root / "videomme" / "test-00000-of-00001.parquet", VIDEO_MME)
  write_bytes(root / "data" / "aB1.mkv")
  write_bytes(root / "subtitle" / "aB1.srt", SRT.encode())


def _write_mlvu(root: Path) -> None:
  for folder, task in MLVU_TYPES.items():
    write_json(root / "json" / f"{folder}.json", [MLVU | {"question_type": task}])
    write_bytes(root / "video" / folder / "ego_900.mp4")
  for folder, record in MLVU_OPEN.items():
    write_json(root / "json" / f"{folder}.json", [record])
    write_bytes(root / "video" / folder / record["video"])
  question = {**MLVU, "question_id": "AR_0", "question_type": "anomaly_reco", "video": "a.mp4"}
  write_json(root / "test-ground-truth" / "test_mcq_gt.json", [question])
  write_bytes(root / "video" / "a.mp4")


def _write_egoschema(root: Path) -> None:
  write_json(root / "questions.json", EGOSCHEMA)
  write_json(root / "subset_answers.json", {"0-1": 3})
  write_bytes(root / "videos" / "0-0.mp4")
  write_bytes(root / "videos" / "0-1.mp4")


def _write_longvideobench(root: Path) -> None:
  write_json(root / "lvb_val.json", [LONGVIDEOBENCH])
  hidden = {name: each for name, each in LONGVIDEOBENCH.items() if name != "correct_choice"}
  write_json(root / "lvb_test_wo_gt.json", [hidden])
  write_bytes(root / "videos" / "z.mp4")
  write_json(root / "subtitles" / "z_en.json", SUBTITLES)


def _write_lvbench(root: Path) -> None:
  write_lines(root / "video_info.meta.jsonl", [LVBENCH])
  write_bytes(root / "videos" / "YTid.webm")


def _write_tempcompass(root: Path) -> None:
  for form, questions in TEMPCOMPASS.items():
    write_json(root / "questions" / f"{form}.json", questions)
  write_bytes(root / "videos" / "77.mp4")
  write_bytes(root / "videos" / "77_reverse.mp4")


def _write_vsi_bench(root: Path) -> None:
  write_parquet(root / "test-00000-of-00001.parquet", VSI_BENCH)
  write_bytes(root / "scannet" / "s9_00.mp4")


def _write_video_mmmu(root: Path) -> None:
  for track, record in VIDEO_MMMU.items():
    write_parquet(root / track / "test-00000-of-00001.parquet", [record])
  write_bytes(root / "Science" / "dev_Math_9.mp4")
  write_bytes(root / "question_only" / "dev_Math_9_image.mp4")
  write_bytes(root / "images" / "adaptation-dev_Math_9-1.png", PNG)


def _write_vcr_bench(root: Path) -> None:
  write_json(root / "v1" / "videos" / "meta_info_video.json", VCR_BENCH)
  write_bytes(root / "v1" / "videos" / "video" / "a" / "b.mp4")


def _write_moss_video(root: Path) -> None:
  write_lines(root / "test.jsonl", MOSS_VIDEO)
  write_bytes(root / "videos" / "v.mp4")
