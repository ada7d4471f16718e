"""Our scores of recorded replies beside those of the benchmarks' own programs.

    python -m benchmarks.official_scores --official=DIRECTORY [--python=PYTHON] [--write]

DIRECTORY has clones, as they are: OpenGVLab/Ask-Anything (MVBench), JUNJIE99/MLVU,
thanku-all/parse_answer (Video-MME), THUDM/LVBench, llyx97/TempCompass,
vision-x-nyu/thinking-in-space (VSI-Bench), zhishuifeiqian/VCR-Bench, yale-nlp/MMVU,
tulerfeng/Video-R1, cyuQ1n/EasyVideoR1. `official_programs` says which file of which commit was read
for the record; what isn't there is left out, and code that differs is named. `--python` has NumPy,
pandas and PyTorch (extra parity).

Compared are the replies of tests/golden/answer_rule_cases.json, totals of sets of questions with
drawn replies, and `--drawn` replies of each kind that are put together at random. Prints a line for
each comparison, and each difference; exits with 1 if there is one. `--write` records what the
programs made of all but the last in tests/golden/official_scores.json, which the tests compare our
rules with.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
from pathlib import Path
import subprocess
import sys
from typing import Any

from absl import flags

from benchmarks import official_cases, official_programs, official_side
from vr_jax import errors
from vr_jax.data import benchmark_item
from vr_jax.eval.benchmarks import (
  aggregation,
  answer_rules,
  reasoning_steps,
  scored_answer,
  scored_reply,
)

RECORD = official_cases.RECORDED.with_name("official_scores.json")
_CLOSE = 1e-5
_PRINTED = 0.0501  # of a percentage that a program prints to a tenth


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What was compared, how many values, and lines about those that differ."""

  name: str
  count: int
  differing: list[str]


def main(argv: Sequence[str]) -> int:
  """Compares and prints. Returns the exit code: 2 with one line if the programs can't be run."""
  values = flags.FlagValues()
  flags.DEFINE_string("official", None, "Has the clones.", flag_values=values)
  flags.DEFINE_string("python", sys.executable, "Runs the programs.", flag_values=values)
  flags.DEFINE_integer("drawn", 2000, "Replies put together at random.", 0, flag_values=values)
  flags.DEFINE_boolean("write", False, "Record what the programs find.", flag_values=values)
  try:
    values(list(argv))
    if not values.official:
      raise errors.InputError("needs --official=<directory with clones>")
    return _compare_all(Path(values.official), values.python, values.drawn, values.write)
  except (errors.InputError, flags.Error) as error:
    print(error, file=sys.stderr)
    return 2


def _compare_all(official: Path, python: str, drawn: int, write: bool) -> int:
  cases = json.loads(official_cases.RECORDED.read_text()) | {"sets": official_cases.draw_sets()}
  found = run(official, python, cases)
  left_out = [name for name in official_programs.PROGRAMS if name not in found["programs"]]
  if write and left_out:
    raise errors.InputError(f"{official}: has no {left_out[0]}; a record needs all programs")
  if not found["programs"]:
    raise errors.InputError(f"{official}: has none of the programs; put the clones there")
  if write:
    RECORD.write_text(_lines({"sets": cases["sets"], **found}))
  known = json.loads(RECORD.read_text())["programs"]
  for name, program in official_programs.PROGRAMS.items():
    said = "not there, left out" if name in left_out else "other code than recorded"
    if found["programs"].get(name) != known[name]:
      print(f"{program.repository} {program.path}: {said}")
  compared = compare(cases, found)
  if drawn:
    cases = {"sets": cases["sets"]} | official_cases.draw_replies(drawn)
    compared += [
      dataclasses.replace(each, name=f"{each.name}, drawn")
      for each in compare(cases, run(official, python, cases) | {"totals": {}})
    ]
  for each in compared:
    print(f"{each.name}: {each.count - len(each.differing)} of {each.count} equal")
    for line in each.differing[:20]:
      print(f"  {line}")
  return int(any(each.differing for each in compared))


def run(official: Path, python: str, cases: Mapping[str, Any]) -> dict[str, Any]:
  """What the programs make of the cases. Raises InputError if they can't be run."""
  if not official.is_dir():
    raise errors.InputError(f"{official}: no directory")
  line = [python, "-m", official_side.__name__, str(official.resolve())]
  root = Path(__file__).parent.parent
  try:
    done = subprocess.run(line, input=json.dumps(cases), capture_output=True, text=True, cwd=root)
  except OSError as error:
    raise errors.InputError(f"--python={python}: can't be started: {error.strerror}") from error
  if done.returncode:
    said = done.stderr.strip().splitlines() or ["no message"]
    raise errors.InputError(f"{python}: could not run the programs: {said[-1]}")
  return json.loads(done.stdout)


