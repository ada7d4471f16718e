"""The judge that asks a model: each question once, known ones never, and no guessed verdicts."""

import pytest

from tests.rewards import judge_server
from vr_jax.rewards import judge_cache, judge_text


class ScriptedModel:
  """Answers by what the observation says, and remembers what it was asked."""

  def __init__(self):
    self.asked = []

  def ask(self, questions):
    self.asked.append([question.text for question in questions])
    known = {"fine": True, "poor": False}
    words = [next((w for w in known if w in question.text), None) for question in questions]
    return [known.get(word) for word in words]

  def counts(self):
    return {"calls": float(len(self.asked))}

  def close(self):
    self.asked = None


@pytest.fixture
def path(tmp_path):
  return tmp_path / "verdicts.sqlite"


def make(path, model, *, identity=("openai", "one"), threshold=None):
  cache = judge_cache.VerdictCache(path)
  return judge_text.TextJudge(model, cache, identity=identity, threshold=threshold)


def cases(*observations, **changes):
  return [judge_server.case(observation, **changes) for observation in observations]


def test_verdicts_come_in_the_order_of_the_cases_and_duplicates_are_asked_once(path):
  judge = make(path, model := ScriptedModel())
  found = judge.verdicts(cases("poor", "fine", "odd", "poor", "odd", "fine"))
  assert found == [False, True, None, False, None, True]
  assert len(model.asked[0]) == 3
  assert judge.counts() == {"asked": 3, "cached": 0, "failed": 2, "calls": 1}


def test_what_is_known_is_not_asked_again_and_what_failed_is(path):
  make(path, ScriptedModel()).verdicts(cases("poor", "fine", "odd"))
  judge = make(path, model := ScriptedModel())
  assert judge.verdicts(cases("odd", "fine", "poor", "poor")) == [None, True, False, False]
  assert len(model.asked[0]) == 1
  assert judge.counts() == {"asked": 1, "cached": 3, "failed": 1, "calls": 1}


def test_counts_start_anew_each_time(path):
  judge = make(path, ScriptedModel())
  judge.verdicts(cases("fine"))
  judge.counts()
  assert judge.counts() == {"asked": 0, "cached": 0, "failed": 0, "calls": 1}


@pytest.mark.parametrize(
  "other", [{"identity": ("openai", "two")}, {"identity": ("local", "one")}, {"threshold": 0.6}]
)
def test_another_judge_does_not_take_over_verdicts(path, other):
  make(path, ScriptedModel()).verdicts(cases("fine"))
  make(path, model := ScriptedModel(), **other).verdicts(cases("fine"))
  assert len(model.asked[0]) == 1


def test_a_blinded_verdict_is_that_of_its_answer(path):
  make(path, ScriptedModel(), threshold=0.6).verdicts(cases("fine"))
  make(path, model := ScriptedModel(), threshold=0.6).verdicts(cases("fine", answer="A"))
  assert len(model.asked[0]) == 1


def test_no_cases_are_no_verdicts(path):
  assert make(path, ScriptedModel()).verdicts([]) == []


def test_closing_closes_the_model(path):
  judge = make(path, model := ScriptedModel())
  judge.close()
  assert model.asked is None
