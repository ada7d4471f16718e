"""Writes answer_rules.json: what lmms-eval 0.7.3's programs make of odd replies (`make lmms`).

.venv-lmms/bin/python tests/golden/answer_rules.py [--check]

Runs in lmms-eval's own environment, so nothing of vr_jax is imported. --check compares with the
file instead of writing it, and exits with 1 if they differ. `python -m benchmarks.official_scores`
does the same with the authors' programs.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import os
from pathlib import Path
import random
import sys
import types

HERE = Path(__file__)
OPTIONS = ("dog", "cat", "a red ball", "bird")
CAPTIONS = "Which fits?\nCaption A: The man runs.\nCaption B: The man walks."
MCQ = "lmms_eval.tasks._task_utils.mmmu_mcq_utils"
NUMBERS = "object_counting"
CHOICES = (
  *("object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard"),
  *("object_rel_distance", "route_planning", "obj_appearance_order"),
)
MEASURED = ("object_abs_distance", NUMBERS, "object_size_estimation", "room_size_estimation")
MLVU = ("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning")


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--check", action="store_true")
  arguments = parser.parse_args()
  path = HERE.with_suffix(".json")
  known = json.loads(path.read_text()) if path.exists() else {}
  cases = json.loads(HERE.with_name("answer_rule_cases.json").read_text())
  with contextlib.redirect_stdout(io.StringIO()):
    found = read_all(cases)
  text = write(found)
  if not arguments.check:
    path.write_text(text)
  elif text != path.read_text():
    differing = [name for name in found if found[name] != known.get(name)]
    sys.exit(f"{path}: differs from what lmms-eval makes of the replies: {', '.join(differing)}")


def read_all(cases):
  """What each program makes of the replies: letters that it finds right, and scores."""
  # Tasks import decoders of videos, which no reply needs.
  for name in ("decord", "cv2", "moviepy"):
    if importlib.util.find_spec(name) is None:
      sys.modules[name] = types.SimpleNamespace(VideoReader=None, cpu=None)
  os.environ.setdefault("HF_HOME", os.devnull)  # where media would be
  tasks = {
    name: importlib.import_module(f"lmms_eval.tasks.{name}.utils")
    for name in ("longvideobench", "mlvu", "mvbench", "tempcompass", "videommmu", "vsibench")
  }
  # A drawn option and a judge's verdict are no reading of the reply.
  tasks["longvideobench"].random = types.SimpleNamespace(choice=lambda options: None)
  importlib.import_module(MCQ)
  tasks["tempcompass"].get_eval_result = lambda *args, **kwargs: ("", None)
  letters = {"longvideobench": read_longvideobench, "lmms_eval_letter": read_mvbench}
  letters |= {"vsi_bench": read_vsi_letter, "video_mmmu": read_video_mmmu}
  letters |= {"tempcompass": read_tempcompass, "video_mmmu in 0.7.3": read_video_mmmu_task}
  return {
    "letters": {
      rule: {
        reply: "".join(a for a in "ABCD" if read(tasks, reply, a)) for reply in cases["choice"]
      }
      for rule, read in letters.items()
    },
    "captions": {reply: read_caption(tasks, reply) for reply in cases["tempcompass"]},
    "yes_no": {reply: read_word(tasks, reply) for reply in cases["tempcompass"]},
    "numbers": [[r, right, score_number(tasks, r, right)] for r, right in cases["numbers"]],
    "numbers in 0.7.3": [
      [r, right, score_number_task(tasks, r, right)] for r, right in cases["numbers"]
    ],
    "open": [[r, right, score_open(tasks, r, right)] for r, right in cases["open"]],
    "vsi_overall": add_up_vsi(tasks),
    "mlvu_m_avg": add_up_mlvu(tasks),
  }


def read_longvideobench(tasks, reply, answer):
  doc = {f"option{place}": text for place, text in enumerate((*OPTIONS, "N/A"))}
  doc |= {"id": "1", "duration_group": 15, "question_category": "S2E"}
  doc["correct_choice"] = "ABCD".index(answer)
  found = tasks["longvideobench"].longvideobench_process_results(doc, [reply])["lvb_acc"]
  return found["parsed_pred"] == answer


def read_mvbench(tasks, reply, answer):
  doc = {"candidates": OPTIONS, "answer": OPTIONS["ABCD".index(answer)]}
  return tasks["mvbench"].mvbench_process_results(doc, [reply])["mvbench_accuracy"]["score"] == 1


def read_vsi_letter(tasks, reply, answer):
  doc = {"question_type": "route_planning", "ground_truth": answer}
  done = tasks["vsibench"].vsibench_process_results(doc, [reply])
  return done["vsibench_overall"]["accuracy"] == 1


def read_video_mmmu(tasks, reply, answer):
  """By the authors' parser, which lmms-eval still has, though its task calls another now."""
  parse = sys.modules[MCQ].parse_videommmu_multi_choice_response
  return parse(reply, list("ABCD"), dict(zip("ABCD", OPTIONS, strict=True))) == answer


