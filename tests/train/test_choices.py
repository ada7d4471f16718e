"""Fields of the config with few values, or a range of them: every other value is refused before anything runs."""

import re

import pytest

from tests.train import nano
from vr_jax import errors
from vr_jax.train import choices

SECTIONS = {"evaluation": "eval"}  # where the config file names a section otherwise


def set_field(name, value):
  config = nano.recipe("tiny")
  section, field = name.split(".")
  with config.unlocked(), config.ignore_type():
    config[section][field] = value
  return config


@pytest.mark.parametrize("size", ["tiny", "3b", "7b", "72b"])
def test_every_size_is_within_its_own_choices(size):
  choices.check(nano.recipe(size))


@pytest.mark.parametrize("name", choices.CHOICES)
def test_a_value_that_is_no_choice_is_named_with_the_choices(name):
  known = ", ".join(filter(None, choices.CHOICES[name]))
  with pytest.raises(errors.InputError, match=f"--config.{name}=other: not one of {known}"):
    choices.check(set_field(name, "other"))


@pytest.mark.parametrize("name", choices.RANGES)
def test_a_value_out_of_its_range_is_named_with_the_range(name):
  interval = choices.RANGES[name]
  low, high = map(float, interval[1:-1].split(", "))
  outside = [low - 1, *([low] if interval[0] == "(" else []), high + 1, float("nan")]
  for value in outside if high < float("inf") else [v for v in outside if v != high + 1]:
    with pytest.raises(errors.InputError) as error:
      choices.check(set_field(name, value))
    assert str(error.value) == f"--config.{name}={value}: not in {interval}"


def test_every_field_whose_comment_lists_choices_has_them_checked():
  text = (nano.ROOT / nano.RECIPE).read_text()
  listed = re.findall(r'^  (\w+)\.(\w+) = (?:\(\s+)?"\w*"  # (.* \| .*)$', text, re.MULTILINE)
  names = {f"{SECTIONS.get(section, section)}.{field}" for section, field, _ in listed}
  assert names and not names - set(choices.CHOICES)
