"""The report's section on judged traces, from eval/judged.json; there is none without that file."""

import dataclasses

from vr_jax import errors
from vr_jax.eval import report_data, report_json
from vr_jax.eval.trace_judging import judged_questions, judged_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedSection:
  """What judged.html shows.

  outdated: whether the grades are about other traces than those of the report's evaluations. Then
    they are not shown.
  """

  outdated: bool
  tables: judged_table.JudgedTables


def section(run: report_data.ReportRun) -> JudgedSection | None:
  """Makes the section; None if no traces were judged.

  Raises:
    InputError: judged.json has a wrong format.
  """
  path = run.workdir / "eval" / report_data.JUDGED
  if not path.exists():
    return None
  record = report_json.read_record(path)
  return JudgedSection(outdated=_is_outdated(run, record), tables=judged_table.tables(record))


def _is_outdated(run: report_data.ReportRun, record: report_json.Record) -> bool:
  names = [*record.record("evaluations").values]
  by_name = {each.name: each for each in run.evaluations}
  if not names or not by_name.keys() >= {*names}:
    return True
  try:
    judged = judged_questions.pair([by_name[name] for name in names])
  except errors.InputError:  # evaluations that could not be judged as they are now
    return True
  return judged.fingerprint != record.text("made_of")
