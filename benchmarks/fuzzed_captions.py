"""Captions and replies about them for benchmarks/fuzz_inputs.py: they become questions, or none."""

import json
from pathlib import Path

from benchmarks import damage
from vr_jax import errors
from vr_jax.traces.construct import (
  captions,
  choice_requests,
  future_questions,
  quality,
  reviewers,
  state_requests,
  states,
)
from vr_jax.worlds import write

_TEXTS = (
  "The circle is red and at the top left. The star is small.",
  "The circle turns green. The star becomes large.",
  "The circle turns red. The star becomes small.",
  "The circle turns green. The star becomes large.",
)
_LINE = {
  "video_id": "one",
  "video_path": "a/b.mp4",
  "timestamp": ["00:00:00.000", "00:00:08.000"],
  "keyframe": [0, 2, 4, 6],
  "captions": [
    *({"idx": str(n), "content": text} for n, text in enumerate(_TEXTS)),
    {"idx": "-1", "content": "A circle and a star."},
  ],
  "zip_folder": "a.zip",
}
_STATES = {
  "states": [
    {"caption": n, "object": "circle", "attribute": "colour", "value": value}
    for n, value in enumerate(("red", "green", "red", "green"))
  ]
}
_RULES = future_questions.QuestionRules(
  style="general", per_video=0, most_options=4, least_options=2, seed=0
)
_QUALITY = quality.QualityRules(
  shown_seconds=0.0, masked_seconds=0.0, least_steps=1, most_steps=32, most_words=40
)
_WORDS = ('{"answer": "A"}', '{"answer": null}', '{"true": ["A"]}', "<think>", "</think>", "B", "{")


def caption_inputs(folder: Path) -> list[damage.FuzzedInput]:
  """Lines with key frames and with times of their own, and a model's replies."""
  own = json.loads(json.dumps(_LINE))
  for number, caption in enumerate(own["captions"][:-1]):
    caption |= {"start": 2 * number, "end": 2 * number + 2}
  del own["keyframe"]
  files = {"keyframes.jsonl": _LINE, "times.jsonl": own}
  found = [
    damage.FuzzedInput(
      name=name,
      whole=json.dumps(line).encode() + b"\n",
      damage=damage.damage_json_lines,
      read=lambda data, path=folder / name: _read_file(path, data),
    )
    for name, line in files.items()
  ]
  video = captions.parse_record(_LINE, "line 1", keyframe_fps=0.0, even=False)
  replies = {
    "states": (json.dumps(_STATES).encode(), damage.damage_json),
    "choice": (b'So: {"answer": "B"}', damage.damage_words(*_WORDS)),
  }
  return found + [
    damage.FuzzedInput(
      name=name,
      whole=whole,
      damage=kind,
      read=lambda data, name=name: _read_reply(video, name, data),
      may_refuse=False,
    )
    for name, (whole, kind) in replies.items()
  ]


def _read_file(path: Path, data: bytes) -> None:
  """Reads a file and makes questions of it; raises the error of its first bad line."""
  path.write_bytes(data)
  problems: list[errors.InputError] = []
  videos = captions.read(
    path, keyframe_fps=0.0, even=True, on_bad=lambda _, error: problems.append(error)
  )
  for video in videos:
    _make(video, states.read_by_rule(video), "simulator")
  if problems:
    raise problems[0]


def _read_reply(video: captions.CaptionedVideo, name: str, data: bytes) -> None:
  text = data.decode("utf-8", "replace")
  if name == "states":
    reply = state_requests.StateRequest(video=video).read(text)
    if reply is not None:
      _make(video, state_requests.told_states(reply, video)[0], "general")
    return
  (question, *_), _ = future_questions.make(video, states.read_by_rule(video), _RULES)
  for request in (*choice_requests.blind(question, 3), choice_requests.from_caption(question)):
    request.read(text)


def _make(video: captions.CaptionedVideo, told: tuple[states.ToldState, ...], style: str) -> None:
  """Makes, filters and reviews questions, and writes them as JSON."""
  rules = future_questions.QuestionRules(
    style=style, per_video=0, most_options=4, least_options=2, seed=0
  )
  questions, _ = future_questions.make(video, told, rules)
  good = [question for question in questions if not quality.find_fault(question, _QUALITY)[0]]
  reviewers.RuleReviewer().review(good)
  for question in good:
    json.dumps(write.to_json(question.example)).encode()
    choice_requests.from_trace(question, 2)[1].text.encode()