def compare(cases: Mapping[str, Any], found: Mapping[str, Any]) -> list[Comparison]:
  """Our rules and metrics on the same cases. `found`: of `run`, or the record."""
  compared = []
  for rule, letters in found.get("letters", {}).items():
    ours = {reply: letters_right(rule, reply) for reply in letters}
    compared.append(_rows(f"{rule}, letters", letters, ours))
  for name, make in (("captions", _caption), ("yes_no", _word)):
    if name in found:
      compared.append(
        _rows(f"tempcompass, {name}", found[name], {each: make(each) for each in found[name]})
      )
  for rule, scores in found.get("numbers", {}).items():
    named = {json.dumps(each): score for each, score in zip(cases["numbers"], scores, strict=True)}
    ours = {json.dumps(each): _number(rule, *each) for each in cases["numbers"]}
    compared.append(_rows(f"{rule}, numbers", named, ours))
  if "intervals" in found:
    pairs = [json.dumps(each) for each in cases["intervals"]]
    ours = [reasoning_steps.interval_score(*each) for each in cases["intervals"]]
    theirs = dict(zip(pairs, found["intervals"], strict=True))
    compared.append(_rows("vcr_bench, intervals", theirs, dict(zip(pairs, ours, strict=True))))
  for name, values in found.get("totals", {}).items():
    theirs, ours = _TOTALS[name](cases["sets"], values)
    close = _PRINTED if name in ("tempcompass", "video_mme") else _CLOSE
    compared.append(_rows(f"{name}, totals", theirs, ours, close))
  return compared


def _rows(
  name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], close: float = _CLOSE
) -> Comparison:
  def equal(key: str) -> bool:
    a, b = theirs[key], ours.get(key)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
      return abs(a - b) <= close
    return a == b

  lines = [f"{k!r}: theirs {theirs[k]!r}, ours {ours.get(k)!r}" for k in theirs if not equal(k)]
  return Comparison(name, len(theirs), lines)


def letters_right(rule: str, reply: str) -> str:
  """The letters of options that a rule would find right for a reply."""
  return "".join(
    letter for letter in "ABCD" if answer_rules.score(rule, reply, _question(letter)).score == 1
  )


def _question(
  answer: str,
  scorer: benchmark_item.Scorer = "choice",
  options: Sequence[str] = official_side.OPTIONS,
  **fields: Any,
) -> benchmark_item.Item:
  return benchmark_item.Item(
    **{"id": "q", "benchmark": "mvbench", "split": "test", "video": "v.mp4", "question": "?"},
    scorer=scorer,
    answer=answer,
    options=tuple(options) if scorer in ("choice", "caption_match") else (),
    **fields,
  )


def _told(found: scored_answer.ScoredAnswer) -> int | None:
  return None if found.parsed is None else int(found.score)


def _caption(reply: str) -> int | None:
  record = {"question": official_side.CAPTION_QUESTION}
  options = [line.split(": ")[1] for line in record["question"].split("\n")[1:]]
  item = _question("B", "caption_match", options, source_record=record)
  return _told(answer_rules.score("tempcompass", reply, item))


def _word(reply: str) -> int | None:
  return _told(answer_rules.score("tempcompass", reply, _question("yes", "yes_no")))


def _number(rule: str, reply: str, right: str) -> float:
  return answer_rules.score(rule, reply, _question(right, "mra")).score


Values = dict[str, float]
Replies = list[scored_reply.ScoredReply]


def _reply(place: int, score: float, scorer: benchmark_item.Scorer = "choice", **kinds: Any):
  measures = kinds.pop("measures", {})
  strata = {kind: tuple(names) for kind, names in kinds.items()}
  return scored_reply.ScoredReply(
    id=str(place),
    cluster=str(place),
    status="answered",
    scorer=scorer,
    score=score,
    strata=strata,
    measures=measures,
  )


def _metric(name: str, replies: Replies) -> Mapping[str, float]:
  return aggregation.compute(aggregation.get(name), replies)


def _choices(rule: str, asked: Sequence[Mapping[str, Any]], unread: bool = True) -> Replies:
  """Scored replies of the set of choices; `unread`: also those in which the rule reads nothing."""
  found = []
  for place, each in enumerate(asked):
    answer = answer_rules.score(rule, each["reply"], _question(each["answer"]))
    if unread or answer.parsed is not None:
      task = each["abilities"] if rule == "lvbench" else [each["task"]]
      found.append(_reply(place, answer.score, task=task, duration=[each["duration"]]))
  return found


def _tasks(rule: str) -> Callable[[Any, Any], tuple[Values, Values]]:
  def total(sets: Any, values: Any) -> tuple[Values, Values]:
    found = _metric(rule, _choices(rule, sets["choice"]))
    return values, {k: found["accuracy" if k == "Avg" else f"task/{k}"] for k in values}

  return total


