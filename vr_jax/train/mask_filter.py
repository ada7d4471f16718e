"""Stage `filter`: finds videos whose masks a tracker can't reproduce from true boxes.

SAM2 gets the true box of each instance in each annotated frame that is stored, one frame at a time,
and its masks are compared with the true ones. Queries about a video whose mean IoU is below a
threshold are not trained on: there a right box earns a poor mask. Results are written video by
video, so the same command resumes, in the directory `mask_filter` beside the shards.

Source: ReVSeg, arXiv 2512.02835, section 4.1.
Reconstruction: the mean is over all instances that queries ask for and all frames that show them,
and the frames are those of the store, whose masks are scaled down as the frames were.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jaxtyping import Bool, UInt8
import ml_collections
import numpy as np
from PIL import Image

from vr_jax import atomic, errors, frame_times, plain_json, run_length
from vr_jax.data import examples, frame_store, ingest, mask_store
from vr_jax.models import sam2
from vr_jax.train import console, paths

BATCH = 8  # frames that are on the device at once
_ABOUT, _IOUS, _SUMMARY = "about.json", "ious.jsonl", "summary.json"

Box = tuple[float, float, float, float]
# Frames, and the boxes of each -> the masks of each frame's boxes.
Segment = Callable[
  [UInt8[np.ndarray, "frames height width 3"], Sequence[Sequence[Box]]],
  list[Bool[np.ndarray, "boxes height width"]],
]


def directory(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """The directory of the results."""
  return paths.data_directory(config, workdir) / "mask_filter"


def is_wanted(config: ml_collections.ConfigDict) -> bool:
  """Whether the config asks for the filter."""
  return "mask_filter" in config and bool(config.mask_filter.sam2)


def write(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Finds the mean IoU of every video that queries are about, or resumes an interrupted start.

  Raises:
    InputError: there are no weights, no data or no masks, or the directory holds results of other
      weights or data.
  """
  if "mask_filter" not in config:
    raise errors.InputError(
      f"config.recipe={config.recipe}: trains on no masks that --mode=filter could look at"
    )
  if not is_wanted(config):
    raise errors.InputError("--config.mask_filter.sam2: --mode=filter needs the weights of SAM2")
  shards = paths.shards_directory(config, workdir)
  if not atomic.is_whole(shards):
    raise errors.InputError(f"{shards}: no such data; run --mode=data first")
  ingest.check_annotations(shards, paths.annotation_file(config, workdir))
  output = directory(config, workdir)
  segmenter = sam2.load(config.mask_filter.sam2)
  ious = decide(
    output, shards, _hash(segmenter.params), lambda *inputs: _segment(segmenter, *inputs)
  )
  low = [video for video, iou in ious.items() if iou < config.mask_filter.threshold]
  console.print_line(
    f"filter: {len(low)} of {len(ious)} videos have a mean IoU below "
    f"{config.mask_filter.threshold:g}; queries about them are not trained on ({output})"
  )


def dropped_videos(config: ml_collections.ConfigDict, shards: Path) -> frozenset[str] | None:
  """The videos that are not trained on; None if the filter is wanted but has not run.

  shards: the directory with the examples and frames.
  """
  if not is_wanted(config):
    return frozenset()
  path = shards.parent / "mask_filter" / _SUMMARY
  if not path.is_file():
    return None
  ious = _load(path)["ious"]
  return frozenset(video for video, iou in ious.items() if iou < config.mask_filter.threshold)


def decide(output: Path, shards: Path, weights: str, segment: Segment) -> Mapping[str, float]:
  """Writes the mean IoU of each video that is not decided yet. Returns those of all videos.

  weights: what tells them from others.
  """
  about = {"ingested": _load(shards / "ingest.json")["fingerprint"], "sam2": weights}
  path = output / _ABOUT
  if path.is_file():
    if _load(path) != about:
      raise errors.InputError(
        f"{output}: holds results of other data or weights of SAM2; remove it, or give those"
      )
  else:
    output.mkdir(parents=True, exist_ok=True)
    atomic.write_json_lines(path, [about])
  if (output / _SUMMARY).is_file():
    return _load(output / _SUMMARY)["ious"]
  wanted = _wanted_instances(shards)
  if not wanted:
    raise errors.InputError(f"{shards}: has no queries with masks to filter")
  frames = frame_store.FrameStore(shards / "frames")
  masks = mask_store.MaskStore(shards / "masks")
  ious = _decided(output / _IOUS)
  with console.progress("filter", len(wanted), done=len(ious)) as tick:
    for video, instances in wanted.items():
      if video in ious:
        continue
      scores = _video_ious(video, instances, frames, masks, segment)
      # A video that never shows what queries ask for has nothing to reproduce.
      ious[video] = float(np.mean(scores)) if scores else 1.0
      line = json.dumps({"video": video, "iou": ious[video], "masks": len(scores)}) + "\n"
      with (output / _IOUS).open("ab") as lines:
        lines.write(line.encode())
        atomic.close_published(lines)
      tick(len(ious))
  ordered = {video: ious[video] for video in wanted}
  atomic.write_json_lines(output / _SUMMARY, [{"ious": ordered}])
  return ordered


