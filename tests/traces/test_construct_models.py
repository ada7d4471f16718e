"""Captions that a model reads, and questions that it judges, over a local endpoint."""

import collections
import dataclasses
import json
import re

import pytest

from tests.rewards import judge_server
from tests.traces import construct_runs as runs
from vr_jax import errors
from vr_jax.traces.construct import asker, choice_requests, future_questions, stage, state_requests

server = judge_server.fixture("TEST_KEY")


def config(server, captions, **fields):
  return runs.config(
    captions=str(captions),
    reader="openai",
    model="m",
    base_url=server.url("openai"),
    key_variable="TEST_KEY",
    **{"retries": 1} | fields,
  )


def states(number):
  return [
    {"caption": s.caption, "object": s.object, "attribute": s.attribute, "value": s.value}
    for s in runs.MAN
  ] + [{"caption": 0, "object": "man", "attribute": "posture", "value": "flying"}][: number % 2]


def kind(request):
  """What a request asks for."""
  if "test" in request.system:
    return "greeting"
  if "states of objects" in request.system:
    return "states"
  if "can't see" in request.system:
    return "blind"
  return "trace" if "Notes" in request.text else "caption"


def letter_of(request, value):
  return letter_in(request.text, value)


def letter_in(text, value):
  match = re.search(rf'^([A-Z]): "{value}"$', text, re.MULTILINE)
  assert match
  return match[1]


def good(request):
  """Reads the captions, is wrong blindly, follows the notes, and finds one option true."""
  wanted = kind(request)
  if wanted == "greeting":
    return judge_server.Reply(text="Yes")
  if wanted == "states":
    number = int(request.text.partition("Man ")[2].partition(" ")[0])
    return judge_server.Reply(text=f"Here:\n```json\n{json.dumps({'states': states(number)})}\n```")
  if wanted == "blind":
    return judge_server.Reply(text=json.dumps({"answer": letter_of(request, "sitting")}))
  right = letter_of(request, "lies down")
  if wanted == "trace":
    return judge_server.Reply(text=f'<think>So {{x}}</think>{{"answer": "{right}"}}')
  return judge_server.Reply(text=json.dumps({"true": [right]}))


@pytest.fixture
def captions(tmp_path):
  return runs.write(tmp_path / "captions.jsonl", *map(runs.man, range(3)))


def made(output):
  return runs.lines(output / "annotations.jsonl") + [
    row["record"] for row in runs.lines(output / "rejected.jsonl")
  ]


def reasons(output):
  return collections.Counter(row["reason"] for row in runs.lines(output / "rejected.jsonl"))


def write(made, tmp_path):
  stage.write(made, tmp_path / "run")
  return tmp_path / "run" / "construct"


def test_a_model_reads_captions_and_what_it_invents_is_dropped(server, captions, tmp_path):
  server.answer = good
  output = write(config(server, captions), tmp_path)
  summary = json.loads((output / "summary.json").read_text())
  assert (summary["states"], summary["dropped_states"], summary["questions"]) == (18, 1, 3)
  assert len(runs.lines(output / "annotations.jsonl")) + reasons(output)["duplicate"] == 3
  record = runs.lines(output / "annotations.jsonl")[0]
  assert record["shown"] == [0, 4] and record["masked"] == [4, 6]
  asked = collections.Counter(map(kind, server.requests))
  assert asked == {"greeting": 1, "states": 3, "blind": 12, "trace": 12, "caption": 3}


def test_no_request_about_question_or_trace_holds_the_masked_caption(server, captions, tmp_path):
  server.answer = good
  write(config(server, captions), tmp_path)
  for request in server.requests:
    if kind(request) in ("blind", "trace"):
      assert "Then he lies down" not in request.text
      assert "on the floor" not in request.text


@pytest.mark.parametrize(
  ("what", "reply", "reason"),
  [
    ("blind", lambda right: {"answer": right}, "answerable blind"),
    ("trace", lambda right: {"answer": None}, "not answerable from the trace"),
    ("caption", lambda right: {"true": ["A", "B", "C"]}, "other option true"),
    ("caption", lambda right: {"true": []}, "other option true"),
  ],
)
def test_what_the_model_finds_wrong_is_the_reason(server, captions, tmp_path, what, reply, reason):
  def answer(request):
    if kind(request) == what and "pot" not in request.text:
      return judge_server.Reply(text=json.dumps(reply(letter_of(request, "lies down"))))
    return good(request)

  server.answer = answer
  with pytest.raises(errors.InputError, match="no question is left of 3"):
    write(config(server, captions), tmp_path)
  output = tmp_path / "run" / "construct"
  assert reasons(output) == {reason: 3}


