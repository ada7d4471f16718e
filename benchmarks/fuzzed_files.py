"""Data and workdirs for benchmarks/fuzz_inputs.py: annotations, frame stores, files of a run."""

from collections.abc import Callable, Mapping
import dataclasses
import gzip
import hashlib
import json
from pathlib import Path
import time
from typing import Any

import numpy as np
from PIL import Image
import simplejpeg

from benchmarks import damage
from vr_jax import errors, process_state, recipe_config, run_length, status
from vr_jax.data import (
  annotations,
  frame_store,
  ingest,
  mask_files,
  mask_store,
  nextgqa,
  qvhighlights,
  segmentation_sets,
  video_file,
)
from vr_jax.eval import report_data
from vr_jax.train import metrics, workdir

_VIDEOS = frozenset({"a.mp4", "deep/b.mp4", "set/v/00000.jpg", "set/v/00001.jpg"})
_TIMES = np.arange(21) / 2
_OWN = {
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
  "steps": [{"text": "At 2s, it is red.", "start": 2, "end": 4}, {"text": "Then it turns."}],
  "source": "test",
}
_NUMERICAL = {
  **{"id": 2, "video": "deep/b.mp4", "question": "How many?", "answer": 3.0},
  "problem_type": "numerical",
}
_VIDEO_R1 = {
  **{"problem_id": 7, "problem": "What happens next?", "data_type": "video", "path": "./a.mp4"},
  **{"problem_type": "multiple choice", "options": ["A. it falls", "B. it flies"]},
  **{"solution": "<answer>A</answer>", "data_source": "NeXT-QA", "relevant_sample_frames": [1, 2]},
  **{"observation": "It falls. It lies.", "process": "<think>So A.</think>"},
}
_QUERY = {
  **{"id": "q", "video": "set/v", "question": "the ball", "problem_type": "segmentation"},
  **{"masks": "masks/v.json", "instances": ["1"], "frame_rate": 2},
}
_MASK = run_length.encode(np.pad(np.ones((8, 8), bool), ((4, 20), (8, 16))))
_MASK_FILE = {
  **{"height": 32, "width": 32, "frames": ["00000", "00001"]},
  "instances": {"1": [_MASK, None], "2": [False, {"size": [32, 32], "counts": [10, 1014]}]},
}


def _write(path: Path, content: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)


def _json(value: Any) -> bytes:
  return json.dumps(value).encode()


def _lines(*values: Any) -> bytes:
  return b"".join(_json(value) + b"\n" for value in values)


def in_file(
  path: Path,
  kind: damage.Damage,
  read: Callable[[], None],
  *,
  name: str = "",
) -> damage.FuzzedInput:
  """A file that is damaged, beside others that are not; `read` reads them all."""
  whole = path.read_bytes()

  def read_copy(data: bytes) -> None:
    path.write_bytes(data)
    try:
      read()
    finally:
      path.write_bytes(whole)

  return damage.FuzzedInput(name=name or path.name, whole=whole, damage=kind, read=read_copy)


def annotation_inputs(folder: Path) -> list[damage.FuzzedInput]:
  """Annotation files of all kinds, mask files, and the files of released sets."""
  own = _lines(_OWN, _NUMERICAL)
  texts = [{field: str(entry) for field, entry in _VIDEO_R1.items() if field[:3] != "rel"}]
  files = {
    "own.jsonl": (own, damage.damage_json_lines),
    "own.json": (_json([_OWN, _NUMERICAL]), damage.damage_json),
    "own.jsonl.gz": (gzip.compress(own, mtime=0), damage.damage_gzip(damage.damage_json_lines)),
    "video_r1.json": (_json([_VIDEO_R1]), damage.damage_json),
    "video_r1_texts.json": (_json(texts), damage.damage_json),
    "queries.jsonl": (_lines(_QUERY), damage.damage_json_lines),
  }
  _write(folder / "masks" / "v.json", _json(_MASK_FILE))
  found = []
  for name, (content, kind) in files.items():
    path = folder / name
    _write(path, content)
    found.append(in_file(path, kind, lambda path=path: _read_annotations(path)))
  masks = folder / "masks" / "v.json"
  queries = folder / "queries.jsonl"
  found.append(in_file(masks, damage.damage_json, lambda: _read_annotations(queries)))
  return [*found, *_set_inputs(folder / "sets")]


