"""Scores predicted masks of a released set, as its own program does.

    python -m vr_jax.eval.score_masks mevis sets/MeViS predictions --split=valid_u

Prints one JSON line; scores are in percent. Predictions lie as mask_submissions.py says. Sets whose
masks were not released are scored by their servers alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import json
from pathlib import Path
import sys
from typing import Any

from absl import flags
from jaxtyping import Bool, UInt8
import numpy as np

from vr_jax import run_length
from vr_jax.data import label_sets, segmentation_sets, segmented_video
from vr_jax.errors import InputError
from vr_jax.eval import mask_submissions, segmentation

PROTOCOLS = ("objects", "expressions")
_USAGE = "LAYOUT ROOT PREDICTIONS [--split=SPLIT] [--protocol=objects|expressions]"
_FOREGROUND = "mask_dict_foreground.json"  # of ReVOS: the pixels of any object
_GROUPS = {0: "referring", 1: "reasoning"}  # of ReVOS; type 2 is never averaged


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredExpression:
  """A query with its truth, and what was predicted.

  frames: names of the annotated frames.
  truth: of these frames.
  predicted: the same; None if the video, or in ReasonVOS the expression, has no prediction.
  """

  video: segmented_video.SegmentedVideo
  query: segmented_video.SegmentedQuery
  frames: tuple[str, ...]
  truth: Bool[np.ndarray, "frames height width"]
  predicted: UInt8[np.ndarray, "frames height width"] | None

  def score(self) -> segmentation.MaskScore:
    """J and F; 0 without a prediction."""
    if self.predicted is None:
      return segmentation.MaskScore(j=0.0, f=0.0)
    return segmentation.j_and_f(self.predicted > 0, self.truth)


def score(
  layout: str,
  root: Path,
  predictions: Path,
  *,
  split: str | None = None,
  protocol: str = "objects",
  pixel_value: int = mask_submissions.MARKED,
) -> dict[str, Any]:
  """Scores of a set, in percent, as its program computes them.

  protocol: of Ref-DAVIS17 alone. objects: all objects of an annotator at once, matched as DAVIS's
    unsupervised task does, averaged over the four annotators. expressions: each expression alone,
    as VISA does.
  pixel_value: of a marked pixel, for ReVOS's R and A as VISA computes them.

  Raises:
    InputError: the split has no masks, or a predicted frame is missing or of another size.
  """
  if protocol not in PROTOCOLS:
    raise InputError(f"--protocol={protocol}: one of {', '.join(PROTOCOLS)}")
  if not predictions.is_dir():
    raise InputError(f"{predictions}: there is no such directory of predictions")
  videos = segmentation_sets.read(layout, root, split)
  if layout == "ref_davis17" and protocol == "objects":
    return _davis_objects(videos, root, predictions)
  found = _expressions(layout, videos, root, predictions)
  if layout == "revos":
    return _revos(found, root, pixel_value)
  scores, missing = [], 0
  for expression in found:
    missing += expression.predicted is None
    if layout == "reason_vos" and expression.predicted is None:
      continue  # its program leaves them out, which is no zero
    scores.append(expression.score())
  if not scores:
    raise InputError(f"{predictions}: holds no prediction for {root}")
  return {**_percent(scores), "expressions": len(scores), "without_prediction": missing}


def measures(
  layout: str, videos: Iterable[segmented_video.SegmentedVideo], root: Path, predictions: Path
) -> Iterator[dict[str, float]]:
  """J and F of each expression, of ReVOS also R, visa_R and visa_A, in [0, 1].

  ReVOS's are rounded to two decimals of a percent, as by its program.

  videos: with masks. Raises InputError if a predicted frame is missing or of another size.
  """
  found = _expressions(layout, videos, root, predictions)
  if layout == "revos":
    foreground = segmented_video.load_json(root / _FOREGROUND)
    for expression in found:
      row = _revos_row(expression, foreground, mask_submissions.MARKED)
      yield {name: value / 100 for name, value in row.items()}
    return
  for expression in found:
    score = expression.score()
    yield {"J": score.j, "F": score.f}


def _expressions(
  layout: str, videos: Iterable[segmented_video.SegmentedVideo], root: Path, predictions: Path
) -> Iterator[ScoredExpression]:
  for video in videos:
    if video.instances is None:
      raise InputError(f"{root}: this split has no masks; send the predictions to its server")
    for query in video.queries:
      folder = mask_submissions.folder(layout, predictions, video, query)
      truth = segmented_video.object_masks(video.instances, query.instances, len(video.frames))
      frames = tuple(video.frames[frame] for frame in truth)
      size = video.height, video.width
      # Without its video, an expression scores 0; in ReasonVOS it is left out, also alone.
      place = folder if layout == "reason_vos" else folder.parent
      there = place.is_dir()
      yield ScoredExpression(
        video=video,
        query=query,
        frames=frames,
        truth=np.stack([run_length.decode(mask, *size) for mask in truth.values()]),
        predicted=mask_submissions.read_labels(folder, frames, size) if there else None,
      )


def _revos(found: Iterator[ScoredExpression], root: Path, pixel_value: int) -> dict[str, Any]:
  """Means of both groups, and of the groups. An expression's scores are rounded before."""
  foreground = segmented_video.load_json(root / _FOREGROUND)
  rows: list[dict[str, float]] = []
  groups: list[int] = []
  missing = 0
  for expression in found:
    groups.append(int(expression.query.extra.get("type_id", 2)))
    missing += expression.predicted is None
    rows.append(_revos_row(expression, foreground, pixel_value))
  if not rows:
    raise InputError(f"{root}: this split has no expressions")
  by_group = {
    name: segmentation.group_means([row[name] for row in rows], groups) for name in rows[0]
  }
  result: dict[str, Any] = {}
  for group, title in _GROUPS.items():
    if group in groups:
      means = {name: each[group] for name, each in by_group.items()}
      result[title] = {**means, "J&F": (means["J"] + means["F"]) / 2}
  if len(result) == len(_GROUPS):
    both = list(result.values())
    result["overall"] = {name: (both[0][name] + both[1][name]) / 2 for name in both[0]}
  return {**result, "expressions": len(rows), "without_prediction": missing}


