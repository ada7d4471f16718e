"""Asking a model: a real server on this machine, as good and as bad as servers are."""

import dataclasses
import json
import os
import signal
import threading

import pytest

from tests.rewards import judge_server
from vr_jax import errors, model_endpoint
from vr_jax.eval.trace_judging import asking, grade, grade_cache, judge_models, rubric

GOOD = '{"consistency": 4, "stability": 5, "reason": "All is there."}'
Reply = judge_server.Reply


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  monkeypatch.setenv("A_KEY", judge_server.KEY)
  monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
  with judge_server.serve(lambda request: Reply(text=GOOD)) as served:
    yield served


@pytest.fixture
def cache(tmp_path):
  opened = grade_cache.GradeCache(tmp_path / "grades.sqlite")
  yield opened
  opened.close()


def source(server, *, max_tokens=0, **limits):
  limits = model_endpoint.Limits(**{"timeout": 5.0, "in_flight": 2, "retries": 1, **limits})
  return judge_models.endpoint(
    "m",
    base_url=server.url("openai"),
    key_variable="A_KEY",
    temperature=1.0,
    limits=limits,
    max_tokens=max_tokens,
  )


def prompts(count, run=0):
  questions = (
    rubric.TraceQuestion(system="Grade.", text=f"trace {number}.", places=rubric.ALONE)
    for number in range(count)
  )
  return [asking.GradingPrompt(question=question, run=run) for question in questions]


def ask(model, cache, wanted, attempts=3):
  return asking.ask(
    wanted, model.connect, cache, identity=model.identity, attempts=attempts, tick=lambda *_: None
  )


def asked(server):
  """Texts of all requests but those that check the connection."""
  return [text for text in server.texts() if text.startswith("trace")]


def test_grades_come_in_the_order_of_the_prompts_and_are_not_asked_for_again(server, cache):
  def answer(request):
    level = "1" if "trace 1." in request.text else "5"
    return Reply(text=f'{{"consistency": {level}, "stability": 2}}')

  server.answer = answer
  found = ask(source(server), cache, prompts(3))
  assert [each.grades and each.grades[0].consistency for each in found] == [5, 1, 5]
  assert server.requests[-1].fields["temperature"] == 1.0
  before = len(server.requests)
  assert ask(source(server), cache, prompts(3)) == found
  assert len(server.requests) == before  # not even the connection was checked
  assert ask(source(server), cache, prompts(3, run=1)) == found
  assert len(asked(server)) == 6


def test_equal_prompts_of_a_run_are_asked_once(server, cache):
  ask(source(server), cache, prompts(2) + prompts(2))
  assert sorted(asked(server)) == ["trace 0.", "trace 1."]


def test_a_reply_without_verdict_is_asked_for_again_up_to_the_limit_and_then_missing(server, cache):
  server.answer = lambda request: Reply(text=GOOD if "trace 0." in request.text else "Very good!")
  found = ask(source(server), cache, prompts(2))
  assert found[0].grades is not None and found[0].problem == ""
  assert found[1] == asking.Answer(grades=None, problem=asking.UNREADABLE)
  assert asked(server).count("trace 1.") == 3
  assert ask(source(server), cache, prompts(2)) == found
  assert len(asked(server)) == 4
  server.answer = lambda request: Reply(text=GOOD)
  assert ask(source(server), cache, prompts(2), attempts=4)[1].grades is not None
  assert len(asked(server)) == 5


def test_a_body_that_is_not_the_protocols_is_a_reply_without_verdict(server, cache):
  server.answer = lambda request: Reply(body="{}" if "trace" in request.text else None)
  assert ask(source(server), cache, prompts(1), attempts=2)[0].problem == asking.UNREADABLE
  assert len(asked(server)) == 2


def test_slow_and_failing_requests_are_retried_by_the_client(server, cache):
  kinds = [Reply(status=500), Reply(text=GOOD, delay=0.2), Reply(text=GOOD)]
  server.answer = lambda request: kinds[min(request.number - 1, 2)] if request.number else Reply()
  assert all(each.grades for each in ask(source(server), cache, prompts(3)))