def _read_annotations(path: Path) -> None:
  mask_files._read.cache_clear()  # by time and size alone, which two copies may share
  problems: list[errors.InputError] = []
  read = annotations.read(path, _VIDEOS, on_bad=lambda _, error: problems.append(error))
  annotations.find_lines(path)
  annotations.find_mask_files(path)
  for each in read:
    try:
      annotations.place_in_video(each, 10.0, _TIMES, _TIMES + 0.5, tolerance=0.5)
    except errors.InputError as error:
      problems.append(error)
    if each.reference is not None:
      masks = mask_files.read(each.reference.masks)
      for mask in masks.object_masks(each.reference.instances).values():
        run_length.decode(mask, masks.height, masks.width)
  for problem in problems:
    if "\n" in str(problem) or not str(problem).startswith(str(path.parent)):
      raise ValueError(f"no line that names the file: {str(problem)[:200]!r}")
  annotations.read_first(path)
  if problems:
    raise problems[0]


def _set_inputs(folder: Path) -> list[damage.FuzzedInput]:
  """Files of the released sets that are converted to annotations."""
  row = "video_id,qid,question,answer,a0,a1,a2,a3,a4\n1,0,what is it,a cat,a cat,b,c,d,e\n"
  _write(folder / "val.csv", row.encode())
  _write(folder / "spans.json", _json({"1": {"duration": 60, "location": {"0": [[2, 5]]}}}))
  _write(folder / "map.json", _json({"1": "1164/1"}))
  moment = {"qid": 1, "query": "A dog.", "vid": "x", "duration": 60, "relevant_windows": [[0, 9]]}
  rewrite = {"qid": 1, "suitable": True, "question": "Q?", "options": ["a", "b"], "answer": "B"}
  _write(folder / "moments.jsonl", _lines(moment, moment))
  _write(folder / "rewrites.jsonl", _lines(rewrite))
  train = folder / "train"
  video = {"frames": ["00000", "00001"], "expressions": {"0": {"exp": "a ball", "anno_id": [1]}}}
  _write(train / "meta_expressions.json", _json({"videos": {"v": video}}))
  _write(train / "mask_dict.json", _json({"1": [_MASK, None]}))
  for pictures in (train / "JPEGImages" / "v", folder / "lv" / "train" / "JPEGImages" / "v"):
    pictures.mkdir(parents=True)
    for frame in ("00000", "00001"):
      Image.new("RGB", (32, 32)).save(pictures / f"{frame}.jpg")
  release = {
    "videos": [
      {"id": 1, "file_names": ["v/00000.jpg", "v/00001.jpg"], "height": 32, "width": 32},
    ],
    "annotations": [{"id": 1, "video_id": 1, "category_id": 1, "segmentations": [_MASK, None]}],
    "categories": [{"id": 1, "name": "a_ball"}],
  }
  _write(folder / "lv" / "train_instances.json", _json(release))
  output = folder / "converted"

  def read_nextgqa() -> None:
    nextgqa.read(folder / "val.csv", folder / "spans.json", folder / "map.json")

  def read_qvhighlights() -> None:
    qvhighlights.read(folder / "moments.jsonl", folder / "rewrites.jsonl")

  def convert(layout: str, root: Path) -> Callable[[], None]:
    def read() -> None:
      try:
        segmentation_sets.convert(layout, root, output)
      finally:
        outside = {path.name for path in folder.iterdir()} - known
        for path in sorted(output.rglob("*"), reverse=True):
          path.rmdir() if path.is_dir() else path.unlink()
      if outside:
        raise ValueError(f"wrote {sorted(outside)[0]} outside of the output")

    return read

  output.mkdir()
  known = {path.name for path in folder.iterdir()}
  lines = damage.damage_json_lines
  return [
    in_file(folder / "val.csv", damage.damage_bytes, read_nextgqa),
    in_file(folder / "spans.json", damage.damage_json, read_nextgqa),
    in_file(folder / "map.json", damage.damage_json, read_nextgqa),
    in_file(folder / "moments.jsonl", lines, read_qvhighlights),
    in_file(folder / "rewrites.jsonl", lines, read_qvhighlights),
    in_file(train / "meta_expressions.json", damage.damage_json, convert("mevis", folder)),
    in_file(train / "mask_dict.json", damage.damage_json, convert("mevis", folder)),
    in_file(
      folder / "lv" / "train_instances.json", damage.damage_json, convert("lv_vis", folder / "lv")
    ),
  ]


