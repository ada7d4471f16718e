"""The benchmarks of the group layout at toy sizes: sides agree, and the line holds its fields. No time is held against anything."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import group_update, measure, rollout, scaling, text_rollout, workload

TOY = dataclasses.replace(
  workload.ISSUE,
  layers=1,
  embed=64,
  heads=4,
  kv_heads=2,
  mlp=64,
  vocabulary=320,
  vision_layers=1,
  vision_embed=32,
  vision_heads=2,
  vision_mlp=32,
  frames=2,
  side=4,
  text=6,
  prompts=2,
  group=3,
  time=5,
)


def test_an_update_of_groups_has_the_loss_and_the_gradients_of_the_replicated_one():
  found = group_update.compare(TOY, names=("ours", "replicated"), repeats=1)
  assert found["differences"]["gradients_replicated"] <= group_update.GRADIENT_TOLERANCE
  assert set(found["seconds"]) == {"ours", "replicated"}
  assert set(found["ratio"]) == {"over_replicated", "memory_over_replicated"}
  assert 0 < found["ratio"]["memory_over_replicated"] < 1
  json.dumps(found)


def test_replies_are_sampled_to_their_end_and_counted():
  found = rollout.compare(TOY, names=("ours",), repeats=1)
  assert found["greedy"]["same_tokens"] == 1
  assert found["tokens_per_second"]["ours"] > 0
  json.dumps(found)


def test_greedy_replies_of_another_model_are_told_apart():
  work = workload.make(TOY)
  tokens = np.asarray(rollout.our_side(work)(0.0).tokens)
  other = tokens.copy()
  other[1, 2, 3] = (tokens[1, 2, 3] + 7) % 256
  with pytest.raises(ValueError, match="greedy replies part"):
    rollout.check_greedy(work, tokens, other)


def test_text_prompts_are_sampled_alone_and_in_groups():
  sizes = dataclasses.replace(TOY, frames=0, prompts=4, group=1)
  found = text_rollout.compare(sizes, names=("ours",), group=2, repeats=1)
  assert set(found["seconds"]) == {"ours", "ours_shared"}
  json.dumps(found)


def test_growth_is_that_of_time_over_flops_and_of_memory_over_tokens():
  found = scaling.compare(TOY, (4, 8), repeats=1)
  small, large = found["sizes"]
  assert (small["tokens"], large["tokens"]) == (8 + 8 + 15, 16 + 8 + 15)
  assert large["gigaflops"] > small["gigaflops"]
  assert set(found["ratio"]) == {"time_over_flops", "memory_over_tokens"}


def test_a_difference_over_the_tolerance_stops_a_comparison():
  with pytest.raises(ValueError, match="loss: the sides differ by"):
    measure.check_same("loss", {"x": np.ones(3)}, {"x": np.array([1, 1, 1.1])}, 1e-3)
  with pytest.raises(ValueError, match="loss: the sides differ by nan"):
    measure.check_same("loss", {"x": np.ones(3)}, {"x": np.full(3, np.nan)}, 1e-3)