def test_an_endpoint_that_goes_down_stops_the_judge_and_the_same_command_goes_on(server, cache):
  server.answer = lambda request: Reply(text=GOOD, status=200 if request.number < 3 else 503)
  with pytest.raises(
    errors.InputError, match=r"^--base_url=.*503.*the same command goes on; "
  ) as e:
    ask(source(server, in_flight=1), cache, prompts(5))
  assert f"2 of 5 verdicts are stored in {cache.path}" in str(e.value)
  answered = asked(server)[:2]
  server.answer = lambda request: Reply(text=GOOD)
  before = len(server.requests)
  assert all(each.grades for each in ask(source(server), cache, prompts(5)))
  again = [text for text in server.texts()[before:] if text.startswith("trace")]
  assert sorted([*answered, *again]) == [f"trace {number}." for number in range(5)]


def test_a_silent_endpoint_stops_the_judge(server, cache):
  server.answer = lambda request: Reply(text=GOOD, delay=1.0 if request.number else 0)
  with pytest.raises(errors.InputError, match=r"^--base_url=.*no answer.*0 of 1 verdicts"):
    ask(source(server, timeout=0.1, retries=0), cache, prompts(1))


def test_a_refused_prompt_is_missing_and_the_others_are_graded(server, cache):
  server.answer = lambda request: Reply(
    text=GOOD, status=400 if "trace 1." in request.text else 200
  )
  found = ask(source(server), cache, prompts(3))
  assert [each.problem for each in found] == ["", "refused (status 400)", ""]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_stops_at_once(server, cache, status):
  server.answer = lambda request: Reply(status=status if request.number else 200)
  with pytest.raises(errors.InputError, match=f"refuses.*status {status}") as refused:
    ask(source(server, in_flight=1), cache, prompts(9))
  assert len(asked(server)) == 1
  assert judge_server.KEY not in str(refused.value)


def test_the_budget_of_requests_stops_with_a_line_that_says_how_to_go_on(server, cache):
  says = r"^--max_requests=4: are spent; the same command goes on; 3 of 5 verdicts are stored"
  with pytest.raises(errors.InputError, match=says):
    ask(source(server, in_flight=1, budget=4), cache, prompts(5))  # one of them checks
  assert len(server.requests) == 4
  ask(source(server, budget=4), cache, prompts(5))
  assert sorted(asked(server)) == [f"trace {number}." for number in range(5)]


def with_usage(tokens):
  body = json.loads(judge_server.envelope("openai", GOOD))
  usage = {"prompt_tokens": tokens - 10, "completion_tokens": 10, "total_tokens": tokens}
  return json.dumps({**body, "usage": usage})


def test_the_budget_of_tokens_counts_prompts_and_replies(server, cache):
  server.answer = lambda request: Reply(body=with_usage(100))
  says = r"^--max_tokens=300: are spent \(300\); the same command goes on; 2 of 5 verdicts"
  with pytest.raises(errors.InputError, match=says):
    ask(source(server, in_flight=1, max_tokens=300), cache, prompts(5))
  assert all(each.grades for each in ask(source(server, max_tokens=500), cache, prompts(5)))
  assert sorted(asked(server)) == [f"trace {number}." for number in range(5)]


def test_a_budget_of_tokens_needs_an_endpoint_that_counts_them(server, cache):
  with pytest.raises(errors.InputError, match=r"^--max_tokens=9: .*limit --max_requests instead"):
    ask(source(server, max_tokens=9), cache, prompts(2))


def test_an_interrupted_judge_keeps_what_it_read_and_asks_only_the_rest(server, cache):
  held = threading.Event()

  def answer(request):
    if "trace 2." in request.text and not held.is_set():
      held.set()
      os.kill(os.getpid(), signal.SIGINT)
      return Reply(text=GOOD, delay=0.3)
    return Reply(text=GOOD)

  server.answer = answer
  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
  try:
    with pytest.raises(KeyboardInterrupt):
      ask(source(server, in_flight=1), cache, prompts(6))
  finally:
    signal.signal(signal.SIGINT, before)
  assert not [thread for thread in threading.enumerate() if thread.name == "judge"]
  first = asked(server)
  assert first == ["trace 0.", "trace 1.", "trace 2."]
  assert all(each.grades for each in ask(source(server), cache, prompts(6)))
  # The one that was not answered yet is asked again, the two that were are not.
  assert sorted(asked(server)[3:]) == [f"trace {number}." for number in range(2, 6)]


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("NO_SUCH_KEY", r"^--key_variable=NO_SUCH_KEY: "),
    ("sk-1!", r"^--key_variable: needs the name"),
  ],
)
def test_a_key_comes_from_the_environment_by_name(server, cache, name, says):
  model = judge_models.endpoint(
    "m",
    base_url=server.url("openai"),
    key_variable=name,
    temperature=0.0,
    limits=model_endpoint.Limits(),
    max_tokens=0,
  )
  with pytest.raises(errors.InputError, match=says) as refused:
    ask(model, cache, prompts(1))
  assert "sk-1" not in str(refused.value)


