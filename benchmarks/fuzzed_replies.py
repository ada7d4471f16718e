"""The texts that models write, for benchmarks/fuzz_inputs.py: replies, verdicts, rewrites."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import damage
from vr_jax import endpoint_response, recipe_config, records
from vr_jax.data import qvhighlights
from vr_jax.envs import environment, json_answers, registry
from vr_jax.eval.trace_judging import rubric, verdict_reader
from vr_jax.rewards import accuracy, format, judge, judge_leak, judge_prompt, numbers, steps
from vr_jax.traces import rewrite_qvhighlights

_RECIPES = ("grpo", "moss_chatv", "videop2r", "video_mtr", "revseg")
_POOL, _SIZE = 8, (112, 112)
_TIMES = tuple(number / 2 for number in range(_POOL))  # seconds
_REPLIES = {
  "grpo": ("<think>It falls.\nThen it lies.</think>\n<answer>B</answer>",),
  "moss_chatv": (
    "<think>1. At 2s, the circle is red.\n2. At 4s: green.</think>\n<answer>A</answer>",
  ),
  "videop2r": (
    "<observation>At 2s, the circle is red.</observation>\n<think>So, it stays red.</think>\n"
    "<answer>2.5 million km</answer>",
  ),
  "video_mtr": (
    "<think>look closer</think>\n<retrieve>2,5</retrieve>",
    "<think>now I know</think>\n<answer>-1 1/2</answer>",
  ),
  "revseg": (
    '<think>0 gone, 2 large.</think>\n<answer>[{"frame_idx": 2, "object description": "the '
    'dog\'s ball", "bbox_2d": [1, 2.5, 30, 40]}]</answer>',
    "<think>left</think><answer>```json\n[{'bbox_2d': ['39', 28, 60.0, 77], 'label': 'ball',}]"
    "\n```</answer>",
  ),
}
_WORDS = (
  *("<think>", "</think>", "<answer>", "</answer>", "<observation>", "</observation>"),
  *(
    "<retrieve>",
    "</retrieve>",
    "<judgement>",
    "</judgment>",
    "Yes",
    "No",
    "1.",
    "At 2s,",
    "Step 3:",
  ),
  *(
    "0",
    "-1",
    "1/2",
    "½",
    "1/0",
    "1e9",
    "1e999",
    "9" * 30,
    "9" * 5000,
    "٣",
    "²",
    "nan",
    "infinity",
  ),
  *("twenty-one", "trillion ", "point ", "hundred and ", "%", "€", "1,000,000", ".5", "1.2.3", "∞"),
  *("[", "]", "{", "}", "[[", '{"', '":', ",", "'", '"', "\\", "\\u0", "\\ud83d", "\\n", "null"),
  *('"frame_idx": ', '"bbox_2d": ', "frame", "[1,2,3,4]", "(1, 2, 3, 4)", "true", "None", "{}"),
  *("", " ", "\n", "\t\x00", "\u2028", "\ud800", "\U0001f600", "\u202e", "ß", "İ", "ﬁ", "e\u0301"),
  *(
    " " * 500,
    "a" * 3000,
    ". " * 500,
    "。" * 300,
    "1. " * 300,
    "[" * 2000,
    '{"a":' * 2000,
    "<" * 999,
  ),
)
_EXAMPLES = tuple(
  records.Example(
    id=problem_type,
    video="v.mp4",
    question="What?",
    options=("A. red", "B. green") if problem_type == "multiple choice" else (),
    answer=answer,
    problem_type=problem_type,
    shown=records.Span(start=0.0, end=8.0),
    object_track=records.ObjectTrack(
      times=np.array(_TIMES),
      boxes=np.tile(np.array([10, 10, 50, 60], np.float32), (_POOL, 1)),
      height=_SIZE[0],
      width=_SIZE[1],
      instances=("1",),
    ),
  )
  for problem_type, answer in (
    *(
      ("multiple choice", "B"),
      ("numerical", "2.5"),
      ("regression", "-1/2"),
      ("OCR", "Ausfahrt 3"),
    ),
    ("free-form", "the red ball"),
  )
)


def reply_inputs(folder: Path) -> list[damage.FuzzedInput]:
  """Replies of every recipe, verdicts of judges, rewrites, and bodies of endpoints' responses."""
  del folder
  verdict = "The note says it. <judgement>Yes</judgement>"
  rewrite = {"suitable": True, "question": "Q?", "options": ["a", "b", "c", "d"], "answer": "B"}
  openai = {"choices": [{"message": {"content": "Yes."}}]}
  anthropic = {"content": [{"type": "thinking"}, {"type": "text", "text": "Yes."}]}
  found = [
    _text(f"reply of {recipe} {turn}", reply, _reader(recipe, turn))
    for recipe in _RECIPES
    for turn, reply in enumerate(_REPLIES[recipe])
  ]
  for text in (verdict, '```json\n{"verdict": "No"}\n```', "<think>so</think><answer>B</answer>"):
    found.append(_text(f"verdict {text[:6]}", text, _read_verdict))
  graded = {"reason": "\ud83d It is.", "consistency": 4, "stability": "3/5"}
  for value in (graded, {"first": graded, "second": {**graded, "stability": 5.0}}):
    found.append(_text(f"grades of {len(value)}", f"Here: {json.dumps(value)}", _read_grades))
  found.append(_text("rewrite", f"Here: {json.dumps(rewrite)}", _read_rewrite))
  for name, body in (("openai", openai), ("anthropic", anthropic)):
    found.append(
      damage.FuzzedInput(
        name=f"body of {name}",
        whole=json.dumps(body).encode(),
        damage=damage.damage_json,
        read=lambda data: _read_body(data.decode("utf-8", "replace")),
        may_refuse=False,
      )
    )
  return found