def frame_store_inputs(folder: Path) -> list[damage.FuzzedInput]:
  """The index and the times of a frame store, its frames, and the files of a mask store."""
  frames, masks = folder / "frames", folder / "masks"
  frames.mkdir()
  writer = frame_store.FrameStoreWriter(frames, fps=2.0, shard_megabytes=0.002)
  for number, name in enumerate(("a.mp4", "deep/b.mp4")):
    pictures = np.random.default_rng(number).integers(0, 255, (3, 16, 24 + 8 * number, 3), np.uint8)
    extracted = video_file.ExtractedVideo(
      jpegs=tuple(simplejpeg.encode_jpeg(np.ascontiguousarray(each)) for each in pictures),
      timestamps=np.arange(3) / 2,
      ends=np.arange(3) / 2 + 0.5,
      height=16,
      width=24 + 8 * number,
      duration=1.5,
    )
    writer.add(name, extracted)
  writer.close()
  _write(
    folder / "v.json",
    _json({k: v for k, v in _MASK_FILE.items() if k != "frames"} | {"times": [0, 1]}),
  )
  mask_store.write(masks, {"a.mp4": (folder / "v.json", (0.0, 1.0))})

  def read_frames() -> None:
    store = frame_store.FrameStore(frames)
    for name in store.videos:
      count = len(store.timestamps(name))
      lengths = {len(store.ends(name)), len(store.checksums(name)), count}
      if len(lengths) != 1 or not np.isfinite(store.duration(name)):
        raise ValueError(f"{name}: lengths {lengths}, duration {store.duration(name)}")
      store.original_size(name)
      shown = store.read(name, sorted({0, count - 1}) if count else [])
      if shown.shape[1:3] != store.size(name):
        raise ValueError(f"{name}: frames of {shown.shape}")

  def read_masks() -> None:
    store = mask_store.MaskStore(masks)
    for name in store.videos:
      instances = store.instances(name)
      store.size(name)
      if len(store.times(name, instances)) != len(store.read(name, instances)):
        raise ValueError(f"{name}: times are not those of the masks")

  return [
    in_file(frames / "videos.npz", damage.damage_bytes, read_frames),
    in_file(frames / "videos.npz", damage.damage_bytes, read_frames, name="videos.npz again"),
    in_file(frames / "timestamps.npy", damage.damage_bytes, read_frames),
    in_file(frames / "frames-00000.array_record", damage.damage_bytes, read_frames),
    in_file(masks / "index.json", damage.damage_json, read_masks, name="masks/index.json"),
    in_file(masks / "masks.array_record", damage.damage_bytes, read_masks),
  ]