def test_other_models_temperatures_addresses_and_limits_have_grades_of_their_own(server):
  def identity(**changes):
    fields = {"base_url": "http://a/v1", "temperature": 1.0, **changes}
    limits = model_endpoint.Limits(max_tokens=fields.pop("reply_tokens", 512))
    name = fields.pop("model", "m")
    made = judge_models.endpoint(name, key_variable="K", limits=limits, max_tokens=0, **fields)
    return prompts(1)[0].key(made.identity)

  changes = ({}, {"model": "n"}, {"base_url": ""}, {"temperature": 0.5}, {"reply_tokens": 9})
  assert len({identity(**each) for each in changes}) == 5
  assert identity() == identity()


class Loaded:
  """A model in this process whose replies are these, in turn."""

  def __init__(self, *replies):
    self.replies, self.texts = list(replies), []

  def ask(self, questions):
    self.texts += [question.text for question in questions]
    return [question.read(self.replies.pop(0)) for question in questions]

  def is_too_long(self, question):
    return len(question.text) > 20

  def close(self):
    self.replies.clear()


def test_a_local_model_is_asked_once_and_its_grades_are_kept(cache):
  model = Loaded(GOOD, "no verdict")
  made = judge_models.ModelSource(connect=lambda: asking.LocalGrader(model), identity=("local",))
  found = ask(made, cache, prompts(2), attempts=1)
  assert [each.problem for each in found] == ["", asking.UNREADABLE]
  assert ask(made, cache, prompts(2), attempts=1) == found
  assert model.texts == ["trace 0.", "trace 1."]


def test_a_prompt_too_long_for_a_local_model_is_no_attempt_and_has_its_own_problem(cache):
  model, done = Loaded(GOOD), []
  made = judge_models.ModelSource(connect=lambda: asking.LocalGrader(model), identity=("local",))
  question = rubric.TraceQuestion(system="Grade.", text="trace " * 9, places=rubric.ALONE)
  long = asking.GradingPrompt(question=question, run=0)
  answers = asking.ask(
    [long, *prompts(1)],
    made.connect,
    cache,
    identity=made.identity,
    attempts=1,
    tick=lambda *counts: done.append(counts),
  )
  assert [each.problem for each in answers] == [asking.TOO_LONG, ""]
  assert done == [(0, 2), (2, 2)]
  assert model.texts == ["trace 0."]
  assert cache.get([long.key(made.identity)]) == {}


def test_the_cache_keeps_the_first_verdict_counts_attempts_and_names_a_damaged_entry(tmp_path):
  path, key = tmp_path / "grades.sqlite", b"k" * 32
  one, other = (grade.TraceGrade(consistency=c, stability=3) for c in (2, 4))
  opened = grade_cache.GradeCache(path)
  opened.add_attempt(key, None)
  assert opened.get([key]) == {key: grade_cache.CachedGrades(attempts=1, grades=None)}
  opened.add_attempt(key, (one,))
  opened.add_attempt(key, (other,))
  opened.close()
  again = grade_cache.GradeCache(path)
  assert again.get([key]) == {key: grade_cache.CachedGrades(attempts=3, grades=(one,))}
  with again._file.writing() as file:
    damaged = json.dumps([{**dataclasses.asdict(one), "stability": 9}])
    file.execute("UPDATE grades SET grades = ?", (damaged,))
  with pytest.raises(errors.InputError, match=r"grades\.sqlite: holds grades that are none"):
    again.get([key])
  again.close()


def test_another_judges_cache_is_refused(tmp_path):
  from vr_jax.rewards import judge_cache

  judge_cache.VerdictCache(tmp_path / "verdicts.sqlite").close()
  with pytest.raises(errors.InputError, match="not a cache of this version's grades of traces"):
    grade_cache.GradeCache(tmp_path / "verdicts.sqlite")
