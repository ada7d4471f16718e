"""The official side of `benchmarks.official_scores`: the authors' own programs, run on replies.

    python -m benchmarks.official_side DIRECTORY < cases.json > found.json

DIRECTORY has clones of the repositories of `official_programs`; those that aren't there are left
out. Imports nothing of vr_jax: Python with NumPy, pandas (VSI-Bench) and PyTorch (Video-R1,
EasyVideoR1) is enough. A recorded reply takes the model's place, and a recorded verdict the
judge's.
"""

import ast
import asyncio
import collections
import contextlib
import copy
import functools
import io
import json
import os
from pathlib import Path
import re
import sys
import tempfile
import types
import typing
from typing import Any

from benchmarks.official_programs import PROGRAMS, ProgramCode, read

Case = dict[str, Any]
OPTIONS = ("dog", "cat", "a red ball", "bird")
CAPTION_QUESTION = "Which fits?\nCaption A: The man runs.\nCaption B: The man walks."
_NUMBERS, _CHOICE = "object_counting", "route_planning"  # types of VSI-Bench's questions
_MRA = "MRA:.5:.95:.05"


class _Clip:
  """Stands for a video; the model's reply about it is known."""

  shape = (3, 1, 1)

  def __init__(self, reply: str):
    self.reply = reply

  def reshape(self, *_: int) -> "_Clip":
    return self

  def to(self, _: str) -> "_Clip":
    return self


def _run_loop(code: ProgramCode, examples: list[Case], **given: Any) -> dict[str, float]:
  """MVBench's and MLVU's loops over questions: percent of right answers by task, and "Avg"."""
  dataset = [
    {
      **{"video": _Clip(each["reply"]), "video_path": "", "question": "?"},
      **{"task_type": each["task"], "answer": _option(each["answer"], "({}) {}")},
    }
    for each in examples
  ]
  return code.load(dataset=dataset, tqdm=iter, json=json, **given)["final_res"]


def mvbench(codes: dict[str, ProgramCode], cases: Case) -> Case:
  """The notebook's loop, with its `infer_mvbench`."""
  model = types.SimpleNamespace(encode_img=lambda clip, text: (clip.reply, None))
  given = {
    **{"model": model, "torch": types.SimpleNamespace(no_grad=contextlib.nullcontext)},
    **{"EasyDict": lambda fields: types.SimpleNamespace(**fields), "ask": lambda *_: None},
    **{"answer": lambda img_list, **_: img_list},
  }
  return _choices(cases, lambda examples: _run_loop(codes["mvbench"], examples, **given), "mvbench")


def mlvu(codes: dict[str, ProgramCode], cases: Case) -> Case:
  """The script's loop; its `answer` strips what the model wrote."""
  given = {
    "infer_mvbench": lambda example, **_: example["video"].reply.strip(),
    **{"save_path": "choices", "result_path": "result.json"},
  }
  return _choices(cases, lambda examples: _run_loop(codes["mlvu"], examples, **given), "mlvu")


def _choices(cases: Case, run: typing.Callable[[list[Case]], dict[str, float]], rule: str) -> Case:
  """Letters found right for each reply, each question as a task of its own; totals of the set."""
  asked = [
    {"task": f"{place}{answer}", "reply": reply, "answer": answer}
    for place, reply in enumerate(cases["choice"])
    for answer in "ABCD"
  ]
  verdicts = run(asked)
  found = collections.defaultdict(str)
  for each in asked:
    found[each["reply"]] += each["answer"] if verdicts[each["task"]] == 100 else ""
  return {"letters": {rule: dict(found)}, "totals": {rule: run(cases["sets"]["choice"])}}


def _letters(cases: Case, is_right: typing.Callable[[str, str], Any]) -> dict[str, str]:
  return {reply: "".join(a for a in "ABCD" if is_right(reply, a)) for reply in cases["choice"]}


def _option(letter: str, template: str = "{}. {}") -> str:
  return template.format(letter, OPTIONS["ABCD".index(letter)])


