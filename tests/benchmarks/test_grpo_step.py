"""The benchmark of a whole step at the smallest size, our side alone: its line and its errors."""

import json

import pytest

from benchmarks import grpo_step
from tests.train import nano


def test_steps_sample_all_tokens_of_every_reply_and_are_timed(tmp_path, monkeypatch):
  nano.use_devices(monkeypatch, 1)
  small = {name.replace(".", "__"): value for name, value in nano.OVERRIDES.items()}
  small |= {"rl__batch_size": 2, "rl__num_generations": 2, "rl__max_new_tokens": 4}
  config = grpo_step.recipe(tmp_path, **small)
  found = grpo_step.compare(config, tmp_path, names=("ours",), repeats=1)
  assert found["sampled_tokens"] == 2 * 2 * 4
  assert found["prompt_tokens"]["ours"] in config.model.prefix_buckets
  assert all(seconds > 0 for seconds in found["seconds"].values())
  assert found["tokens_per_second"].keys() == {"ours"} and not found["ratio"]
  json.dumps(found)


def test_a_side_that_sampled_another_number_of_tokens_is_told_apart():
  rl = nano.config(rl__batch_size=2, rl__num_generations=2, rl__max_new_tokens=4).rl
  assert grpo_step.check_counts(rl, {"ours": [16, 16]}) == 16
  with pytest.raises(ValueError, match=r"trl: sampled \[15, 16\] tokens a step, not 16"):
    grpo_step.check_counts(rl, {"ours": [16, 16], "trl": [16, 15]})


def test_a_reply_is_worth_the_share_of_its_signs_that_differ():
  assert [grpo_step.variety(reply) for reply in ("", "aaaa", "abab", "abc")] == [0, 0.25, 0.5, 1]