def _wanted_instances(shards: Path) -> dict[str, tuple[str, ...]]:
  """The instances that queries ask for, by video, sorted."""
  found: dict[str, set[str]] = {}
  for split in examples.SPLITS:
    for example in examples.ExampleSource(shards, split):
      if track := example.object_track:
        found.setdefault(example.video, set()).update(track.instances)
  return {video: tuple(sorted(found[video])) for video in sorted(found)}


def _decided(path: Path) -> dict[str, float]:
  """The results of an earlier start. A last line that was not written to its end is removed."""
  if not path.is_file():
    return {}
  content = path.read_bytes()
  whole = content[: content.rfind(b"\n") + 1]
  if whole != content:
    os.truncate(path, len(whole))
  try:
    lines = [plain_json.parse(line) for line in whole.splitlines()]
    return {str(line["video"]): float(line["iou"]) for line in lines}
  except (ValueError, KeyError, TypeError) as error:
    raise errors.InputError(f"{path}: is damaged; remove it") from error


def _video_ious(
  video: str,
  instances: Sequence[str],
  frames: frame_store.FrameStore,
  masks: mask_store.MaskStore,
  segment: Segment,
) -> list[float]:
  """The IoU of each mask that a stored frame shows."""
  size, times = frames.size(video), frames.timestamps(video)
  shown: dict[int, list[tuple[Box, np.ndarray]]] = {}
  for name in instances:
    for place, stored in enumerate(frame_times.find(times, masks.times(video, [name])).tolist()):
      if stored < 0:
        continue
      (true,) = masks.read(video, [name], [place])
      scaled = _scale(true, size)
      left, top, right, bottom = run_length.box(run_length.encode(scaled)).tolist()
      if scaled.any():
        shown.setdefault(stored, []).append(((left, top, right, bottom), scaled))
  ious = []
  order = sorted(shown)
  for start in range(0, len(order), BATCH):
    chosen = order[start : start + BATCH]
    found = segment(
      frames.read(video, chosen), [[box for box, _ in shown[frame]] for frame in chosen]
    )
    for frame, predicted in zip(chosen, found, strict=True):
      for mine, (_, true) in zip(predicted, shown[frame], strict=True):
        ious.append(np.count_nonzero(mine & true) / np.count_nonzero(mine | true))
  return ious


def _scale(
  mask: Bool[np.ndarray, "height width"], size: tuple[int, int]
) -> Bool[np.ndarray, "scaled_height scaled_width"]:
  """Scales a mask down as frames are: a pixel belongs to it if half of its area does."""
  if mask.shape == size:
    return mask
  grey = Image.fromarray(mask.astype(np.uint8) * 255)
  return np.array(grey.resize((size[1], size[0]), Image.Resampling.BOX)) >= 128


def _segment(
  segmenter: sam2.Segmenter,
  frames: UInt8[np.ndarray, "frames height width 3"],
  boxes: Sequence[Sequence[Box]],
) -> list[Bool[np.ndarray, "boxes height width"]]:
  """Segments each frame on its own. Padding makes few shapes, each of which is compiled once."""
  count = len(frames)
  frames = np.concatenate([frames, np.repeat(frames[-1:], BATCH - count, axis=0)])
  boxes = [*boxes, *[boxes[-1]] * (BATCH - count)]
  most = 1 << (max(map(len, boxes)) - 1).bit_length()
  prompts = [
    [
      sam2.BoxPrompt(object=number, frame=0, box=each[min(number, len(each) - 1)])
      for number in range(most)
    ]
    for each in boxes
  ]
  tracked = sam2.track_videos(segmenter, [frame[None] for frame in frames], prompts)
  return [
    each.masks[: len(own), 0] for each, own in zip(tracked[:count], boxes[:count], strict=True)
  ]


def _hash(params: Mapping[str, Any]) -> str:
  digest = hashlib.sha256()
  for name in sorted(params):
    digest.update(name.encode() + np.asarray(params[name]).tobytes())
  return digest.hexdigest()


def _load(path: Path) -> Any:
  try:
    return plain_json.parse(path.read_bytes())
  except (OSError, ValueError) as error:
    raise errors.InputError(f"{path}: is damaged; remove it") from error