def _text(name: str, text: str, read: Callable[[str], None]) -> damage.FuzzedInput:
  return damage.FuzzedInput(
    name=name,
    whole=text.encode(),
    damage=damage.damage_words(*_WORDS),
    read=lambda data: read(data.decode("utf-8", "surrogatepass")),
    may_refuse=False,
  )


def _reader(recipe: str, turn: int) -> Callable[[str], None]:
  """Reads the reply of a turn in all ways in which a run, an evaluation and a report do."""
  config = recipe_config.load(f"{recipe}:tiny")
  task = registry.make_environment(config, box_scale=lambda size: (float(size[0]), float(size[1])))
  before = _REPLIES[recipe][:turn]

  def read(reply: str) -> None:
    for example in _EXAMPLES:
      _check(task.accuracy(example, reply), 0, 1)
      _check(judge_leak.states_answer(example, reply), 0, 1)
      action = task.parse_action(example, _POOL, reply, turn)
      if action.kind == "retrieve" and not 0 <= action.start <= action.end < _POOL:
        raise ValueError(f"frames {action.start} to {action.end} are asked for")
      task.observe(example, _POOL, (*before, reply))
      json.dumps(task.explain(example, reply))
    for scored in (_EXAMPLES[0], _EXAMPLES[-1]):
      episode = environment.Episode(
        pool=_POOL, relevant=(1, 2), times=_TIMES, replies=(*before, reply)
      )
      for value in task.episode_metrics(scored, episode).values():
        _check(value, -1e9, 1e9)
    spans = task.segment_spans(reply, turn)
    ends = [end for end, _ in spans]
    if ends != sorted(ends) or ends[-1] > len(reply):
      raise ValueError(f"segments end at {ends} of {len(reply)}")
    found = task.grounding((*before, reply), _POOL, _SIZE)
    if found.box is not None:
      left, top, right, bottom = found.box
      if not (0 <= left <= right <= _SIZE[1] and 0 <= top <= bottom <= _SIZE[0]):
        raise ValueError(f"the box {found.box} is outside of the frame")
    task.observation(reply)
    task.parse_trace(reply)
    steps.split_steps(task.trace(reply))
    _check(format.format_reward(reply), 0, 1)
    for problem in accuracy.accuracies([reply] * len(_EXAMPLES), _EXAMPLES):
      _check(problem, 0, 1)
    numbers.read_number(accuracy.answer_text(reply) or reply)
    json_answers.read_key_frame(reply, _POOL, 200)
    json_answers.read_box(reply)

  return read


def _check(value: Any, low: float, high: float) -> None:
  # Written so that nan is outside, too.
  if not low <= value <= high:
    raise ValueError(f"{value} is not in [{low}, {high}]")


def _read_verdict(reply: str) -> None:
  for example in _EXAMPLES:
    for threshold in (None, 0.5):
      case = judge.JudgeCase(example=example, observation=reply)
      question = judge_prompt.question(case, threshold=threshold)
      question.text.encode()
      if question.read(reply) not in (True, False, None):
        raise ValueError("the verdict is neither yes nor no")


def _read_rewrite(reply: str) -> None:
  moment = qvhighlights.Moment(qid="1", query="A dog runs.", video="v.mp4", spans=[[0.0, 2.0]])
  rewrite_qvhighlights.RewriteQuestion(moment=moment).read(reply)


def _read_grades(reply: str) -> None:
  for places in (rubric.ALONE, rubric.PLACES):
    grades = verdict_reader.read(reply, places)
    for score in (score for each in grades or () for score in each.scores):
      _check(score, 1, 5)


def _read_body(body: str) -> None:
  text = endpoint_response.text_of(body)
  if text is not None:
    _read_verdict(text)
