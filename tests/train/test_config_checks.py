"""A config value that is no choice, or out of bounds, is refused before anything runs."""

import functools

import pytest

from tests.train import nano
from vr_jax import base_config, config_fields, errors, optional_sections, schema
from vr_jax.envs import registry
from vr_jax.train import config_checks

RECIPES = sorted(str(path.relative_to(nano.ROOT)) for path in nano.ROOT.glob("configs/*.py"))


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
@pytest.mark.parametrize("size", ["tiny", *base_config.RELEASES])
def test_every_size_is_within_its_own_choices(path, size):
  config_checks.check(nano.recipe(size, path))


@pytest.mark.parametrize(
  ("path", "field", "value"),
  [
    (nano.RECIPE, "sft.patience", 2),
    (nano.RECIPE, "data.max_side", 55),
    (nano.RECIPE, "rl.num_shuffled_generations", 4),
    ("configs/videop2r.py", "judge.blinded", True),
    ("configs/moss_chatv.py", "rl.advantage_estimator", "gae"),
    ("configs/moss_chatv.py", "rl.num_generations", 1),
    ("configs/moss_chatv.py", "rl.top_k", 1),
    ("configs/moss_chatv.py", "rl.top_k", -1),
    ("configs/moss_chatv.py", "rl.min_p", 1.0),
    ("configs/moss_chatv.py", "rl.dual_clip", 1.2),
    ("configs/moss_chatv.py", "rl.baseline", "leave_one_out"),
    ("configs/moss_chatv.py", "rl.overlong_buffer", 73),
    ("configs/moss_chatv.py", "rl.overlong_max_tokens", 8),
    ("configs/moss_chatv.py", "rl.overlong_max_tokens", 73),
    ("configs/video_mtr.py", "env.turns", 6),
    ("configs/video_mtr.py", "data.sampling", "uniform"),
    ("configs/video_mtr.py", "eval.blind", True),
    ("configs/video_mtr.py", "rl.dynamic_sampling_max_batches", 2),
    ("configs/video_mtr.py", "model.feature_cache_gib", 1.0),
    ("configs/video_mtr.py", "rl.advantage_estimator", "segments"),
    ("configs/video_mtr.py", "rl.advantage_estimator", "joint"),
    ("configs/video_mtr.py", "rl.advantage_estimator", "outcome"),
    ("configs/video_mtr.py", "rl.baseline", "leave_one_out"),
    ("configs/video_mtr.py", "env.sft_retrieval_fraction", 0.0),
    ("configs/video_mtr.py", "turns.frame_buckets", (2,)),
    ("configs/video_mtr.py", "turns.episode_buckets", (128,)),
    ("configs/video_mtr.py", "turns.episode_buckets", ()),
    ("configs/video_mtr.py", "turns.observation_buckets", ()),
    ("configs/video_mtr.py", "rl.advantage_noise", 0.02),
    ("configs/video_mtr.py", "env.exploration.stages", ((0.5,),)),
    ("configs/video_mtr.py", "env.exploration.stages", (0.1, 1.0)),
  ],
)
def test_a_field_that_does_not_go_with_the_others_is_named(path, field, value):
  config = nano.recipe("tiny", path)
  *sections, name = field.split(".")
  functools.reduce(getattr, sections, config)[name] = value
  named = {"env.turns": "turns.frame_buckets", "env.sft_retrieval_fraction": "sft.steps"}.get(
    field, field
  )
  with pytest.raises(errors.InputError, match=f"--config.{named}"):
    config_checks.check(config)


