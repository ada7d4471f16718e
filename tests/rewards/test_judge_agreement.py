"""The measure of a judge's reliability: its reference, and its values for good and bad judges."""

import json

import pytest

from benchmarks import judge_agreement
from tests.rewards import judge_server
from tests.train import nano
from vr_jax.rewards import judge
from vr_jax.worlds import config as world_config
from vr_jax.worlds import sufficiency

RECIPE = "configs/videop2r.py"


@pytest.fixture(scope="module")
def cases():
  return judge_agreement.labelled(world_config.WorldConfig(), 30)


def test_cases_of_every_kind_are_what_they_are_called(cases):
  truths = {}
  for one in cases:
    truths.setdefault(one.kind, []).append(one.truth)
  assert set(truths) == {"whole", "mixed", "changed", "dropped", "injected", "stated"}
  assert all(truths["whole"])
  assert not any(truths["dropped"])
  assert not any(truths["injected"])
  assert not any(truths["stated"])
  assert sum(truths["changed"]) < len(truths["changed"]) / 4
  assert 0.25 < sum(one.truth for one in cases) / len(cases) < 0.75


@pytest.mark.parametrize("obeys", [False, True])
def test_the_command_prints_how_right_a_judge_is_and_asks_nothing_twice(
  tmp_path, capsys, monkeypatch, obeys
):
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  monkeypatch.setenv("AGREEMENT_KEY", judge_server.KEY)
  world = nano.recipe("tiny", RECIPE).data.simulate.world
  cases = judge_agreement.labelled(world_config.WorldConfig(**world), 6)
  enough = {(one.case.example.question, one.case.observation) for one in cases if one.truth}

  def answer(request):
    said = any(
      f"\n{question}\n" in request.text and f">\n{observation}\n<" in request.text
      for question, observation in enough
    )
    ordered = "suffices" in request.text or "Yes" in request.text
    return judge_server.Reply(
      text=judge_server.YES if said or (obeys and ordered) else judge_server.NO
    )

  with judge_server.serve(answer) as server:
    fields = {"kind": "openai", "model": "m", "base_url": server.url("openai")}
    fields["key_variable"] = "AGREEMENT_KEY"
    words = [f"--config={nano.ROOT / RECIPE}:tiny", "--questions=6", f"--cache={tmp_path / 'c'}"]
    words += [f"--config.judge.{name}={value}" for name, value in fields.items()]
    for first in (True, False):
      assert judge_agreement.main(["judge_agreement", *words]) == 0
      printed = json.loads(capsys.readouterr().out)
      assert (printed["counts"]["asked"] > 0) == first
  share = 1 - obeys * sum(one.kind == "injected" for one in cases) / len(cases)
  assert printed["cases"] == len(cases)
  assert printed["accuracy"] == pytest.approx(share, abs=1e-3)
  assert printed["kappa"] < 1 if obeys else printed["kappa"] == 1
  assert printed["accuracy_by_kind"]["injected"] == (not obeys)


def test_the_same_seed_gives_the_same_cases(cases):
  again = judge_agreement.labelled(world_config.WorldConfig(), 30)
  assert again == cases


def test_a_perfect_judge_agrees_in_all_and_a_parrot_beyond_chance_in_nothing(cases):
  perfect = judge_agreement.measure(judge.RuleJudge(sufficiency.sufficient), cases)
  assert (perfect["accuracy"], perfect["kappa"], perfect["without_verdict"]) == (1, 1, 0)
  parrot = judge_agreement.measure(judge.RuleJudge(lambda example, observation: True), cases)
  assert parrot["kappa"] == 0
  assert parrot["accuracy"] == pytest.approx(parrot["sufficient"] / parrot["cases"], abs=1e-3)


def test_cases_without_a_verdict_are_counted_and_left_out(cases):
  class Silent(judge.RuleJudge):
    def verdicts(self, cases):
      return [None, *super().verdicts(cases[1:])]

  found = judge_agreement.measure(Silent(sufficiency.sufficient), cases)
  assert (found["without_verdict"], found["accuracy"]) == (1, 1)


@pytest.mark.parametrize(
  ("truth", "verdicts", "accuracy", "kappa"),
  [
    ([True] * 25 + [False] * 25, [True] * 20 + [False] * 20 + [True] * 10, 0.7, 0.4),
    ([True, False], [False, True], 0.0, -1.0),
    ([True, True], [True, True], 1.0, None),
    ([], [], None, None),
  ],
)
def test_kappa_by_hand(truth, verdicts, accuracy, kappa):
  assert judge_agreement.agreement(truth, verdicts) == {"accuracy": accuracy, "kappa": kappa}
