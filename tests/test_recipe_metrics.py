"""The comparison of two records of what recipes log."""

import copy

import pytest

from tests.golden import recipe_metrics

RUN = {
  "steps": [{"stage": "rl", "step": 1, "values": {"loss": 0.5, "kl": None}}],
  "evaluations": {"after_rl": {"accuracy": 0.25}},
}


def test_equal_records_agree_and_new_values_do_no_harm(capsys):
  after = copy.deepcopy(RUN)
  after["steps"][0]["values"]["entropy"] = 1.0
  assert recipe_metrics.compare({"run": RUN}, {"run": after}, 0.0)
  assert "new: entropy" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("loss", "agrees"), [(0.5 + 1e-7, True), (0.5 + 1e-5, False), (None, False)]
)
def test_a_difference_is_relative_and_held_to_the_tolerance(loss, agrees):
  after = copy.deepcopy(RUN)
  after["steps"][0]["values"]["loss"] = loss
  assert recipe_metrics.compare({"run": RUN}, {"run": after}, 1e-6) is agrees


def test_what_is_gone_is_a_difference():
  after = copy.deepcopy(RUN)
  del after["evaluations"]["after_rl"]["accuracy"]
  assert not recipe_metrics.compare({"run": RUN}, {"run": after}, 1.0)
  assert not recipe_metrics.compare({"run": RUN}, {}, 1.0)


def test_the_runs_name_recipes_and_fields_that_exist():
  from vr_jax import recipe_config

  for recipe, overrides in recipe_metrics.RUNS.values():
    config = recipe_config.load(f"{recipe}:tiny")
    for flag in (*recipe_metrics.COMMON, *overrides):
      *sections, field = flag.removeprefix("--config.").partition("=")[0].split(".")
      section = config
      for name in sections:
        section = section[name]
      assert field in section, flag