@pytest.mark.parametrize(
  ("named", "fields"),
  [
    ("dual_clip", {"dual_clip": 3.0, "objective": "cispo"}),
    ("dual_clip", {"dual_clip": 1.4, "clip_epsilon_high": 0.4}),
    ("importance_sampling_level", {"importance_sampling_level": "sequence", "objective": "cispo"}),
    ("overlong_buffer", {"overlong_buffer": 9, "overlong_max_tokens": 8}),
    ("sampler_log_probs", {"sampler_log_probs": "kept", "mismatch_warning": 0.0}),  # of all tokens
    ("sampler_log_probs", {"sampler_log_probs": "kept", "top_p": 0.9}),  # each step would warn
    ("repetition_window", {"repetition_window": 73}),
    ("repetition_window", {"repetition_window": 8, "repetition_count": 9}),
    ("repetition_window", {"repetition_window": 8, "overlong_buffer": 8}),  # no reply gets long
  ],
)
def test_options_that_do_not_go_together_are_refused(named, fields):
  config = nano.recipe("tiny", nano.RECIPE)
  config.rl.update(fields)
  with pytest.raises(errors.InputError, match=f"--config.rl.{named}"):
    config_checks.check(config)


@pytest.mark.parametrize(
  "fields",
  [
    {"dual_clip": 1.21, "importance_sampling_level": "sequence"},
    {"objective": "cispo", "clip_epsilon_low": 1.0, "clip_epsilon_high": 4.0},
    {"baseline": "leave_one_out", "normalize_by_std": False, "advantage_estimator": "joint"},
    {"overlong_buffer": 72},
    {"overlong_buffer": 8, "overlong_max_tokens": 8},
    {"sampler_log_probs": "kept", "mismatch_warning": 0.0, "top_k": 20},
    {"repetition_window": 72, "repetition_count": 72},
    {"decode_layout": "tensor", "decode_slots": 4},
    {"decode_layout": "tensor", "sampler_weights": "int8"},
    {"decode_slots": 4, "sampler_weights": "int8", "num_iterations": 2},
  ],
)
def test_options_that_go_together_are_taken(fields):
  config = nano.recipe("tiny", nano.RECIPE)
  config.rl.update(fields)
  config_checks.check(config)


def test_log_probs_of_kept_tokens_do_not_go_with_a_penalty_that_compares_them():
  config = nano.recipe("tiny", "configs/video_mtr.py")
  config.rl.update({"sampler_log_probs": "kept", "mismatch_warning": 0.0, "top_p": 0.9})
  if not config.critic.kl_weight:
    config_checks.check(config)
    config.critic.kl_weight = 0.1
  with pytest.raises(errors.InputError, match=r"critic\.kl_weight"):
    config_checks.check(config)


def test_int8_weights_do_not_go_with_a_penalty_that_compares_the_sampler_s_log_probs():
  config = nano.recipe("tiny", "configs/video_mtr.py")
  config.rl.sampler_weights = "int8"
  config_checks.check(config)
  config.critic.kl_weight = 0.1
  with pytest.raises(errors.InputError, match=r"rl\.sampler_weights=int8: critic\.kl_weight"):
    config_checks.check(config)


def test_shuffled_replies_are_refused_for_a_network_whose_features_have_no_order():
  config = nano.recipe("tiny", "configs/videop2r.py")
  config.rl.num_shuffled_generations = 2
  config_checks.check(config)
  config.model.architecture = nano.recipe("tiny_phi2").model.architecture
  with pytest.raises(errors.InputError, match="num_shuffled_generations=2: the queries of Tiny"):
    config_checks.check(config)


def test_frames_that_fit_one_frame_of_the_tower_need_one_bucket():
  config = nano.recipe("tiny_phi2")
  for frames in (2, 8, 64):
    config.data.frames = frames
    config_checks.check(config)


@pytest.mark.parametrize(("estimator", "steps"), [("gae", 50), ("episode", 0)])
def test_one_reply_a_prompt_is_enough_for_a_critic_or_where_there_is_no_rl(estimator, steps):
  config = nano.recipe("tiny", "configs/video_mtr.py")
  config.rl.num_generations, config.rl.advantage_estimator, config.rl.steps = 1, estimator, steps
  config_checks.check(config)


