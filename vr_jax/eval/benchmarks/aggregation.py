"""How scores of a benchmark's questions become its published numbers.

Each metric says which groups a reply belongs to, and combines the groups' means into named values.
It is recomputed as a whole for each draw of a bootstrap (`statistics`). Accuracies and mean
relative accuracies are in percent. `<kind>/<name>` is the mean of a stratum, such as
`duration/long`; LVBench's abilities overlap, so a question may count in several.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib

import numpy as np

from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import group_sums, scored_reply

_ALL = "all"
_GENERATION = "generation/"  # MLVU's groups of open questions
_DIRECTION = "object_rel_direction"
_TRACKS = ("perception", "comprehension", "adaptation")
_QUESTION_ONLY = "question_only"
_FAILED_ALONE = "failed/question_only"  # is there where one of these has no reply
# VCR-Bench's, over all replies; and as its program has it, over those with such a step.
_STEPS = (
  *("steps/overall", "official_steps/overall", "official_steps/video", "official_steps/logic"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkMetric:
  """How a benchmark's numbers are computed.

  headline: the value that is published first.
  further: other published values, which a terminal shows below the table.
  grouping: what a reply adds to which groups.
  combine: makes named values of the groups' means; NaN in, NaN out.
  nest: the kind of stratum within which source videos are resampled; "": all together.
  expected: groups that a complete set has.
  not_shares: how names of values begin that are no percentages of 0 to 100.
  source: where it is defined.
  """

  headline: str
  further: tuple[str, ...] = ()
  grouping: group_sums.Grouping
  combine: Callable[[group_sums.Means], group_sums.Means]
  nest: str = ""
  expected: tuple[str, ...] = ()
  not_shares: tuple[str, ...] = ()
  source: str


def compute(
  metric: BenchmarkMetric, replies: Sequence[scored_reply.ScoredReply]
) -> Mapping[str, float]:
  """The values of a metric by name."""
  sums = group_sums.add_up(replies, metric.grouping, metric.nest)
  return {name: float(value[0]) for name, value in metric.combine(sums.observed()).items()}


def missing_groups(metric: BenchmarkMetric, sums: group_sums.GroupSums) -> tuple[str, ...]:
  """Groups of a complete set that have no question here; then its numbers are partial."""
  return tuple(name for name in metric.expected if name not in sums.groups)


def is_percentage(metric: BenchmarkMetric, name: str) -> bool:
  """Whether a value of a metric is a percentage of 0 to 100."""
  return not name.startswith(metric.not_shares)


def beside_headline(
  metric: BenchmarkMetric, replies: Sequence[scored_reply.ScoredReply]
) -> list[scored_reply.ScoredReply]:
  """Replies that only other values count, where the headline counts some."""
  beside = [reply for reply in replies if _ALL not in metric.grouping(reply)]
  return beside if len(beside) < len(replies) else []


def get(name: str) -> BenchmarkMetric:
  """The metric of that name. Raises InputError with near names if there is none."""
  if name not in METRICS:
    near = difflib.get_close_matches(name, METRICS, cutoff=0.4) or list(METRICS)
    raise InputError(f"benchmark metric {name!r}: unknown; did you mean {' or '.join(near)}?")
  return METRICS[name]


def _strata(reply: scored_reply.ScoredReply) -> dict[str, float]:
  """All questions, and each stratum that this one belongs to."""
  names = [f"{kind}/{name}" for kind, names in reply.strata.items() for name in names]
  return dict.fromkeys((_ALL, *names), reply.score)


def _micro(means: group_sums.Means) -> group_sums.Means:
  """The mean over questions, and over those of each stratum."""
  if _ALL not in means:
    raise _without_groups()
  strata = {name: 100 * value for name, value in means.items() if name != _ALL}
  return {"accuracy": 100 * means[_ALL], **strata}


def _mean_of_tasks(means: group_sums.Means) -> group_sums.Means:
  """The same, and the mean over tasks."""
  return {**_micro(means), "task_mean": 100 * _mean(_under("task/", means))}


def _mlvu_groups(reply: scored_reply.ScoredReply) -> dict[str, float]:
  if reply.scorer != "rubric":
    return _strata(reply)
  return {f"{_GENERATION}{name}": reply.score for name in reply.strata.get("task", ())}


def _mlvu(means: group_sums.Means) -> group_sums.Means:
  """M-Avg is the mean over tasks of multiple choice, G-Avg over the two of generation (2 to 10).

  A reply of the latter scores the sum of its two marks, each 1 to 5; one without marks scores 0.
  """
  values: dict[str, np.ndarray] = {}
  generation = _under(_GENERATION, means)
  if _ALL in means:
    choice = {name: value for name, value in means.items() if not name.startswith(_GENERATION)}
    values = {"M-Avg": 100 * _mean(_under("task/", means)), **_micro(choice)}
  if generation:
    values |= {"G-Avg": _mean(generation)}
    values |= {name: means[name] for name in means if name.startswith(_GENERATION)}
  return values


def _tempcompass_groups(reply: scored_reply.ScoredReply) -> dict[str, float]:
  """Strata, and aspects of each format."""
  both = [
    f"format/{kind}/{aspect}"
    for kind in reply.strata.get("format", ())
    for aspect in reply.strata.get("aspect", ())
  ]
  return _strata(reply) | dict.fromkeys(both, reply.score)


def _vsi(means: group_sums.Means) -> group_sums.Means:
  """The mean of eight tasks; relative direction is first the mean of easy, medium and hard.

  Stratum "category" has ten types of questions, with three of relative direction.
  """
  tasks = _under("category/", means)
  directions = [tasks.pop(name) for name in list(tasks) if name.startswith(_DIRECTION)]
  if directions:
    tasks[_DIRECTION] = _mean(directions)
  values = {**_micro(means), **{f"task/{name}": 100 * value for name, value in tasks.items()}}
  return {**values, "overall": 100 * _mean(tasks)}


def _kind_groups(reply: scored_reply.ScoredReply) -> dict[str, float]:
  kind = "mean_relative_accuracy" if reply.scorer == "mra" else "accuracy"
  return {kind: reply.score}


def _vsi_video_r1(means: group_sums.Means) -> group_sums.Means:
  """Half the sum of the mean accuracy and the mean relative accuracy, each over its questions."""
  parts = {name: 100 * value for name, value in means.items()}
  return {**parts, "overall": _mean(parts)}


def _video_mmmu_groups(reply: scored_reply.ScoredReply) -> dict[str, float]:
  """Strata. A question that was asked without its lecture is only in a group of its own."""
  if _QUESTION_ONLY in reply.strata.get("track", ()):
    failed = {_FAILED_ALONE: 1.0} if reply.status == "failed" else {}
    return {f"track/{_QUESTION_ONLY}": reply.score, **failed}
  return _strata(reply)


def _lectures(means: group_sums.Means) -> group_sums.Means:
  """The mean over questions with lectures, and of strata; of questions alone, theirs."""
  shown = {name: value for name, value in means.items() if name != _FAILED_ALONE}
  alone = f"track/{_QUESTION_ONLY}"
  return {alone: 100 * shown[alone]} if {*shown} == {alone} else _micro(shown)


def _video_mmmu(means: group_sums.Means) -> group_sums.Means:
  """The mean of three tracks, and Δ: of what the questions alone leave open, the part gained.

  Δ is undefined where a question alone has no reply: as a wrong answer, it would raise the gain.
  """
  values, tracks = dict(_lectures(means)), _under("track/", means)
  if _ALL not in means:
    return values
  values["overall"] = 100 * _mean([tracks[t] for t in _TRACKS if t in tracks])
  if _QUESTION_ONLY in tracks and "adaptation" in tracks:
    alone = tracks[_QUESTION_ONLY]
    with np.errstate(invalid="ignore", divide="ignore"):
      gain = np.where(alone < 1, (tracks["adaptation"] - alone) / (1 - alone), np.nan)
    values["knowledge_gain"] = np.full_like(gain, np.nan) if _FAILED_ALONE in means else 100 * gain
  return values


def _vcr_groups(reply: scored_reply.ScoredReply) -> dict[str, float]:
  return _strata(reply) | dict(reply.measures)


def _vcr(means: group_sums.Means) -> group_sums.Means:
  """Accuracy; recall and precision of steps; F1 of their means."""
  values = dict(_micro(means))
  for steps in _STEPS:
    names = [f"{steps}_{measure}" for measure in ("recall", "precision")]
    if all(name in means for name in names):
      recall, precision = (means[name] for name in names)
      total = recall + precision
      f1 = 2 * recall * precision / np.where(total > 0, total, 1)
      values[f"{steps}_f1"] = 100 * f1
  return values


def _mask_groups(reply: scored_reply.ScoredReply) -> dict[str, float]:
  return _strata(reply) | dict(reply.measures)


def _masks(means: group_sums.Means) -> group_sums.Means:
  """J&F over expressions (of Ref-DAVIS17, objects and annotators), its parts, and strata."""
  values = {name: 100 * value for name, value in means.items() if name != _ALL}
  return {"J&F": 100 * means[_ALL], **values}


def _revos_groups(reply: scored_reply.ScoredReply) -> dict[str, float]:
  """Each measure within the type of the expression."""
  values = {"J&F": reply.score, **reply.measures}
  kinds = reply.strata.get("type", ())
  return {f"type/{kind}": reply.score for kind in kinds} | {
    f"{kind}/{name}": value for kind in kinds for name, value in values.items()
  }


def _revos(means: group_sums.Means) -> group_sums.Means:
  """The mean of both types of each measure; an expression of another type counts nowhere."""
  of_type = {kind: _under(f"{kind}/", means) for kind in ("referring", "reasoning")}
  there = {kind: values for kind, values in of_type.items() if values}
  if not there:
    raise _without_groups()
  names = next(iter(there.values()))
  return {
    **{name: 100 * _mean([values[name] for values in there.values()]) for name in names},
    **{f"{kind}/{name}": 100 * each for kind in there for name, each in there[kind].items()},
  }


def _under(prefix: str, means: group_sums.Means) -> dict[str, np.ndarray]:
  return {
    name.removeprefix(prefix): value for name, value in means.items() if name.startswith(prefix)
  }


def _mean(values: Mapping[str, np.ndarray] | Sequence[np.ndarray]) -> np.ndarray:
  arrays = list(values.values()) if isinstance(values, Mapping) else list(values)
  if not arrays:
    raise _without_groups()
  return np.mean(arrays, axis=0)


def _without_groups() -> InputError:
  return InputError("no question of the groups that this metric averages: is this its benchmark?")


_LVBENCH_ABILITIES = (
  *("entity recognition", "event understanding", "key information retrieval"),
  *("reasoning", "summarization", "temporal grounding"),
)
_VSI_TYPES = (
  *("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation"),
  *("object_rel_distance", "route_planning", "obj_appearance_order"),
  *(f"{_DIRECTION}_easy", f"{_DIRECTION}_medium", f"{_DIRECTION}_hard"),
)

METRICS: Mapping[str, BenchmarkMetric] = {
  "micro": BenchmarkMetric(
    headline="accuracy", grouping=_strata, combine=_micro, source="share of right answers"
  ),
  "mvbench": BenchmarkMetric(
    headline="accuracy",
    grouping=_strata,
    combine=_mean_of_tasks,
    source="Ask-Anything, mvbench.ipynb: over questions; equal to the mean over tasks of 200 each",
  ),
  "video_mme": BenchmarkMetric(
    headline="accuracy",
    grouping=_strata,
    combine=_micro,
    nest="duration",
    expected=("duration/short", "duration/medium", "duration/long"),
    source="Video-MME (arXiv 2405.21075), eval_your_results.py",
  ),
  "mlvu": BenchmarkMetric(
    headline="M-Avg",
    further=("G-Avg",),
    grouping=_mlvu_groups,
    combine=_mlvu,
    nest="task",
    not_shares=("G-Avg", _GENERATION),
    source="MLVU (arXiv 2406.04264): M-Avg; its choice_bench.py has accuracy; calculate.py: G-Avg",
  ),
  "lvbench": BenchmarkMetric(
    headline="accuracy",
    grouping=_strata,
    combine=_micro,
    expected=tuple(f"task/{name}" for name in _LVBENCH_ABILITIES),
    source="LVBench (arXiv 2406.08035), compute_accuracy.py",
  ),
  "tempcompass": BenchmarkMetric(
    headline="accuracy",
    grouping=_tempcompass_groups,
    combine=_micro,
    source="TempCompass (arXiv 2403.00476), per format and aspect; over formats: by questions",
  ),
  "vsi_bench": BenchmarkMetric(
    headline="overall",
    grouping=_strata,
    combine=_vsi,
    expected=tuple(f"category/{name}" for name in _VSI_TYPES),
    source="VSI-Bench (arXiv 2412.14171), lmms-eval vsibench/utils.py",
  ),
  "vsi_bench_video_r1": BenchmarkMetric(
    headline="overall",
    grouping=_kind_groups,
    combine=_vsi_video_r1,
    expected=("accuracy", "mean_relative_accuracy"),
    source="Video-R1 (arXiv 2503.21776), issue 121",
  ),
  "video_mmmu": BenchmarkMetric(
    headline="overall",
    further=("knowledge_gain", f"track/{_QUESTION_ONLY}"),
    grouping=_video_mmmu_groups,
    combine=_video_mmmu,
    not_shares=("knowledge_gain",),
    expected=tuple(f"track/{name}" for name in _TRACKS),
    source="Video-MMMU (arXiv 2501.13826), README",
  ),
  "video_mmmu_video_r1": BenchmarkMetric(
    headline="accuracy",
    further=(f"track/{_QUESTION_ONLY}",),
    grouping=_video_mmmu_groups,
    combine=_lectures,
    source="Video-R1 (arXiv 2503.21776), eval_bench.py: over questions of all tracks",
  ),
  "vcr_bench": BenchmarkMetric(
    headline="accuracy",
    further=tuple(
      f"{steps}_{name}" for steps in _STEPS[:2] for name in ("recall", "precision", "f1")
    ),
    grouping=_vcr_groups,
    combine=_vcr,
    source="VCR-Bench (arXiv 2504.07956), eval_code/cau_total.py",
  ),
  "masks": BenchmarkMetric(
    headline="J&F",
    further=("J", "F"),
    grouping=_mask_groups,
    combine=_masks,
    source="DAVIS (Perazzi et al., CVPR 2016): region similarity and boundary accuracy",
  ),
  "revos": BenchmarkMetric(
    headline="J&F",
    further=("J", "F", "R", "visa_R", "visa_A"),
    grouping=_revos_groups,
    combine=_revos,
    expected=("type/referring", "type/reasoning"),
    source="ReVOS (arXiv 2407.11325), VISA's tools/eval_revos.py",
  ),
}