def test_a_model_that_prefers_a_letter_is_not_right_blind(server, captions, tmp_path):
  server.answer = lambda request: (
    judge_server.Reply(text='{"answer": "B"}') if kind(request) == "blind" else good(request)
  )
  assert "answerable blind" not in reasons(write(config(server, captions), tmp_path))


def test_a_killed_run_goes_on_and_nothing_is_asked_twice(server, captions, tmp_path):
  def answer(request):
    if kind(request) == "trace" and len(server.requests) > 20:
      return judge_server.Reply(status=401, body="{}")
    return good(request)

  server.answer = answer
  how = {"batch_size": 2, "in_flight": 1}
  with pytest.raises(errors.InputError, match="refuses its key"):
    write(config(server, captions, **how), tmp_path)
  served = [r.text for r in server.requests if kind(r) != "greeting"]
  refused = served.pop()
  server.requests.clear()
  server.answer = good
  output = write(config(server, captions, **how), tmp_path)
  later = [r.text for r in server.requests if kind(r) != "greeting"]
  whole = collections.Counter(served + later)
  assert set(whole.values()) == {1} and refused in later and served and later
  before = (output / "annotations.jsonl").read_text()
  server.requests.clear()
  write(config(server, captions, **how), tmp_path)
  assert not server.requests and (output / "annotations.jsonl").read_text() == before


def test_replies_that_an_interruption_cut_off_are_ignored(server, captions, tmp_path):
  server.answer = good
  output = write(config(server, captions), tmp_path)
  (file,) = (output / "replies").iterdir()
  file.write_text(file.read_text()[:-9])
  for name in ("summary.json", "chunks/000000.jsonl"):
    (output / name).unlink()
  server.requests.clear()
  write(config(server, captions), tmp_path)
  assert [kind(request) for request in server.requests] == ["greeting", "caption"]


