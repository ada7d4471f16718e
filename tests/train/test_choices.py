"""Fields of the config with few values, or a range of them: every other value is refused before anything runs."""

import functools
import re

import pytest

from tests.train import nano
from vr_jax import errors
from vr_jax.train import choices

RECIPES = sorted(str(path.relative_to(nano.ROOT)) for path in nano.ROOT.glob("configs/*.py"))
SECTIONS = {"evaluation": "eval"}  # where the config file names a section otherwise


def section_of(config, name):
  *sections, field = name.split(".")
  for section in sections:
    config = config.get(section, {})
  return config, field


def set_field(name, value):
  recipes = (nano.recipe("tiny", path) for path in RECIPES)
  config = next(recipe for recipe in recipes if name.split(".")[-1] in section_of(recipe, name)[0])
  section, field = section_of(config, name)
  with section.unlocked(), section.ignore_type():
    section[field] = value
  return config


@pytest.mark.parametrize("path", RECIPES)
@pytest.mark.parametrize("size", ["tiny", "3b", "7b", "72b"])
def test_every_size_is_within_its_own_choices(path, size):
  choices.check(nano.recipe(size, path))


@pytest.mark.parametrize(
  ("path", "field", "value"),
  [
    (nano.RECIPE, "sft.patience", 2),
    (nano.RECIPE, "rl.shuffled", 4),
    ("configs/videop2r.py", "judge.blinded", True),
    ("configs/moss_chatv.py", "rl.credit", "gae"),
    ("configs/moss_chatv.py", "rl.group", 1),
    ("configs/moss_chatv.py", "rl.dual_clip", 1.2),
    ("configs/moss_chatv.py", "rl.baseline", "leave_one_out"),
    ("configs/moss_chatv.py", "rl.overlong_buffer", 73),
    ("configs/moss_chatv.py", "rl.overlong_max_tokens", 8),
    ("configs/moss_chatv.py", "rl.overlong_max_tokens", 73),
    ("configs/video_mtr.py", "env.turns", 5),
    ("configs/video_mtr.py", "data.sampling", "uniform"),
    ("configs/video_mtr.py", "eval.blind", True),
    ("configs/video_mtr.py", "rl.resampling", 2),
    ("configs/video_mtr.py", "model.feature_cache_gib", 1.0),
    ("configs/video_mtr.py", "rl.credit", "segments"),
    ("configs/video_mtr.py", "rl.credit", "joint"),
    ("configs/video_mtr.py", "rl.credit", "outcome"),
    ("configs/video_mtr.py", "rl.baseline", "leave_one_out"),
    ("configs/video_mtr.py", "env.demonstrated", 0.0),
    ("configs/video_mtr.py", "turns.frame_buckets", (2,)),
    ("configs/video_mtr.py", "turns.time_buckets", (128,)),
    ("configs/video_mtr.py", "turns.time_buckets", ()),
    ("configs/video_mtr.py", "turns.shown_buckets", ()),
    ("configs/video_mtr.py", "env.exploration.stages", ((0.5,),)),
    ("configs/video_mtr.py", "env.exploration.stages", (0.1, 1.0)),
  ],
)
def test_a_field_that_does_not_go_with_the_others_is_named(path, field, value):
  config = nano.recipe("tiny", path)
  *sections, name = field.split(".")
  functools.reduce(getattr, sections, config)[name] = value
  named = {"env.turns": "env.window", "env.demonstrated": "sft.steps"}.get(field, field)
  with pytest.raises(errors.InputError, match=f"--config.{named}"):
    choices.check(config)


@pytest.mark.parametrize(
  ("named", "fields"),
  [
    ("dual_clip", {"dual_clip": 3.0, "objective": "cispo"}),
    ("dual_clip", {"dual_clip": 1.4, "clip_high": 0.4}),
    ("importance_sampling_level", {"importance_sampling_level": "sequence", "objective": "cispo"}),
    ("overlong_buffer", {"overlong_buffer": 9, "overlong_max_tokens": 8}),
  ],
)
def test_options_of_the_loss_that_do_not_go_together_are_refused(named, fields):
  config = nano.recipe("tiny", nano.RECIPE)
  config.rl.update(fields)
  with pytest.raises(errors.InputError, match=f"--config.rl.{named}"):
    choices.check(config)


@pytest.mark.parametrize(
  "fields",
  [
    {"dual_clip": 1.21, "importance_sampling_level": "sequence"},
    {"objective": "cispo", "clip_low": 1.0, "clip_high": 4.0},
    {"baseline": "leave_one_out", "normalise": False, "credit": "joint"},
    {"overlong_buffer": 72},
    {"overlong_buffer": 8, "overlong_max_tokens": 8},
  ],
)
def test_options_of_the_loss_that_go_together_are_taken(fields):
  config = nano.recipe("tiny", nano.RECIPE)
  config.rl.update(fields)
  choices.check(config)


@pytest.mark.parametrize(("credit", "steps"), [("gae", 50), ("episode", 0)])
def test_one_reply_a_prompt_is_enough_for_a_critic_or_where_there_is_no_rl(credit, steps):
  config = nano.recipe("tiny", "configs/video_mtr.py")
  config.rl.group, config.rl.credit, config.rl.steps = 1, credit, steps
  choices.check(config)


@pytest.mark.parametrize("path", RECIPES)
@pytest.mark.parametrize("size", ["tiny", "7b"])
def test_an_instruction_asks_for_every_tag_by_which_replies_are_read(path, size):
  whole = nano.recipe("7b", path).env.instruction
  for tag in ("<think>", "</think>", "<answer>", "</answer>"):
    config = nano.recipe(size, path)
    config.env.instruction = whole.replace(tag, "")
    with pytest.raises(errors.InputError, match=f"config.env.instruction: .* ask for {tag}, by"):
      choices.check(config)


@pytest.mark.parametrize("path", RECIPES)
def test_only_a_network_that_knows_no_words_is_told_nothing(path):
  config = nano.recipe("7b", path)
  config.env.instruction = ""
  with pytest.raises(errors.InputError, match=r"config\.env\.instruction"):
    choices.check(config)
  own = nano.recipe("tiny", path)
  own.env.instruction = ""
  choices.check(own)
  own.model.pretrained = "export"  # as it was written by this project
  choices.check(own)
  with pytest.raises(errors.InputError, match=r"config\.env\.instruction"):
    choices.check_template(own, told=True)


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
  paths = ("vr_jax/base_config.py", *RECIPES)
  text = "\n".join((nano.ROOT / path).read_text() for path in paths)
  listed = re.findall(r'^  (\w+)\.(\w+) = (?:\(\s+)?"\w*"  # (.* \| .*)$', text, re.MULTILINE)
  names = {
    f"{SECTIONS.get(section, section)}.{field}"
    for section, field, _ in listed
    if section != "section"
  }
  assert names and not names - set(choices.CHOICES)