def workdir_inputs(folder: Path) -> list[damage.FuzzedInput]:
  """The files of a run that later starts, the status and the report read."""
  config = recipe_config.load("grpo:tiny")
  run, notes = folder / "run", _lines(_OWN)
  hash_of_notes = hashlib.sha256(notes).hexdigest()
  state = process_state.ProcessState(
    **{"host": "h", "process": 0, "pid": 1, "time": time.time(), "state": "running", "task": "rl"},
    **{"done": 1, "total": 4, "activity": "saving", "seconds": 2.0},
  )
  reply = {"text": "<think>so</think>", "rewards": {"total": 1.0}}
  contents: Mapping[str, bytes] = {
    "config.json": _json({"config": config.to_dict(), "history": [{"mode": "rl"}]}),
    "health/0.json": _json(dataclasses.asdict(state)),
    "metrics.jsonl": _lines(
      *(
        {"stage": "rl", "step": step, "values": {"loss": 0.5, "perf/time/step": 2.0, "kl": None}}
        for step in (1, 2)
      )
    ),
    "health/times.jsonl": _lines(
      {"event": "start", "time": 1.0, "alive": 0.5},
      {"event": "stage", "time": 2.0, "stage": "rl", "first": 1},
      {"event": "step", "time": 4.0, "stage": "rl", "step": 1, "seconds": 2.0, "lost": {"a": 1.0}},
      {"event": "end", "time": 5.0, "state": "done"},
    ),
    "rollouts/step-00001.jsonl": _lines({"step": 1, "question": "Q?", "replies": [reply]}),
    "eval/final.json": _json(_EVALUATION),
    "eval/final.jsonl": _lines(_REPLY),
    "eval/frames.jsonl": _lines({"id": "q", "frames": {"0": "aGk=", "1": "aGk="}}),
    "data/ingest.json": _json(
      {"fingerprint": "ab", "report": {}, "annotations": {"a": hash_of_notes}}
    ),
  }
  for name, content in contents.items():
    _write(run / name, content)
  _write(folder / "notes.jsonl", notes)
  _write(run / "checkpoints" / "rl" / "1" / "loop", b"{}")

  def read() -> None:
    list(status.report(run, status.read_config(run), time.time()))
    workdir.config_of(run)
    refused = list(workdir.problems(run, config))
    metrics.read(run / "metrics.jsonl", complete=False)
    report_data.read_run(run)
    if any("\n" in str(each) for each in refused):
      raise ValueError("a refusal of several lines")

  def read_ingested() -> None:
    ingest.check_annotations(run / "data", folder / "notes.jsonl")

  kinds = {".json": damage.damage_json, ".jsonl": damage.damage_json_lines}
  inputs = [
    in_file(run / name, kinds[Path(name).suffix], read, name=name)
    for name in contents
    if not name.startswith("data/")
  ]
  return [*inputs, in_file(run / "data" / "ingest.json", damage.damage_json, read_ingested)]


_EVALUATION = {
  **{"name": "final", "title": "After RL", "stage": "rl", "step": 2, "examples": 1},
  **{
    "metrics": {"accuracy": 0.5, "kl": None},
    "intervals": {"accuracy": {"low": 0.1, "high": 0.9}},
  },
  **{"device": "1 x cpu", "seconds": 2.0},
  "shown_as": {
    "accuracy": {
      **{"title": "Accuracy", "note": "mean", "unit": "", "digits": 3, "better": 1},
      **{"headline": True, "fraction": True},
    }
  },
}
_REPLY = {
  **{
    "id": "q",
    "video": "a.mp4",
    "shown": [0.0, 8.0],
    "question": "Q?",
    "options": ["A. a", "B. b"],
  },
  **{"answer": "B", "problem_type": "multiple choice", "times": [0.0, 1.0], "reply": "<think>"},
  **{"parsed_answer": None, "accuracy": 0.0, "tokens": 3, "truncated": False},
  **{"metrics": {"accuracy": 0.0}, "rewards": {"format": 0.0}, "steps": ["so"]},
  "reference": [{"text": "At 0s.", "start": 0.0, "end": 2.0}],
  "alignment": {"cost": [[0.5]], "path": [[0, 0]], "distance": 0.5},
}
