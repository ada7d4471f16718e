import collections
import json

import pytest

from tests.data import annotation_files
from tests.rewards import judge_server
from vr_jax import base_config, errors
from vr_jax.data import qvhighlights
from vr_jax.traces import rewrite_qvhighlights

GOOD = {
  "suitable": True,
  "question": "What does he drop?",
  "options": ["a cup", "a hat", "a key", "a coin"],
  "answer": "C",
}


server = judge_server.fixture("TEST_KEY", lambda request: judge_server.Reply(text=json.dumps(GOOD)))


@pytest.fixture
def released(tmp_path):
  """Five moments worth a question, and one of a video that is too short for one."""
  lines = [
    {
      "qid": number,
      "query": f"Moment {number}.",
      "vid": f"v{number}",
      "duration": 150 if number < 5 else 20,
      "relevant_windows": [[10, 20]],
    }
    for number in range(6)
  ]
  return annotation_files.write(tmp_path / "highlight.jsonl", *lines)


def section(server, kind="openai", **fields):
  config = base_config.base("any")
  base_config.judge(config)
  made = config.judge
  made.update(kind=kind, model="m", base_url=server.url(kind), key_variable="TEST_KEY", retries=0)
  made.update(fields)
  return made


def rewrite(released, tmp_path, judge):
  kept = qvhighlights.moments(released).kept
  return rewrite_qvhighlights.rewrite(kept, tmp_path / "rewrites.jsonl", judge)


def put(server):
  """The moments that were asked about, without the greeting."""
  return [request.text for request in server.requests if "Moment" in request.text]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_moments_become_questions_that_are_read_back(server, released, tmp_path, kind):
  counts = rewrite(released, tmp_path, section(server, kind))
  assert counts == {"rewritten": 5, "known": 0}
  assert sorted(put(server)) == [f'Sentence: "Moment {number}."' for number in range(5)]
  found = qvhighlights.read(released, tmp_path / "rewrites.jsonl")
  assert len(found.kept) == 5 and found.dropped == {"short": 1}
  assert found.kept[0]["options"][2] == "C. a key" and found.kept[0]["answer"] == "C"


def test_what_cannot_be_read_or_is_refused_is_left_out_and_counted_by_its_reason(
  server, released, tmp_path
):
  replies = {
    "0": judge_server.Reply(text=f"Here it is:\n```json\n{json.dumps(GOOD)}\n```"),
    "1": judge_server.Reply(text="I can't help with that."),
    "2": judge_server.Reply(text=json.dumps(GOOD | {"answer": "E"})),
    "3": judge_server.Reply(status=400, body="{}"),
    "4": judge_server.Reply(text='{"suitable": false}'),
  }
  server.answer = lambda request: replies.get(request.text[-3], judge_server.Reply())
  assert rewrite(released, tmp_path, section(server)) == {
    "known": 0,
    "rewritten": 1,
    "unsuitable": 1,
    "left out: no JSON object": 1,
    "left out: field 'answer': the letter of an option is needed": 1,
    "left out: no answer": 1,
  }
  found = qvhighlights.read(released, tmp_path / "rewrites.jsonl")
  assert [record["id"] for record in found.kept] == ["qvhighlights_0"]
  assert found.dropped == {"short": 1, "not rewritten": 3, "unsuitable": 1}


OTHER = json.dumps(GOOD | {"answer": "A"})


@pytest.mark.parametrize(
  ("reply", "problem"),
  [
    (f"<think>Perhaps {{a hat}} or {OTHER}?</think>\n{json.dumps(GOOD)}", ""),
    (f'say {{"suitable": false}}, no</think>{json.dumps(GOOD)}', ""),
    (f"For {{Moment 1}}:\n{json.dumps(GOOD)}\nI hope that {{it}} fits.", ""),
    (f'{{"note": 1}} {json.dumps(GOOD)}', ""),
    (f"{json.dumps(GOOD)} Again: {json.dumps(GOOD)}", ""),
    (f"{json.dumps(GOOD)} or {OTHER}", "several JSON objects"),
    (f'{json.dumps(GOOD)} {{"suitable": false}}', "several JSON objects"),
    (f"<think>It could be {json.dumps(GOOD)}", "no JSON object"),
    (f"<think>{json.dumps(GOOD)}</think>", "no JSON object"),
    ("{" * 20_000, "no JSON object"),
    ('{"a":' * 2_000, "no JSON object"),
    ("[1]", "no JSON object"),
    ('{"question": "What?"}', "field 'suitable': true or false is needed"),
  ],
)
def test_a_rewrite_is_the_one_object_behind_the_thoughts(released, reply, problem):
  question = rewrite_qvhighlights.RewriteQuestion(moment=qvhighlights.moments(released).kept[0])
  found = question.read(reply)
  assert (question.problem, found) == (problem, {"qid": "0", **GOOD} if not problem else None)