def _mlvu_open(sets: Any, values: Any) -> tuple[Values, Values]:
  replies = []
  for task, texts in sets["marks"].items():
    for text in texts:
      score = sum(json.loads(text).values()) if text.startswith("{") else 0
      replies.append(_reply(len(replies), score, "rubric", task=[task]))
  found = _metric("mlvu", replies)
  return values, {task: found[f"generation/{task}"] for task in values}


def _video_mme(sets: Any, values: Any) -> tuple[Values, Values]:
  found = _metric("video_mme", _choices("video_mme", sets["choice"], unread=False))
  return values, {k: found["accuracy" if k == "all" else f"duration/{k}"] for k in values}


def _lvbench(sets: Any, values: Any) -> tuple[Values, Values]:
  found = _metric("lvbench", _choices("lvbench", sets["choice"]))
  theirs = {name: 100 * value for name, value in values.items()}
  return theirs, {k: found["accuracy" if k == "acc" else f"task/{k}"] for k in values}


def _tempcompass(sets: Any, values: Any) -> tuple[Values, Values]:
  scorers: Mapping[str, benchmark_item.Scorer] = {
    **{"multi-choice": "choice", "caption_matching": "caption_match", "yes_no": "yes_no"}
  }
  replies, theirs = [], {}
  for kind, asked in sets["tempcompass"].items():
    for each in asked:
      score = answer_rules.score("tempcompass", each["reply"], _tempcompass_item(kind, each)).score
      place = len(replies)
      replies.append(_reply(place, score, scorers[kind], format=[kind], aspect=[each["aspect"]]))
    theirs |= {
      f"format/{kind}" if name == "avg" else f"format/{kind}/{name}": value
      for name, value in values[kind].items()
    }
  return theirs, dict(_metric("tempcompass", replies))


def _tempcompass_item(kind: str, each: Mapping[str, Any]) -> benchmark_item.Item:
  if kind == "multi-choice":
    return _question(each["answer"][0])
  if kind == "yes_no":
    return _question(each["answer"], "yes_no")
  lines = each["question"].split("\n")[1:]
  letter = "AB"[lines.index(each["answer"])]
  options = [line.split(": ")[1] for line in lines]
  return _question(letter, "caption_match", options, source_record={"question": each["question"]})


def _vsi_bench(sets: Any, values: Any) -> tuple[Values, Values]:
  replies = []
  for kind, scores in sets["vsi_bench"].items():
    scorer: benchmark_item.Scorer = "mra" if kind in official_cases.MEASURED else "choice"
    for score in scores:
      replies.append(_reply(len(replies), score, scorer, category=[kind]))
  found = _metric("vsi_bench", replies)
  theirs = {name: 100 * value for name, value in values.items()}
  names = {k: "overall" if k == "overall" else f"task/{k.rpartition('_')[0]}" for k in values}
  return theirs, {k: found[name] for k, name in names.items()}


def _vcr_bench(sets: Any, values: Any) -> tuple[Values, Values]:
  replies = []
  for verdicts in sets["vcr_bench"]:
    measures: Values = {}
    for name, steps in verdicts.items():
      judged = [reasoning_steps.StepVerdict(kind=kind, judgement=each) for kind, each in steps]
      measures |= reasoning_steps.measure(name, judged)
    replies.append(_reply(len(replies), 0, "reasoning_steps", measures=measures))
  found = _metric("vcr_bench", replies)
  theirs = {
    f"official_steps/{kind.lower()}_{name}": 100 * value
    for kind, each in values.items()
    for name, value in each.items()
  }
  return theirs, dict(found)


def _mmvu(sets: Any, values: Any) -> tuple[Values, Values]:
  replies = [_reply(n, float(each or 0), "judge") for n, each in enumerate(sets["mmvu"])]
  theirs = {name: 100 * value for name, value in values.items()}
  return theirs, dict(_metric("micro", replies))


_TOTALS: Mapping[str, Callable[[Any, Any], tuple[Values, Values]]] = {
  **{"mvbench": _tasks("mvbench"), "mlvu": _tasks("mlvu"), "mlvu_open": _mlvu_open},
  **{"video_mme": _video_mme, "lvbench": _lvbench, "tempcompass": _tempcompass},
  **{"vsi_bench": _vsi_bench, "vcr_bench": _vcr_bench, "mmvu": _mmvu},
}


def _lines(record: Mapping[str, Any]) -> str:
  """JSON with a line for each entry of the second level."""
  parts = []
  for name, value in record.items():
    named = isinstance(value, dict)
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    rows = [(f"{json.dumps(k)}: " if named else "") + json.dumps(v) for k, v in entries]
    ends = "{}" if named else "[]"
    parts.append(f"{json.dumps(name)}: {ends[0]}\n" + ",\n".join(rows) + f"\n{ends[1]}")
  return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
  sys.exit(main(sys.argv))
