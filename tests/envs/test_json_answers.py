"""JSON answers as models write them, and what is none."""

import json
import time

import hypothesis
from hypothesis import strategies as st
import pytest

from vr_jax.envs import json_answers

OBJECT = '{"frame_idx": 7, "object description": "the red car"}'
BOX = '{"bbox_2d": [39, 289, 608, 773], "label": "car"}'


def key_frame(reply, frames=16):
  return json_answers.read_key_frame(reply, frames, longest=100)


def wrapped(answer):
  return f"<think>It is largest at [3].</think> <answer>{answer}</answer>"


@pytest.mark.parametrize(
  "reply",
  [
    wrapped(f"[{OBJECT}]"),
    wrapped(OBJECT),
    f"[{OBJECT}]",
    f"```json\n[{OBJECT}]\n```",
    wrapped(f"```\n{OBJECT}\n```"),
    wrapped(f"The key frame is {OBJECT}, since it is [sharp]."),
    wrapped("[{'frame_idx': 7, 'object description': 'the red car'}]"),
    wrapped('[{"frame_idx": "7", "object_description": "the red car",}]'),
    wrapped('{"frame_idx": 7.0, "Object Description": " the  red\\ncar "}'),
    "<think>Maybe {'frame_idx': 3, 'object description': 'x'}?</think>" + OBJECT,
    "It moves.</think>" + OBJECT,  # the chat template wrote the first tag
    f"<answer>{OBJECT.replace('7', '3')}</answer> No: <answer>{OBJECT}</answer>",
    f"<answer>[{OBJECT}]",  # out of tokens
  ],
)
def test_a_key_frame_is_read_from_what_models_write(reply):
  found = key_frame(reply)
  assert (found.index, found.description, found.problem) == (7, "the red car", "")


def test_apostrophes_and_escapes_are_part_of_a_description():
  for text, expected in (
    ("{'frame_idx': 1, 'object description': 'the dog's tail, left'}", "the dog's tail, left"),
    ('{"frame_idx": 1, "object description": "a \\"red\\" caf\\u00e9"}', 'a "red" café'),
  ):
    assert key_frame(text).description == expected


@pytest.mark.parametrize(
  ("answer", "problem"),
  [
    ("", "json"),
    ("7", "json"),
    ("[]", "json"),
    ("{}", "json"),
    (f"[{OBJECT}, {OBJECT}]", "json"),  # several objects
    ('{"object description": "x"}', "json"),
    ('{"frame_idx": 7, "object description"', "json"),
    (OBJECT.replace("7", "16"), "range"),
    (OBJECT.replace("7", "-1"), "range"),
    (OBJECT.replace("7", "99999999999999999"), "range"),
    (OBJECT.replace("7", "7.5"), "frame"),
    (OBJECT.replace("7", '"seven"'), "frame"),
    (OBJECT.replace("7", "true"), "frame"),
    (OBJECT.replace("7", "null"), "frame"),
    (OBJECT.replace("7", "[7, 8]"), "frame"),
    (OBJECT.replace("7", "1e999"), "frame"),
    (OBJECT.replace("7", "NaN"), "frame"),
    (OBJECT.replace("7", "-Infinity"), "frame"),
    (OBJECT.replace("7", "-seven"), "json"),
    (OBJECT.replace("the red car", ""), "description"),
    (OBJECT.replace("the red car", "é" * 51), "description"),  # 102 bytes
    ('{"frame_idx": 7}', "description"),
    ('{"frame_idx": 7, "object description": 7}', "description"),
    ("[" * 5000, "json"),
    ('{"a":' * 3000 + "1" + "}" * 3000, "json"),
  ],
)
def test_everything_else_has_a_named_problem(answer, problem):
  found = key_frame(wrapped(answer))
  assert found.problem == problem
  if problem != "range":
    assert (found.index, found.description) == (-1, "")


def test_thoughts_without_an_end_hold_no_answer():
  assert key_frame(f"<think>{OBJECT}").problem == "json"


def test_the_range_is_that_of_the_frames_shown():
  assert key_frame(OBJECT, frames=8).problem == ""
  assert key_frame(OBJECT, frames=7).problem == "range"


@pytest.mark.parametrize(
  "reply",
  [
    wrapped(f"[{BOX}]"),
    wrapped(BOX),
    wrapped("```json\n[{'bbox_2d': [39, 289, 608, 773], 'label': 'car'}]\n```"),
    wrapped('{"bbox": [39.0, "289", 608, 773]}'),
    wrapped('{"bbox_2d": [[39, 289, 608, 773]]}'),
    wrapped("[39, 289, 608, 773]"),
    wrapped("39, 289, 608, 773"),
    wrapped("(39, 289, 608, 773)"),
    "The car is at [39, 289, 608, 773].",
    wrapped(f"In [2, 3] and [1, 2, 3, 'x'] no. {BOX} [1]"),
  ],
)
def test_a_box_is_read_from_what_models_write(reply):
  found = json_answers.read_box(reply)
  assert (found.corners, found.problem) == ((39, 289, 608, 773), "")


@pytest.mark.parametrize(
  ("answer", "problem"),
  [
    ("", "json"),
    (f"[{BOX}, {BOX}]", "json"),
    ("[39, 289, 608]", "json"),
    ('{"label": "car"}', "json"),
    ('{"bbox_2d": [39, 289, 608]}', "box"),
    ('{"bbox_2d": "everywhere"}', "box"),
    ('{"bbox_2d": [39, 289, 608, null]}', "box"),
    ('{"bbox_2d": [-39, 289, 608, 773]}', "box"),
    ('{"bbox_2d": [608, 289, 39, 773]}', "box"),
    ('{"bbox_2d": [39, 773, 608, 289]}', "box"),
    ('{"bbox_2d": [39, 289, 39, 773]}', "box"),
    ('{"bbox_2d": [39, 289, 1e999, 773]}', "box"),
    ('{"bbox_2d": [39, NaN, 608, 773]}', "box"),
    ('{"bbox_2d": [39, 289, Infinity, 773]}', "box"),
    ('{"bbox_2d": [-inf, 289, 608, 773]}', "box"),
    ("[39, NaN, 608, 773]", "json"),  # four numbers alone are a box; these are not
  ],
)
def test_what_is_no_box_has_a_named_problem(answer, problem):
  found = json_answers.read_box(wrapped(answer))
  assert found.problem == problem
  assert found.corners == (0, 0, 0, 0)


@hypothesis.given(st.one_of(st.text(), st.text("[]{}'\",:0123 \\<>answerthink/")))
def test_any_text_gives_a_key_frame_or_a_problem(reply):
  found, box = key_frame(reply), json_answers.read_box(reply)
  assert found.problem or (0 <= found.index < 16 and found.description)
  left, top, right, bottom = box.corners
  assert box.problem or (0 <= left < right and 0 <= top < bottom)


@hypothesis.given(
  index=st.integers(0, 15),
  description=st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=20),
  plain=st.booleans(),
)
def test_what_json_writes_is_read(index, description, plain):
  text = json.dumps([{"frame_idx": index, "object description": description}], ensure_ascii=plain)
  found = key_frame(wrapped(text.replace("</", "<\\/")))
  assert found.index == index
  assert found.problem == ""


def test_long_replies_are_read_in_time():
  begun = time.process_time()
  for text in ("[" * 20_000, '["a' * 5_000, "'" * 20_000, "[1," * 5_000, " " * 20_000 + "]"):
    key_frame(text)
    json_answers.read_box(text)
  assert time.process_time() - begun < 5
