"""eval/judged.json and eval/judged.jsonl: numbers, and every verdict, one a line.

Both hold all judges that were asked about the same traces. Verdicts about other traces (of an
earlier evaluation, say) are dropped by the next write.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

from vr_jax import atomic, errors
from vr_jax.eval import report_data, report_json
from vr_jax.eval.trace_judging import grade, judged_questions, summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSettings:
  """How a judge was asked. What it doesn't have is "" or None.

  kind: rule, local or endpoint.
  model: as the endpoint names it, or the directory's name.
  shown: "pair", both policies' traces in one prompt, or "alone".
  runs, attempts: as in verdicts.JudgingPlan.
  """

  kind: str
  model: str = ""
  shown: str = "alone"
  runs: int = 1
  attempts: int = 1
  temperature: float | None = None


Judges = dict[str, tuple[JudgeSettings, tuple[grade.TraceVerdict, ...]]]


def write(
  workdir: Path,
  judged: judged_questions.JudgedSet,
  judge: str,
  settings: JudgeSettings,
  verdicts: Sequence[grade.TraceVerdict],
) -> dict[str, Any]:
  """Writes both files, with a judge's verdicts beside those of other judges about the same traces.

  An earlier judge of this name is replaced. Returns the content of judged.json.

  Raises:
    InputError: the files of an earlier call can't be read, or the new ones not be written.
  """
  path = workdir / "eval" / report_data.JUDGED
  judges = read_judges(path, judged.fingerprint) if path.exists() else {}
  judges.pop(judge, None)
  judges[judge] = (settings, tuple(verdicts))
  content = summary.summarize(judged, {name: each for name, (_, each) in judges.items()})
  for each in content["judges"]:
    each |= {"settings": dataclasses.asdict(judges[each["judge"]][0])}
  rows = (row for _, each in judges.values() for row in map(_to_json, each))
  atomic.write_json_lines(path.with_suffix(".jsonl"), rows)
  atomic.write_bytes(path, [json.dumps(content, indent=1).encode() + b"\n"])
  return content


def read_judges(path: Path, made_of: str) -> Judges:
  """Reads judged.json and judged.jsonl; {} if they are about other traces.

  made_of: fingerprint of the traces.

  Raises:
    InputError: one has a wrong format; it names file, line and field.
  """
  record = report_json.read_record(path)
  if record.text("made_of") != made_of:
    return {}
  lines = path.with_suffix(".jsonl")
  verdicts: dict[str, list[grade.TraceVerdict]] = {}
  for row in report_json.read_records(lines):
    verdicts.setdefault(row.text("judge"), []).append(_read_verdict(row))
  judges: Judges = {}
  for each in record.records("judges"):
    name, settings = each.text("judge"), each.record("settings")
    if len(verdicts.get(name, [])) != each.integer("verdicts"):
      raise errors.InputError(
        f"{lines}: lacks verdicts of judge {name!r}; remove it and {path.name}, and judge again"
      )
    judges[name] = (
      JudgeSettings(
        kind=settings.text("kind"),
        model=settings.text("model"),
        shown=settings.text("shown"),
        runs=settings.integer("runs"),
        attempts=settings.integer("attempts"),
        temperature=settings.number("temperature") if settings.has("temperature") else None,
      ),
      tuple(verdicts[name]),
    )
  return judges


def _to_json(verdict: grade.TraceVerdict) -> dict[str, Any]:
  return dataclasses.asdict(verdict)


def _read_verdict(record: report_json.Record) -> grade.TraceVerdict:
  order = record.texts("order")
  grades: Mapping[str, grade.TraceGrade] | None = None
  if record.has("grades"):
    section = record.record("grades")
    grades = {name: _read_grade(section.record(name)) for name in order}
  return grade.TraceVerdict(
    judge=record.text("judge"),
    id=record.text("id"),
    video=record.text("video"),
    run=record.integer("run"),
    order=order,
    grades=grades,
    problem=record.text("problem"),
  )


def _read_grade(record: report_json.Record) -> grade.TraceGrade:
  try:
    return grade.TraceGrade(
      consistency=record.integer("consistency"),
      stability=record.integer("stability"),
      reason=record.text("reason"),
    )
  except ValueError as error:
    raise errors.InputError(f"{record.where}: {error}") from error
