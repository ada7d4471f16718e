"""Cases for `official_scores`: questions with drawn replies, and replies drawn at random."""

from collections.abc import Mapping
import json
from pathlib import Path
import random
from typing import Any

from benchmarks import official_side
from vr_jax.eval.benchmarks import aggregation

RECORDED = Path(__file__).parent.parent / "tests" / "golden" / "answer_rule_cases.json"
_FINE = {
  "action": ("fine-grained action", "coarse-grained action"),
  "direction": ("object motion", "camera motion"),
  "speed": ("absolute speed", "relative speed"),
  "order": ("order",),
  "attribute_change": (
    *("color & light change", "size & shape change", "combined change", "other change"),
  ),
}
_DIRECTIONS = tuple(f"object_rel_direction_{level}" for level in ("easy", "medium", "hard"))
MEASURED = (
  *("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation"),
)
_MARKS = {
  "sub_scene": ("score_accuracy", "score_relevance"),
  "summary": ("score_completeness", "score_reliability"),
}
_LETTERS = (*("A", "B", "C", "D", "E", "a", "b", "(B)", "(A)", "B)", "C.", "D:", "B.", "A) dog"),)
_MARKS_BETWEEN = (
  *("(", ")", ".", ":", ",", " ", " ", "\n", "\n\n", "\t", "**", "。", "cat", "a red ball", "Dogs"),
)
_LEADS = (
  *("</s>", "<answer>", "</answer>", "<think>", "</think>", "The answer is ", "Best answer:"),
  *("The best option is ", "Answer: ", "Therefore, the final answer is: ", "I choose option "),
  *("So the correct answer is:", "not ", "答案是", "答案：", " "),
)
_NUMBER_PIECES = (
  *(
    "4",
    "3",
    "-",
    "0",
    "9",
    "1,000",
    "3.5",
    " meters",
    "about ",
    "nan",
    "1e1",
    ".",
    " ",
    "\n",
    "m",
  ),
)
_CAPTION_PIECES = (
  *("yes", "Yes", "No", "no", ", ", " ", ".", ") ", "Caption ", "Caption A", "Caption B", ": "),
  *("The man walks.", "The man runs.", "A", "B", "</s>", "\n"),
)
_SPAN_PIECES = (*("[", "]", ", ", ",", "1", "4", "9", "10", "0.5", "-", " ", ".", "e1", "+"),)


def draw_sets(seed: int = 0) -> dict[str, Any]:
  """Questions with drawn replies, and drawn scores and verdicts, for the programs' totals."""
  rng = random.Random(seed)
  cases = json.loads(RECORDED.read_text())
  abilities = [name.removeprefix("task/") for name in aggregation.get("lvbench").expected]
  choice = [
    {
      **{"task": rng.choice(("ego", "count", "needle")), "reply": rng.choice(cases["choice"])},
      **{"duration": rng.choice(("short", "medium", "long")), "answer": rng.choice("ABCD")},
      "abilities": rng.sample(abilities, rng.randint(1, 2)),
    }
    for _ in range(150)
  ]
  marks = {
    task: [
      json.dumps({name: rng.randint(1, 5) for name in names}) if rng.random() < 0.9 else "no marks"
      for _ in range(12)
    ]
    for task, names in _MARKS.items()
  }
  vsi = {
    kind: [rng.choice([each / 10 for each in range(11)]) for _ in range(rng.randint(2, 5))]
    for kind in MEASURED
  }
  for kind in (*_DIRECTIONS, "object_rel_distance", "route_planning", "obj_appearance_order"):
    vsi[kind] = [rng.choice((0.0, 1.0)) for _ in range(rng.randint(2, 5))]
  steps = [
    {
      name: [
        (rng.choice(("video", "logic", "background")), rng.choice(("matched", *others)))
        for _ in range(rng.randint(1, 4))
      ]
      for name, others in (("recall", ["unmatched"]), ("precision", ["wrong", "redundant"]))
    }
    for _ in range(20)
  ]
  return {
    **{"choice": choice, "marks": marks, "vsi_bench": vsi, "vcr_bench": steps},
    "mmvu": [rng.choice((True, False, None)) for _ in range(30)],
    "tempcompass": {
      kind: [
        {**_tempcompass_case(rng, kind, cases), "aspect": aspect, "fine": fine}
        for aspect, names in _FINE.items()
        for fine in names
        for _ in range(rng.randint(2, 6))
      ]
      for kind in ("multi-choice", "caption_matching", "yes_no")
    },
  }


def _tempcompass_case(rng: random.Random, kind: str, cases: Mapping[str, Any]) -> dict[str, str]:
  if kind == "multi-choice":
    letter = rng.choice("ABCD")
    answer = f"{letter}. {official_side.OPTIONS['ABCD'.index(letter)]}"
    return {"question": "?", "answer": answer, "reply": rng.choice([*cases["choice"], answer])}
  reply = rng.choice(cases["tempcompass"])
  if kind == "yes_no":
    return {"question": "?", "answer": rng.choice(("yes", "no")), "reply": reply}
  question = official_side.CAPTION_QUESTION
  return {"question": question, "answer": rng.choice(question.split("\n")[1:]), "reply": reply}


def draw_replies(count: int, seed: int = 0) -> dict[str, Any]:
  """Replies of random pieces, as cases for `official_side`; no sets."""
  rng = random.Random(seed)

  def draw(*pieces: str) -> str:
    return "".join(rng.choice(pieces) for _ in range(rng.choice((1, 2, 2, 3, 3, 5, 8))))

  def texts(*pieces: str) -> list[str]:
    return sorted({draw(*pieces) for _ in range(count)})

  spans = [[_span(rng), _span(rng)] for _ in range(count // 2)]
  spans += [[draw(*_SPAN_PIECES), _span(rng)] for _ in range(count // 2)]
  numbers = texts(*_NUMBER_PIECES, *_LEADS)
  return {
    "choice": texts(*_LETTERS, *_MARKS_BETWEEN, *_LEADS),
    "tempcompass": texts(*_CAPTION_PIECES),
    "intervals": spans,
    "numbers": [[text, rng.choice(("4", "10", "3.5", "0.7", "1000"))] for text in numbers],
  }


def _span(rng: random.Random) -> str:
  """Two times, or a box."""
  if rng.random() < 0.5:
    times = sorted(rng.randint(0, 20) / rng.choice((1, 2, 10)) for _ in range(2))
    return f"[{times[0]:g}, {times[1]:g}]"
  left, top = (rng.randint(0, 5) for _ in range(2))
  return f"[{left}, {top}, {left + rng.randint(0, 9)}, {top + rng.randint(0, 9)}]"