def mlvu_open(codes: dict[str, ProgramCode], cases: Case) -> Case:
  """Means of the marks of MLVU's two open tasks, and their sum."""
  totals = {}
  for task, marks in cases["sets"]["marks"].items():
    with tempfile.TemporaryDirectory() as folder:
      for place, each in enumerate(marks):
        (Path(folder) / f"{place}.json").write_text(json.dumps([{"explain": each}]))
      totals[task] = codes[f"mlvu_{task}"].load(path=folder, os=os, json=json)["total"]
  return {"totals": {"mlvu_open": totals}}


def video_mme(codes: dict[str, ProgramCode], cases: Case) -> Case:
  """Overall values as the script prints them, to a tenth: of each duration, then of all."""
  names = {"Optional": typing.Optional, "Union": typing.Union, "List": list}
  found = codes["video_mme"].load(re=re, json=json, **names)
  extract = found["extract_characters_regex"]
  kinds = {"domain": "Knowledge", "sub_category": "Law", "missing": False}
  videos = [
    {
      **{**kinds, "duration": each["duration"]},
      "questions": [
        {"task_type": "OCR Problems", "answer": each["answer"], "response": each["reply"]}
      ],
    }
    for each in cases["sets"]["choice"]
  ]
  Path("results.json").write_text(json.dumps(videos))
  durations = ["short", "medium", "long"]
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    found["eval_your_results"]("results.json", durations, skip_missing=True)
  values = map(float, re.findall(r"Overall: *([\d.]+)%", printed.getvalue()))
  return {
    "letters": {"video_mme": _letters(cases, lambda reply, answer: extract(reply) == answer)},
    "totals": {"video_mme": dict(zip([*durations, "all"], values, strict=True))},
  }


def lvbench(codes: dict[str, ProgramCode], cases: Case) -> Case:
  """Accuracy over all questions and of each ability."""
  polish = codes["lvbench"].load()["polish_answer"]
  asked = cases["sets"]["choice"]
  records = [
    {"uid": place, "answer": each["answer"], "question_type": each["abilities"]}
    for place, each in enumerate(asked)
  ]
  Path("questions.jsonl").write_text(json.dumps({"qa": records}))
  answers = {str(place): polish(each["reply"]) for place, each in enumerate(asked)}
  Path("answers.json").write_text(json.dumps(answers))
  reader = types.SimpleNamespace(open=lambda path: contextlib.nullcontext(_json_lines(path)))
  given = {"json": json, "defaultdict": collections.defaultdict, "jsonlines": reader}
  compute = codes["lvbench_accuracy"].load(**given)["compute_accuracy"]
  return {
    "letters": {"lvbench": _letters(cases, lambda reply, answer: polish(reply) == answer)},
    "totals": {"lvbench": compute("answers.json", "questions.jsonl")},
  }


def _json_lines(path: str) -> list[Any]:
  return [json.loads(line) for line in Path(path).read_text().splitlines()]