BROKEN = {
  "no JSON": (judge_server.Reply(text="I'd rather not."), "no JSON object with 'states'"),
  "two": (judge_server.Reply(text='{"states": []} {"states": [1]}'), "several JSON objects"),
  "others": (judge_server.Reply(text='{"states": [{"caption": 9}]}'), "no state with caption"),
  "refused": (judge_server.Reply(status=400, body="{}"), "no answer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_reply_that_is_no_use_stops_in_one_line_or_is_a_counted_skip(
  server, captions, tmp_path, name
):
  reply, problem = BROKEN[name]
  server.answer = lambda request: (
    reply if kind(request) == "states" and "Man 1" in request.text else good(request)
  )
  with pytest.raises(errors.InputError) as error:
    write(config(server, captions), tmp_path)
  assert "captions.jsonl:2: no states from the model" in str(error.value)
  assert problem in str(error.value) and "on_bad=skip" in str(error.value)
  output = write(config(server, captions, on_bad="skip"), tmp_path)
  (bad,) = runs.lines(output / "bad_records.jsonl")
  assert bad["where"].endswith("captions.jsonl:2") and problem in bad["problem"]
  assert json.loads((output / "summary.json").read_text())["questions"] == 2


def test_a_verdict_that_can_not_be_read_stops_or_is_a_reason(server, captions, tmp_path):
  server.answer = lambda request: (
    judge_server.Reply(text="Well, who knows?")
    if kind(request) == "caption" and len(server.requests) % 5
    else good(request)
  )
  with pytest.raises(errors.InputError, match=r"replies (are unreadable|could be read)"):
    write(config(server, captions, retries=0), tmp_path)
  server.answer = lambda request: (
    judge_server.Reply(text="Well?") if kind(request) == "caption" else good(request)
  )
  with pytest.raises(errors.InputError, match="no question is left"):
    write(config(server, captions, retries=0, on_bad="skip", seed=1), tmp_path / "other")
  assert reasons(tmp_path / "other" / "run" / "construct") == {"no verdict": 3}


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_an_endpoint_that_fails_or_is_too_slow_stops_the_run_in_one_line(
  server, captions, tmp_path, on_bad
):
  server.answer = lambda request: (
    judge_server.Reply(delay=0.6) if kind(request) == "states" else good(request)
  )
  with pytest.raises(errors.InputError, match="3 of 3 questions have no answer") as error:
    write(config(server, captions, timeout=0.2, on_bad=on_bad), tmp_path)
  assert "\n" not in str(error.value)


def test_a_single_lost_connection_stops_even_where_bad_replies_are_skipped(
  server, captions, tmp_path
):
  server.answer = lambda request: (
    judge_server.Reply(status=500, body="{}")
    if kind(request) == "states" and "Man 1" in request.text
    else good(request)
  )
  with pytest.raises(errors.InputError, match="1 of 3 questions have no answer"):
    write(config(server, captions, retries=0, on_bad="skip"), tmp_path)
  server.answer = good
  output = write(config(server, captions, retries=0, on_bad="skip"), tmp_path)
  assert json.loads((output / "summary.json").read_text())["questions"] == 3


def test_a_spent_budget_stops_and_the_same_command_goes_on(server, captions, tmp_path):
  server.answer = good
  with pytest.raises(errors.InputError, match=r"budget: is spent, .* the same command goes on"):
    write(config(server, captions, budget=3, in_flight=1), tmp_path)
  assert write(config(server, captions), tmp_path)


QUESTION = next(iter(future_questions.make(runs.parsed(runs.man()), runs.MAN, runs.RULES)[0]))


@pytest.mark.parametrize(
  ("reply", "chosen"),
  [
    ('{"answer": "A"}', [0]),
    ('Sure: {"answer": "(B)."}', [1]),
    ("C", [2]),
    ('{"answer": null}', None),
    ('{"answer": []}', None),
    ('{"answer": "D"}', None),
    ('{"answer": {"x": 1}}', None),
    ('{"answer": "A"} or {"answer": "B"}', None),
    ("<think>A</think>", None),
    ("", None),
    ("{" * 5000, None),
  ],
)
def test_choices_are_read_with_text_around_them(reply, chosen):
  request = choice_requests.blind(QUESTION, 1)[0]
  expected = None if chosen is None else [QUESTION.values[place] for place in chosen]
  assert request.read(reply) == expected


def test_only_a_blind_guess_has_to_choose():
  from_trace = choice_requests.from_trace(QUESTION, 1)[0]
  assert from_trace.read('{"answer": null}') == [] and '{"answer": null}' in from_trace.system
  blind = choice_requests.blind(QUESTION, 1)[0]
  assert "null" not in blind.system and '{"answer": "B"}' in blind.system


def test_no_guess_is_asked_for_twice():
  two = dataclasses.replace(QUESTION, values=QUESTION.values[:2])
  for question, orders in ((two, 2), (QUESTION, 6)):
    for ask in (choice_requests.blind, choice_requests.from_trace):
      asked = ask(question, 26)
      assert len(asked) == len({request.text for request in asked}) == orders


@pytest.mark.parametrize("knows", [True, False])
def test_two_options_need_as_large_a_fraction_of_right_guesses(server, tmp_path, knows):
  """A model that prefers a letter is right in one of two orders."""
  captions = runs.write(tmp_path / "c.jsonl", runs.man())

  def answer(request):
    if kind(request) != "blind":
      return good(request)
    letter = letter_of(request, "lies down") if knows else "B"
    return judge_server.Reply(text=json.dumps({"answer": letter}))

  server.answer = answer
  if knows:
    with pytest.raises(errors.InputError, match="no question is left"):
      write(config(server, captions, options=2), tmp_path)
  else:
    write(config(server, captions, options=2), tmp_path)
  rows = runs.lines(tmp_path / "run" / "construct" / "rejected.jsonl")
  assert [row["detail"] for row in rows] == ["2 of 2 blind guesses are right"] * knows


def test_replies_of_other_weights_in_the_same_directory_are_not_used(tmp_path):
  section = runs.config(captions="c.jsonl", reader="local", model=str(tmp_path)).construct
  (tmp_path / "model.safetensors").write_bytes(b"one")
  one = asker.identity_of(section)
  assert asker.identity_of(section) == one
  (tmp_path / "model.safetensors").write_bytes(b"other")
  assert asker.identity_of(section) != one


def test_each_guess_sees_the_options_in_another_order():
  texts = {request.text for request in choice_requests.blind(QUESTION, 3)}
  assert len(texts) == 3
  places = {letter_in(text, "lies down") for text in texts}
  assert places == {"A", "B", "C"}


def test_a_state_is_kept_only_if_its_caption_has_its_words():
  video = runs.parsed(runs.man())
  found = [
    ["Man", "posture", "lies down", 1],
    ["Man", "posture", "is sitting", 1],
    ["Man", "place", "on the kitchen floor", 1],
    ["Man", "place", "on the floor", 1],
    ["Man", "posture", "lying down", 3],
  ]
  kept, dropped = state_requests.told_states(found, video)
  assert [(state.value, state.caption) for state in kept] == [
    ("is sitting", 1),
    ("on the floor", 1),
    ("lying down", 3),
  ]
  assert dropped == 2


def test_no_name_of_an_object_or_attribute_has_words_of_the_masked_caption_alone():
  video = runs.parsed(runs.man())
  found = [
    ["the man who lies", "posture", "sitting", 1],
    ["the man", "lying posture", "sitting", 1],
    ["the sleeper", "posture", "sitting", 1],
    ["the man", "kitchen posture", "sitting", 1],
    ["the man", "posture", "sitting", 1],
  ]
  kept, dropped = state_requests.told_states(found, video)
  assert [state.attribute for state in kept] == ["kitchen posture", "posture"] and dropped == 3
