"""VCR-Bench's scores of reasoning, from a judge's verdicts on each step, and of times and boxes.

A judge says of each reference step whether the reply has it (matched or unmatched), and of each
step of the reply whether it is matched, wrong or redundant. Steps describe the video, infer, or
review background. Verdicts are input data here; no judge is asked.

Source: VCR-Bench (arXiv 2504.07956), eval_code/eval.py and cau_total.py.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re
from typing import Literal

TIME_IOU, BOX_IOU = 0.7, 0.5  # an answer has to overlap by more

Measure = Literal["recall", "precision"]
StepKind = Literal["video", "logic", "background"]
Judgement = Literal["matched", "unmatched", "wrong", "redundant"]

_NUMBER = r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
_TIMES = re.compile(rf"\s*\[{_NUMBER},{_NUMBER},?\s*\]\s*")
_BOX = re.compile(r"\[\s*([+-]?\d+)\s*,\s*([+-]?\d+)\s*,\s*([+-]?\d+)\s*,\s*([+-]?\d+)\s*\]")

# A reply that failed has none of the reference steps, and no right one. VCR-Bench's program leaves
# it out of all means.
FAILED: Mapping[str, float] = {"steps/overall_recall": 0.0, "steps/overall_precision": 0.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepVerdict:
  """A judge's verdict on one step."""

  kind: StepKind
  judgement: Judgement


def measure(name: Measure, verdicts: Sequence[StepVerdict]) -> dict[str, float]:
  """Recall or precision of video, logic and overall steps of a reply.

  Recall is matched of matched and unmatched reference steps; precision matched of matched and wrong
  steps of the reply, redundant ones left out. `overall` are video and logic together.

      official_steps/logic_recall   left out where there is no such step, as in VCR-Bench's means
      steps/overall_recall          of each reply: 0 where there is no step

  verdicts: on the reference steps, or on the reply's steps; none if they could not be read.
  """
  found = {}
  for kind, kinds in (
    ("video", ("video",)),
    ("logic", ("logic",)),
    ("overall", ("video", "logic")),
  ):
    judged = [each.judgement for each in verdicts if each.kind in kinds]
    lost = judged.count("unmatched" if name == "recall" else "wrong")
    if total := judged.count("matched") + lost:
      found[f"official_steps/{kind}_{name}"] = 1 - lost / total
  return {f"steps/overall_{name}": found.get(f"official_steps/overall_{name}", 0.0), **found}


def interval_score(given: str, right: str) -> float | None:
  """Scores an answer of times "[4, 9]" or of a box "[10, 20, 30, 40]".

  Returns 1 if times overlap by more than .7, or boxes by more than .5 (intersection over union),
  else 0; None if not both texts are times, or both boxes: then a judge decides.
  """
  times = _TIMES.fullmatch(given), _TIMES.fullmatch(right)
  if times[0] and times[1]:
    ours, reference = ([float(text) for text in each.groups()] for each in times if each)
    return float(time_iou(ours, reference) > TIME_IOU)
  boxes = _BOX.fullmatch(given), _BOX.fullmatch(right)
  if boxes[0] and boxes[1]:
    ours, reference = ([float(text) for text in each.groups()] for each in boxes if each)
    return float(box_iou(ours, reference) > BOX_IOU)
  return None


def time_iou(a: Sequence[float], b: Sequence[float]) -> float:
  """Overlap of two spans (start, end) over the stretch from the first start to the last end."""
  stretch = max(a[1], b[1]) - min(a[0], b[0])
  return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / stretch if stretch > 0 else 0.0


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
  """Intersection over union of two boxes (left, top, right, bottom); 0 where one has no area."""
  width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
  areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
  if width <= 0 or height <= 0 or not all(box[2] > box[0] and box[3] > box[1] for box in (a, b)):
    return 0.0
  return width * height / (math.fsum(areas) - width * height)