def tempcompass(codes: dict[str, ProgramCode], cases: Case) -> Case:
  """Ratings by the rules of three formats, with --disable_llm, and the values that are printed."""
  print_result = codes["tempcompass"].load(json=json)["print_result"]

  def rate(kind: str, predictions: Case, tell: Any = lambda _: None) -> Case:
    given = {"tqdm": iter, "os": os, "json": json, "print_result": tell}
    codes[f"tempcompass_{kind}"].load(**given)["main"](predictions, {}, "rated.json", True)
    return json.loads(Path("rated.json").read_text())

  def rate_each(kind: str, asked: list[tuple[str, str, str]]) -> list[int | None]:
    """Of (reply, question, answer): 1 or 0, or None if no rule can tell."""
    names = ("prediction", "question", "answer")
    predictions = {"v": {"order": [dict(zip(names, each, strict=True)) for each in asked]}}
    rated = rate(kind, predictions)["v"]["order"]
    return [each["rating"] if each["match_success"] else None for each in rated]

  asked = [(reply, "?", _option(letter)) for reply in cases["choice"] for letter in "ABCD"]
  rated = iter(rate_each("multi-choice", asked))
  texts = cases["tempcompass"]
  right = CAPTION_QUESTION.split("\n")[-1]
  captions = rate_each("caption_matching", [(t, CAPTION_QUESTION, right) for t in texts])
  words = rate_each("yes_no", [(text, "?", "yes") for text in texts])
  totals = {}
  for kind, questions in cases["sets"]["tempcompass"].items():
    predictions: Case = collections.defaultdict(lambda: collections.defaultdict(list))
    about: Case = {}
    for each in questions:
      record = {name: each[name] for name in ("question", "answer")}
      predictions[each["fine"]][each["aspect"]].append({**record, "prediction": each["reply"]})
      about[each["fine"]] = {"eval_dim": {each["aspect"]: {"type": each["fine"]}}}
    Path("meta_info.json").write_text(json.dumps(about))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      rate(kind, predictions, print_result)
    totals[kind] = ast.literal_eval(printed.getvalue().splitlines()[1])
  return {
    "letters": {"tempcompass": _letters(cases, lambda *_: next(rated) == 1)},
    "captions": dict(zip(texts, captions, strict=True)),
    "yes_no": dict(zip(texts, words, strict=True)),
    "totals": {"tempcompass": totals},
  }


def vsi_bench(codes: dict[str, ProgramCode], cases: Case) -> Case:
  """Letters, mean relative accuracy, and the overall value of drawn scores."""
  import numpy as np  # pyright: ignore[reportMissingImports]
  import pandas as pd  # pyright: ignore[reportMissingImports]

  log = types.SimpleNamespace(info=lambda _: None)
  given = {"np": np, "pd": pd, "json": json, "partial": functools.partial, "eval_logger": log}
  found = codes["vsi_bench"].load(**given)

  def score(kind: str, reply: str, right: str) -> Case:
    question = {"question_type": kind, "ground_truth": right}
    return found["vsibench_process_results"](question, [json.dumps([reply])])["vsibench_score"]

  def is_right(reply: str, answer: str) -> bool:
    return score(_CHOICE, reply, answer)["accuracy"] == 1

  rows = [
    {"question_type": kind, _MRA if kind in found["NA_QUESTION_TYPES"] else "accuracy": each}
    for kind, scores in cases["sets"]["vsi_bench"].items()
    for each in scores
  ]
  return {
    "letters": {"vsi_bench": _letters(cases, is_right)},
    "numbers": {
      "vsi_bench": [round(float(score(_NUMBERS, *each)[_MRA]), 6) for each in cases["numbers"]]
    },
    "totals": {"vsi_bench": found["vsibench_aggregate_results"](rows)},
  }


def vcr_bench(codes: dict[str, ProgramCode], cases: Case) -> Case:
  """Overlaps of times and boxes, and totals of steps that a judge has judged."""
  kinds = {"video": "Video Description", "logic": "Logical Inference", "background": "Background"}
  kinds["background"] += " Review"
  said: list[str] = [""]
  names = ("Recall_Evaluation_Prompt", "Precision_Evaluation_Prompt")
  names += ("Answer_Scoring_Prompt_part1", "Answer_Scoring_Prompt_part2")
  given = {"ast": ast, "copy": copy, "json": json, "re": re, **dict.fromkeys(names, "")}
  found = codes["vcr_bench"].load(get_output_wo_image=lambda prompt: said[0], **given)
  items = []
  for verdicts in cases["sets"]["vcr_bench"]:
    item: Case = dict.fromkeys(("question", "answer", "response", "reasoning"), "")
    for measure, steps in verdicts.items():
      judged = [
        {"step_type": f"{kinds[kind]} Steps", "judgment": each.capitalize()} for kind, each in steps
      ]
      said[0] = f"```json\n{json.dumps(judged)}```"
      item = found[measure](item)
    items.append(item)
  said[0] = "?"
  scored = [
    found["match_answer"]({"question": "", "answer": right, "extract_answer": given})
    for given, right in cases["intervals"]
  ]
  answers = [each["answer_scoring"] for each in scored]
  totals = codes["vcr_bench_totals"].load(defaultdict=collections.defaultdict)["calculate_metrics"]
  return {
    "intervals": [None if each == "?" else int(each) for each in answers],
    "totals": {"vcr_bench": totals(items)["overall_metrics"]},
  }


