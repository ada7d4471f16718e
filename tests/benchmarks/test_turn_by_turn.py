"""The benchmark of several turns at toy sizes: the sides agree, and the line has its fields.

No times are checked.
"""

import dataclasses
import json

import jax
import pytest

from benchmarks import turns, workload

TOY = dataclasses.replace(
  workload.ISSUE,
  layers=1,
  embed=64,
  mlp=64,
  vocabulary=320,
  vision_layers=1,
  vision_embed=32,
  vision_heads=2,
  vision_mlp=32,
  frames=2,
  side=4,
  prompts=2,
  group=2,
  time=5,
)


@pytest.mark.parametrize(
  ("family", "devices"), [("qwen2_5_vl", 1), ("qwen2_5_vl", 2), ("qwen3_vl", 1), ("tinyllava", 1)]
)
def test_episodes_are_those_of_a_loop_that_starts_again_each_turn(family, devices):
  sides, devices = ("ours", "again"), jax.devices()[:devices]
  sizes = dataclasses.replace(TOY, family=family)
  found = turns.compare(sizes, pool=6, shown=2, turns=2, names=sides, repeats=1, devices=devices)
  assert set(found["seconds"]) == {"ours", "again"}
  assert set(found["ratio"]) == {"over_again"}
  assert found["greedy"]["again"]["same_tokens"] > 0.5
  json.dumps(found)


def test_other_episodes_are_told_apart():
  setting = turns.make(TOY, pool=6, shown=2, turns=2)
  theirs = turns.again_side(setting)(0.0)
  with turns.futures.ThreadPoolExecutor(1) as threads:
    ours = turns.our_side(setting, threads)(0.0).rollout
  turns.check_greedy(setting, ours, theirs)
  theirs[1, 0, 1, 2] = (theirs[1, 0, 1, 2] + 7) % 256
  with pytest.raises(ValueError, match="greedy replies part"):
    turns.check_greedy(setting, ours, theirs)
