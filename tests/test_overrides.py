"""What the command line sets goes before what a size sets, and contradictions end a run."""

import pytest

from tests.train import nano
from vr_jax import errors, main
from vr_jax.train import config_checks

OWN = {"data.videos": "mine", "data.annotations": "mine.jsonl"}


def _parse(size, recipe="moss_chatv", **fields):
  """The checked config of a command line. Fields have two underscores for a dot."""
  flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
  recipe = f"--config={nano.ROOT / 'configs' / recipe}.py:{size}"
  config = main.parse_flags(["vr-jax", recipe, "--workdir=x", *flags])[0]
  config_checks.check(config)
  return config


def _sources(config):
  return config.data.simulate.videos, config.data.videos, config.data.annotations


@pytest.mark.parametrize("recipe", ["moss_chatv", "grpo", "video_mtr", "videop2r"])
def test_own_videos_go_before_those_that_a_size_simulates(recipe):
  assert _sources(_parse("tiny", recipe, **OWN)) == (0, "mine", "mine.jsonl")
  assert _sources(_parse("tiny", recipe))[0] > 0


def test_simulated_videos_go_before_those_that_a_size_names():
  assert _sources(_parse("3b", data__simulate__videos=7)) == (7, "", "")
  assert _sources(_parse("3b"))[0] == 0


def test_a_pretrained_model_keeps_its_tokenizer_with_the_size_that_trains_one():
  assert _parse("tiny", model__pretrained="export").model.tokenizer == ""
  assert _parse("tiny").model.tokenizer == "trained"


@pytest.mark.parametrize(
  ("size", "recipe", "fields", "says"),
  [
    ("tiny", "grpo", {**OWN, "data.simulate.videos": 5}, "data.videos=mine: would not be read"),
    ("tiny", "grpo", {"data.videos": "mine"}, "data.videos=mine: needs data.annotations as well"),
    ("tiny", "grpo", {"data.annotations": "mine"}, "data.annotations=mine: needs data.videos as"),
    (
      "tiny",
      "grpo",
      {"model.pretrained": "export", "model.tokenizer": "trained"},
      "model.tokenizer=trained: model.pretrained=export knows the tokens of its own",
    ),
    (
      "tiny",
      "grpo",
      {"model.pretrained": "export", "model.architecture.text_config.hidden_size": 64},
      "model.architecture.text_config.hidden_size: has no effect",
    ),
    (
      "3b",
      "grpo",
      {"data.sampling": "fps", "data.frames": 8},
      "data.frames=8: has no effect with data.sampling=fps; set data.sample_fps",
    ),
    (
      "tiny",
      "grpo",
      {"data.frames": 32},
      "data.frames=32: makes 16 temporal patches, and model.frame_buckets=(4,) holds 4",
    ),
    (
      "tiny",
      "grpo",
      {"data.sampling": "fps", "data.min_frames": 10},
      "data.min_frames=10: makes 5 temporal patches",
    ),
    (
      "3b",
      "grpo",
      {"data.sample_fps": 4.0},
      "data.sample_fps=4.0: has no effect with data.sampling=uniform; set data.sampling to fps",
    ),
    ("3b", "grpo", {"model.lora.alpha": 8.0}, "model.lora.rank=0; set model.lora.rank above 0"),
    ("3b", "grpo", {"rl.kl_weight": 0.0, "rl.kl_estimator": "k1"}, "rl.kl_estimator=k1: has no"),
    (
      "tiny",
      "videop2r",
      {"judge.model": "judge-large"},
      "judge.model=judge-large: has no effect with judge.kind=rule; set judge.kind to local or",
    ),
    (
      "3b",
      "videop2r",
      {"traces.base_url": "http://localhost:8000/v1"},
      "has no effect with traces.writer=sampler; set traces.writer to openai",
    ),
  ],
)
def test_what_would_have_no_effect_is_refused_in_one_line(size, recipe, fields, says):
  with pytest.raises(errors.InputError) as error:
    _parse(size, recipe, **fields)
  assert says in str(error.value)
  assert "\n" not in str(error.value)


def test_a_notebook_that_sets_fields_itself_is_told_the_same():
  config = nano.recipe("tiny")
  config.data.videos, config.data.annotations = OWN.values()
  with pytest.raises(errors.InputError, match=r"data\.videos=mine: would not be read"):
    config_checks.check(config)
  config.data.simulate.videos = 0
  config_checks.check(config)