@pytest.mark.parametrize("path", RECIPES)
@pytest.mark.parametrize("size", ["tiny", "7b"])
def test_an_instruction_asks_for_every_tag_by_which_replies_are_read(path, size):
  whole = nano.recipe("7b", path).env.instruction
  for tag in ("<think>", "</think>", "<answer>", "</answer>"):
    config = nano.recipe(size, path)
    config.env.instruction = whole.replace(tag, "")
    with pytest.raises(errors.InputError, match=f"config.env.instruction: .* ask for {tag}, by"):
      config_checks.check(config)


@pytest.mark.parametrize("path", RECIPES)
def test_only_a_network_that_knows_no_words_is_told_nothing(path):
  config = nano.recipe("7b", path)
  config.env.instruction = ""
  with pytest.raises(errors.InputError, match=r"config\.env\.instruction"):
    config_checks.check(config)
  own = nano.recipe("tiny", path)
  own.env.instruction = ""
  config_checks.check(own)
  own.model.pretrained, own.model.tokenizer = "export", ""  # as it was written by this project
  config_checks.check(own)
  with pytest.raises(errors.InputError, match=r"config\.env\.instruction"):
    config_checks.check_template(own, told=True)


def _fields():
  """Each field once: (name, field), those of sections and of environments."""
  found = {each.name: each for each in schema.fields(config_fields.RunConfig)}
  for name, section in optional_sections.OPTIONAL.items():
    found |= {each.name: each for each in schema.fields(section, f"{name}.")}
  for environment in registry.ENVIRONMENTS.values():
    found |= {each.name: each for each in schema.fields(environment, "env.")}
  return found


FIELDS = _fields()


@pytest.mark.parametrize("name", [name for name, each in FIELDS.items() if each.choices])
def test_a_value_that_is_no_choice_is_named_with_the_choices(name):
  known = ", ".join(filter(None, FIELDS[name].choices))
  with pytest.raises(errors.InputError, match=f"--config.{name}=other: not one of {known}"):
    config_checks.check(set_field(name, "other"))


@pytest.mark.parametrize("name", [name for name, each in FIELDS.items() if each.bounds])
def test_a_value_out_of_its_range_is_named_with_the_range(name):
  interval = FIELDS[name].bounds
  low, high = map(float, interval[1:-1].split(", "))
  outside = [low - 1, *([low] if interval[0] == "(" else []), high + 1, float("nan")]
  for value in outside if high < float("inf") else [v for v in outside if v != high + 1]:
    with pytest.raises(errors.InputError) as error:
      config_checks.check(set_field(name, value))
    assert str(error.value) == f"--config.{name}={value}: not in {interval}"


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_says_what_it_means(name):
  assert FIELDS[name].help.endswith((".", ";")), FIELDS[name].help


@pytest.mark.parametrize("path", RECIPES)
def test_every_field_of_a_config_is_described(path):
  config = nano.recipe("tiny", path)
  described = set(FIELDS)
  for name in config.to_dict():
    if name not in ("data", "model", "env"):
      section = config[name]
      fields = [f"{name}.{field}" for field in section] if hasattr(section, "keys") else [name]
      assert set(fields) <= described
  env = registry.environment_class(config.recipe)
  assert {each.name.split(".")[0] for each in schema.fields(env)} == set(config.env)


def test_an_environment_is_not_built_of_a_field_that_it_has_not():
  config = nano.recipe("tiny")
  with config.env.unlocked():
    config.env.gait = "none"
  with pytest.raises(
    errors.InputError, match=r"config\.env\.gait: .* nearest is config\.env\.process_gate"
  ):
    registry.complete(config)


def test_a_value_of_another_type_is_named():
  config = nano.recipe("tiny")
  with config.env.unlocked(), config.env.ignore_type():
    config.env.instruction = 3
  with pytest.raises(errors.InputError, match=r"--config\.env\.instruction=3: is no str"):
    config_checks.check(config)