def _revos_row(
  expression: ScoredExpression, foreground: Mapping[str, Any], pixel_value: int
) -> dict[str, float]:
  """The scores of an expression in percent; 0 without a prediction."""
  if expression.predicted is None:
    return dict.fromkeys(("J", "F", "R", "visa_R", "visa_A"), 0.0)
  video, query = expression.video, expression.query
  size = video.height, video.width
  entry = foreground.get(video.name)
  masks = entry.get("masks_rle") if isinstance(entry, dict) else None
  if not isinstance(masks, list) or len(masks) != len(video.frames):
    raise InputError(
      f"mask_dict_foreground.json: video {video.name!r} has no 'masks_rle' for its "
      f"{len(video.frames)} frames"
    )
  of_all = np.zeros(expression.truth.shape, bool)
  for frame, mask in enumerate(masks):
    for part in mask if isinstance(mask, list) else [mask]:
      run_length.check(part, *size, f"mask_dict_foreground.json: video {video.name!r}")
      of_all[frame] |= run_length.decode(part, *size)
  counts = np.zeros(expression.truth.shape, np.uint8)
  for name in query.instances:
    for frame, mask in enumerate((video.instances or {})[name]):
      if isinstance(mask, Mapping):
        counts[frame] += run_length.decode(mask, *size)
  marked = expression.predicted > 0
  r, a = segmentation.visa_compatible(marked, counts, of_all, pixel_value=pixel_value)
  per_frame = {
    "J": segmentation.region_similarity(marked, expression.truth),
    "F": segmentation.boundary_f(marked, expression.truth),
    "R": segmentation.robustness(marked, expression.truth, of_all),
    "visa_R": r,
    "visa_A": a,
  }
  return {name: segmentation.revos_percent(values) for name, values in per_frame.items()}


def _davis_objects(
  videos: Iterator[segmented_video.SegmentedVideo], root: Path, predictions: Path
) -> dict[str, Any]:
  annotators: list[list[segmentation.MaskScore]] = [[] for _ in label_sets.ANNOTATORS]
  for video in videos:
    for scores, found in zip(annotators, davis_objects(video, root, predictions), strict=True):
      scores += found
  if not annotators[0]:
    raise InputError(f"{root}: this split has no videos")
  each = [_percent(scores) for scores in annotators]
  return {
    **{name: float(np.mean([one[name] for one in each])) for name in each[0]},
    "annotators": each,
    "objects": len(annotators[0]),
  }


def davis_objects(
  video: segmented_video.SegmentedVideo, root: Path, predictions: Path
) -> Iterator[list[segmentation.MaskScore]]:
  """For each annotator, the scores of a video's objects from label 1 on, matched as DAVIS does.

  predictions: as `mask_submissions.merge_davis` writes them.
  """
  labels = label_sets.read_davis_labels(root, video.name, video.frames)
  void = labels == label_sets.VOID
  objects = range(1, int(labels[~void].max(initial=0)) + 1)
  truths = np.stack([labels == number for number in objects])
  for annotator in range(len(label_sets.ANNOTATORS)):
    directory = predictions / f"anno_{annotator}" / video.name
    found = mask_submissions.read_labels(directory, video.frames, (video.height, video.width))
    proposals = np.stack([found == number for number in range(1, max(int(found.max()), 1) + 1)])
    yield segmentation.unsupervised_scores(proposals, truths, void)


def _percent(scores: Sequence[segmentation.MaskScore]) -> dict[str, float]:
  j, f = (100 * float(np.mean([getattr(score, name) for score in scores])) for name in "jf")
  return {"J": j, "F": f, "J&F": (j + f) / 2}


def run(argv: list[str]) -> None:
  """Runs the command; raises InputError for what is wrong with its input."""
  values = flags.FlagValues()
  flags.DEFINE_string("split", None, "Of the set.", flag_values=values)
  flags.DEFINE_string("protocol", "objects", "Of Ref-DAVIS17.", flag_values=values)
  flags.DEFINE_integer("pixel_value", mask_submissions.MARKED, "For VISA.", 1, 255, values)
  try:
    rest = values(["score_masks", *argv])[1:]
  except flags.Error as error:
    raise InputError(f"{' '.join(str(error).split())}; usage: {_USAGE}") from error
  if len(rest) != 3:
    raise InputError(f"usage: {_USAGE}; layouts: {', '.join(segmentation_sets.LAYOUTS)}")
  layout, root, predictions = rest
  options: Any = {name: values[name].value for name in ("split", "protocol", "pixel_value")}
  print(json.dumps(score(layout, Path(root), Path(predictions), **options)))


if __name__ == "__main__":
  try:
    run(sys.argv[1:])
  except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
