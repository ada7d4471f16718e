"""Advantages of segments, and VideoP2R through the loop, with replies to shuffled frames."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import nano
from vr_jax import records
from vr_jax.envs import registry
from vr_jax.eval import stage
from vr_jax.models.common import prompts
from vr_jax.rl import advantages as advantages_lib
from vr_jax.train import data_stage, metrics, rl_loop

NAMES = ("perception", "reasoning")


def test_every_token_gets_the_advantage_of_its_own_segment_over_its_own_group():
  total = np.array([[[1, 5], [3, 5], [9, 2]]], np.float32)
  valid = np.array([[[1, 1], [1, 1], [0, 1]]], bool)
  segment = np.array([[[0, 1, -1], [0, 0, 1], [0, 1, 1]]], np.int32)
  scores = records.Scores(rewards={"accuracy": total}, scored=valid, total=total)
  advantages, signal, values = advantages_lib.compute_advantages(
    jax.tree.map(jnp.asarray, scores),
    jnp.asarray(segment),
    segments=NAMES,
    estimator="segments",
    normalize_by_std=True,
    max_tokens=3,
  )
  low, high = -(2**0.5), 2**-0.5  # the advantages of 2 and of 5, in the group 5, 5, 2
  expected = [[[-1, high, 0], [1, 1, high], [0, low, low]]]
  np.testing.assert_allclose(advantages, expected, rtol=1e-5)
  assert signal.all()
  assert values["unscored_ratio/perception"] == pytest.approx(1 / 3)
  assert values["rewards/perception/accuracy/mean"] == pytest.approx(2)  # the third is not valid
  assert values["completions/reasoning/mean_length"] == pytest.approx(4 / 3)


def test_frames_in_random_order_keep_each_frame_whole_and_text_in_place():
  index = np.array([[-1, 0, 1, 4, 5, 8, 9, -1], [-1, 0, 1, 4, 5, -1, -1, -1]], np.int32)
  seen = set()
  for seed in range(20):
    mixed = prompts.shuffle_media(index, [3, 2], np.random.default_rng(seed))
    np.testing.assert_array_equal(mixed < 0, index < 0)
    frames = mixed[0][mixed[0] >= 0].reshape(3, 2)
    assert sorted(frames.tolist()) == [[0, 1], [4, 5], [8, 9]]
    seen.add(tuple(frames[:, 0]))
  assert len(seen) == 6
  np.testing.assert_array_equal(index[0], [-1, 0, 1, 4, 5, 8, 9, -1])


def test_videop2r_trains_and_asks_for_replies_to_shuffled_frames(tmp_path, monkeypatch):
  nano.use_devices(monkeypatch, 1)
  config = nano.config(
    "configs/videop2r.py",
    data__directory=str(tmp_path / "data"),
    data__simulate__world__behaviours=("cycle", "count", "charge"),
    data__simulate__world__families=("choice", "read", "measure"),
    sft__steps=0,
    rl__steps=2,
    rl__num_shuffled_generations=2,
  )
  data_stage.prepare(config, tmp_path)
  asked = []
  score = registry.ENVIRONMENTS["videop2r"].score

  def watched(task, examples, replies):
    asked.append(replies)
    return score(task, examples, replies)

  monkeypatch.setattr(registry.ENVIRONMENTS["videop2r"], "score", watched)
  rl_loop.train(config, tmp_path)
  assert [[len(texts) for texts in replies.shuffled] for replies in asked] == [[2] * 4] * 2
  for step, scored in enumerate(asked, start=1):
    path = tmp_path / "rollouts" / f"step-{step:06d}.jsonl"
    groups = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [[reply["text"] for reply in group["shuffled_replies"]] for group in groups]
    assert texts == scored.shuffled
    assert all(len(group["replies"]) == config.rl.num_generations for group in groups)
  values = metrics.read(tmp_path / "metrics.jsonl")[-1]["values"]
  for name in NAMES:
    assert values[f"rewards/{name}/temporal/mean"] >= 0
    assert values[f"unscored_ratio/{name}"] == 0
  assert np.isfinite(values["loss"])
  stage.evaluate(config, tmp_path)
  lines = (tmp_path / "eval" / "after_rl.jsonl").read_text().splitlines()
  replies = [json.loads(line) for line in lines]
  for reply in replies:
    assert "".join(segment["text"] for segment in reply["segments"]) == reply["reply"]
    assert reply["segment_rewards"].keys() == set(NAMES)
  with_advantages = [each for each in replies if "segment_advantages" in each]
  assert with_advantages == replies[: config.eval.report_samples]
  assert all(each["segment_advantages"].keys() == set(NAMES) for each in with_advantages)