def read_video_mmmu_task(tasks, reply, answer):
  doc = {"id": "validation_Art_1", "options": OPTIONS, "question_type": "multiple-choice"}
  doc["answer"] = answer
  found = tasks["videommmu"].videommmu_process_results(doc, [reply])["mmmu_acc"]
  return found["parsed_pred"] is not None and tasks["videommmu"].eval_multi_choice(
    answer, found["parsed_pred"]
  )


def read_tempcompass(tasks, reply, answer):
  right = f"{answer}. {OPTIONS['ABCD'.index(answer)]}"
  doc = {"answer": right, "question": "?", "video_id": "1", "dim": "order"}
  said = reply.replace("</s>", "")  # as the authors' programs do
  done = tasks["tempcompass"].tempcompass_process_results_multi_choice(doc, [said])
  return done["avg_accuracy"]["rating"] == 1


def read_caption(tasks, reply):
  said = reply.replace("</s>", "")
  found = tasks["tempcompass"].eval_rule(said, CAPTIONS, "Caption B: The man walks.")
  return None if found == "fail" else found


def read_word(tasks, reply):
  found = tasks["tempcompass"].extract_pred(reply.replace("</s>", ""))
  return int(found == "yes") if found else None


def score_number(tasks, reply, right):
  """Of the first word, as VSI-Bench's authors do; lmms-eval's task reads any number now."""
  task = tasks["vsibench"]
  number = task.to_float(task.fuzzy_matching(reply))
  if number is None:
    return 0.0
  return round(float(task.mean_relative_accuracy(number, float(right), 0.5, 0.95, 0.05)), 6)


def score_number_task(tasks, reply, right):
  doc = {"question_type": NUMBERS, "ground_truth": right}
  done = tasks["vsibench"].vsibench_process_results(doc, [reply])
  return round(float(done["vsibench_overall"]["MRA:.5:.95:.05"]), 6)


def score_open(tasks, reply, right):
  doc = {"id": "validation_Art_1", "question_type": "open", "answer": right}
  found = tasks["videommmu"].videommmu_process_results(doc, [reply])["mmmu_acc"]
  return int(tasks["videommmu"].eval_open(right, found["parsed_pred"]))


def add_up_vsi(tasks):
  """Drawn scores by type of question, and the overall score of them."""
  rng = random.Random(0)
  scores = {}
  docs = []
  for kind in (*CHOICES, *MEASURED):
    count = rng.randint(2, 5)
    metric = "MRA:.5:.95:.05" if kind in MEASURED else "accuracy"
    levels = [each / 10 for each in range(11)] if kind in MEASURED else [0.0, 1.0]
    scores[kind] = [rng.choice(levels) for _ in range(count)]
    docs += [{"question_type": kind, metric: each} for each in scores[kind]]
  return {"scores": scores, "overall": tasks["vsibench"].vsibench_aggregate_overall(docs)}


def add_up_mlvu(tasks):
  """Drawn scores by task, and M-Avg of them."""
  rng = random.Random(1)
  scores = {task: [rng.randint(0, 1) for _ in range(rng.randint(2, 6))] for task in MLVU}
  results = [
    {"task_type": task, "pred_answer": "A" if each else "B", "answer": "A"}
    for task, found in scores.items()
    for each in found
  ]
  return {"scores": scores, "M-Avg": tasks["mlvu"].mlvu_aggregate_results_dev(results)}


def write(found):
  """JSON with a line for each reply."""
  lines = []
  for name, value in found.items():
    inner = value.items() if isinstance(value, dict) else enumerate(value or ())
    is_dict = isinstance(value, dict)
    rows = [(f"{json.dumps(k)}: " if is_dict else "") + json.dumps(v) for k, v in inner]
    ends = "{}" if is_dict else "[]"
    lines.append(f"{json.dumps(name)}: {ends[0]}\n" + ",\n".join(rows) + f"\n{ends[1]}")
  return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
  main()
