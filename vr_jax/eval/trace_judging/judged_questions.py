"""What is judged: the questions of a run's evaluations, each with the traces of all policies."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import math
from pathlib import Path

from vr_jax import errors
from vr_jax.eval import report_data

TRUTH = "trace_consistency"  # the metric that knows the simulator's states


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedQuestion:
  """A question, its reference and a trace of each evaluation.

  reference: the reference steps, with the seconds that each is about.
  traces: reasoning steps by evaluation; empty where a reply has none.
  truth: `trace_consistency` by evaluation, within [0, 1]; without those that lack it.
  """

  id: str
  video: str
  question: str
  options: tuple[str, ...]
  reference: tuple[report_data.ReferenceStep, ...]
  traces: Mapping[str, tuple[str, ...]]
  truth: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedSet:
  """All that is judged.

  evaluations: title by name, in the order of training.
  without_reference, asked_once: questions left out, since they have no reference steps, or since
    not all evaluations asked them.
  """

  evaluations: Mapping[str, str]
  questions: tuple[JudgedQuestion, ...]
  without_reference: int
  asked_once: int

  @property
  def fingerprint(self) -> str:
    """Changes with any text that a judge may see: SHA-256, in hex."""
    texts = [
      [
        (each.id, each.question, each.options),
        [dataclasses.astuple(step) for step in each.reference],
        [each.traces[name] for name in self.evaluations],
      ]
      for each in self.questions
    ]
    content = json.dumps([list(self.evaluations), texts])
    return hashlib.sha256(content.encode()).hexdigest()


def read(workdir: Path, names: Sequence[str]) -> JudgedSet:
  """Reads evaluations of a run and pairs their replies by question.

  Raises:
    InputError: an evaluation is missing or malformed, two have another text under the same id, or
      no question can be judged.
  """
  evaluations = []
  for name in names:
    path = workdir / "eval" / f"{name}.json"
    if not path.is_file():
      raise errors.InputError(
        f"{path}: no such evaluation; run --mode=eval, or name others with --evaluations="
      )
    evaluations.append(report_data.read_evaluation(path))
  return pair(evaluations)


def pair(evaluations: Sequence[report_data.Evaluation]) -> JudgedSet:
  """Pairs the replies of evaluations by question; see `read`."""
  by_id: dict[str, dict[str, report_data.Sample]] = {}
  for evaluation in evaluations:
    for reply in evaluation.replies:
      if evaluation.name in by_id.setdefault(reply.id, {}):
        raise errors.InputError(
          f"eval/{evaluation.name}.jsonl: question {reply.id!r} is there twice; evaluate again"
        )
      by_id[reply.id][evaluation.name] = reply
  asked = {key: each for key, each in by_id.items() if len(each) == len(evaluations)}
  questions = [_question(key, each) for key, each in asked.items()]
  judged = tuple(each for each in questions if each.reference)
  if not judged:
    raise errors.InputError(
      f"eval/{evaluations[0].name}.jsonl: "
      + (
        "no question has reference steps, which traces are judged against"
        if questions
        else "holds no question that all evaluations asked"
      )
    )
  return JudgedSet(
    evaluations={each.name: each.title for each in evaluations},
    questions=judged,
    without_reference=len(questions) - len(judged),
    asked_once=len(by_id) - len(asked),
  )


def _question(identity: str, replies: Mapping[str, report_data.Sample]) -> JudgedQuestion:
  (first, one), *others = replies.items()
  for name, other in others:
    for field in ("question", "options", "reference", "video"):
      if getattr(one, field) != getattr(other, field):
        raise errors.InputError(
          f"eval/{name}.jsonl: question {identity!r} has another {field} than in "
          f"eval/{first}.jsonl; evaluate both policies on the same data"
        )
  truth = {name: reply.metrics.get(TRUTH, math.nan) for name, reply in replies.items()}
  return JudgedQuestion(
    id=identity,
    video=one.video,
    question=one.question,
    options=one.options,
    reference=one.reference,
    traces={name: reply.steps for name, reply in replies.items()},
    truth={name: value for name, value in truth.items() if math.isfinite(value)},
  )