def mmvu(codes: dict[str, ProgramCode], cases: Case) -> Case:
  """The share of verdicts that are true; None is a judge's answer that can't be read."""
  verdicts = cases["sets"]["mmvu"]

  async def judge(**_: Any) -> list[Any]:
    return [
      None if each is None else types.SimpleNamespace(extracted_answer="", correct=each)
      for each in verdicts
    ]

  given = {"generate_from_openai_chat_completion_structured_format": judge, "os": os, "json": json}
  given |= {"prepare_evaluation_message": lambda example, reply: [], "EvaluationOutput": None}
  example = dict.fromkeys(("id", "question", "choices", "response", "answer"), "")
  compute = codes["mmvu"].load(**given)["get_acc_async"]
  accuracy, _ = asyncio.run(compute([example] * len(verdicts), None))
  return {"totals": {"mmvu": {"accuracy": accuracy}}}


def video_r1(codes: dict[str, ProgramCode], cases: Case, rule: str = "video_r1") -> Case:
  """Letters, and mean relative accuracy in float32."""
  import torch  # pyright: ignore[reportMissingImports]

  reward = codes[rule].load(re=re, json=json, torch=torch)["reward_fn"]

  def score(reply: str, right: str, kind: str) -> float:
    return reward({"solution": f"<answer>{right}</answer>"}, reply, kind)

  numbers = [round(score(reply, r, "regression"), 6) for reply, r in cases["numbers"]]
  letters = _letters(cases, lambda reply, answer: score(reply, answer, "multiple choice") == 1)
  return {"letters": {rule: letters}, "numbers": {rule: numbers}}


Reader = typing.Callable[[dict[str, ProgramCode], Case], Case]
READERS: tuple[tuple[Reader, tuple[str, ...]], ...] = (
  (mvbench, ("mvbench",)),
  (mlvu, ("mlvu",)),
  (mlvu_open, ("mlvu_sub_scene", "mlvu_summary")),
  (video_mme, ("video_mme",)),
  (lvbench, ("lvbench", "lvbench_accuracy")),
  (tempcompass, tuple(name for name in PROGRAMS if name.startswith("tempcompass"))),
  (vsi_bench, ("vsi_bench",)),
  (vcr_bench, ("vcr_bench", "vcr_bench_totals")),
  (mmvu, ("mmvu",)),
  (video_r1, ("video_r1",)),
  (functools.partial(video_r1, rule="easy_video_r1"), ("easy_video_r1",)),
)


def run_all(official: Path, cases: Case, modules: Path) -> Case:
  """What the programs that are there make of the cases, and which programs these are.

  modules: a directory for what is run of them.
  """
  codes = {
    name: read(file, program, modules / f"{name}.py")
    for name, program in PROGRAMS.items()
    if (file := official / program.repository.split("/")[1] / program.path).exists()
  }
  found: Case = {"programs": {name: code.checksum for name, code in codes.items()}}
  for reader, programs in READERS:
    if all(name in codes for name in programs):
      for kind, values in reader(codes, cases).items():
        if isinstance(values, dict):
          found.setdefault(kind, {}).update(values)
        else:
          found[kind] = values
  return found


def main() -> None:
  """Prints what `run_all` finds of the cases on stdin."""
  official, cases = Path(sys.argv[1]).resolve(), json.load(sys.stdin)
  # The programs write files where they run, and print.
  with (
    tempfile.TemporaryDirectory() as folder,
    contextlib.chdir(folder),
    contextlib.redirect_stdout(io.StringIO()),
  ):
    found = run_all(official, cases, Path(folder))
  json.dump(found, sys.stdout)


if __name__ == "__main__":
  main()