@pytest.mark.parametrize(
  ("options", "problem"),
  [
    (["a cup", "a hat", "a key"], "four are needed"),
    (["a cup", "a hat", "a key", "a coin", "a pen"], "four are needed"),
    (["a cup", "a key", "a key ", "a coin"], "texts that differ are needed"),
    (["A. a cup", "B. a hat", "C. a key", "D. a hat"], "texts that differ are needed"),
  ],
)
def test_a_question_without_four_options_that_differ_is_left_out(
  server, released, tmp_path, options, problem
):
  server.answer = lambda _: judge_server.Reply(text=json.dumps(GOOD | {"options": options}))
  counts = rewrite(released, tmp_path, section(server))
  assert counts == {"known": 0, f"left out: field 'options': {problem}": 5}


def test_the_same_command_goes_on_with_what_is_not_known_yet(server, released, tmp_path):
  judge = section(server, in_flight=1, budget=3)  # the greeting, and two moments
  first = rewrite(released, tmp_path, judge)
  assert first == {"known": 0, "rewritten": 2, "left out: no answer": 3}
  before = (tmp_path / "rewrites.jsonl").read_text()
  assert rewrite(released, tmp_path, section(server)) == {"known": 2, "rewritten": 3}
  assert (tmp_path / "rewrites.jsonl").read_text().startswith(before)
  assert set(collections.Counter(put(server)).values()) == {1}
  asked = len(server.requests)
  assert rewrite(released, tmp_path, section(server)) == {"known": 5}
  assert len(server.requests) == asked


def test_what_was_answered_before_an_endpoint_refuses_the_key_is_kept(server, released, tmp_path):
  def answer(request):
    refused = "Moment 4" in request.text
    return judge_server.Reply(text=json.dumps(GOOD), status=401 if refused else 200)

  server.answer = answer
  with pytest.raises(errors.InputError, match="refuses its key"):
    rewrite(released, tmp_path, section(server, in_flight=1))
  assert len((tmp_path / "rewrites.jsonl").read_text().splitlines()) == 4


def test_a_reply_that_is_unreadable_is_asked_for_again(server, released, tmp_path):
  seen = collections.Counter()

  def answer(request):
    seen[request.text] += 1
    return judge_server.Reply(text="{" if seen[request.text] == 1 else json.dumps(GOOD))

  server.answer = answer
  counts = rewrite(released, tmp_path, section(server, retries=1))
  assert counts["rewritten"] == 5 and set(seen[text] for text in put(server)) == {2}


def test_the_command_line_says_what_came_of_it(server, released, tmp_path, capsys):
  flags = {"model": "m", "base_url": server.url("openai"), "key_variable": "TEST_KEY"}
  words = [f"--config.judge.{name}={value}" for name, value in flags.items()]
  rewrite_qvhighlights.run([str(released), str(tmp_path / "rewrites.jsonl"), *words])
  assert capsys.readouterr().out == "rewrite_qvhighlights: 5 moments; 0 known, 5 rewritten\n"


@pytest.mark.parametrize(
  ("words", "says"),
  [
    ([], "needs MOMENTS.jsonl"),
    (["a", "b", "--config.judge.nothing=1"], "nothing"),
    (["{released}", "b"], r"config\.judge\.model: is empty"),
    (["{released}", "b", "--config.judge.kind=rule"], r"config\.judge\.kind=rule"),
    (["missing.jsonl", "b"], r"missing\.jsonl: cannot be read"),
  ],
)
def test_a_command_that_cannot_be_is_refused_in_one_line(released, words, says):
  with pytest.raises(errors.InputError, match=says) as raised:
    rewrite_qvhighlights.run([word.format(released=released) for word in words])
  assert "\n" not in str(raised.value)
