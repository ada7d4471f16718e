"""Options of loss and advantages, in the step and in the loop: exact when packed, and logged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout import test_packing
from tests.train import nano
from vr_jax.train import config_checks, experience, initialization, rl_loop, train_step
from vr_jax.train import metrics as metrics_lib
from vr_jax.train import train_state as train_state_lib


@pytest.mark.parametrize(
  "options",
  [
    {"importance_sampling_level": "sequence", "dual_clip": 1.3},
    {"objective": "cispo", "aggregation": "token_mean"},
  ],
  ids=["sequence and dual", "cispo"],
)
def test_an_update_in_packed_parts_is_that_of_the_whole_batch(data, options):
  context = nano.build(data, **{f"rl__{name}": value for name, value in options.items()})
  rl = context.config.rl
  params = nano.sharpened(initialization.fresh_params(context))
  prompts = len(test_packing.LENGTHS)
  prompt = context.builder.prompt(context.builder.batch(nano.ragged_items(context, prompts)))
  rollout = test_packing._rollout(context)
  rng = np.random.default_rng(2)
  advantages = rng.normal(size=rollout.tokens.shape).astype(np.float32)
  score = train_step.make_logprob_fn(
    context.graphdef, context.allowed_tokens, temperature=rl.temperature
  )
  old = score(params, prompt, rollout) + 0.6 * rng.normal(size=advantages.shape)
  optimizer = train_state_lib.make_optimizer(rl, context.abstract_params, ())
  found = []
  for count, packed in ((2, test_packing._size(context, 2)), (1, None)):
    rl.microbatches = count
    step = train_step.make_rl_step(context.graphdef, optimizer, context.allowed_tokens, rl)
    state = train_state_lib.create(jax.tree.map(jnp.copy, params), optimizer, context.mesh)
    state, metrics = step(
      state, prompt, rollout, advantages, jnp.ones(prompts, bool), old, None, packed
    )
    moments = {
      jax.tree_util.keystr(path): np.array(leaf)
      for path, leaf in jax.tree.leaves_with_path(state.optimizer_state)
    }
    # Second moments are squares of gradients, and have twice their relative error.
    gradients = {
      name: np.sqrt(value) if ".nu[" in name else value for name, value in moments.items()
    }
    found.append((metrics, gradients))
  (parted, some), (whole, expected) = found
  assert 0 < whole["clip_ratio/low_mean"] < 1 and 0 < whole["clip_ratio/high_mean"] < 1
  assert ("clip_ratio/dual_mean" in whole) == ("dual_clip" in options)
  for name, value in whole.items():
    np.testing.assert_allclose(parted[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
  worst = nano.largest_difference(some, expected)
  assert worst.value < 1e-4, worst


def test_a_run_logs_what_its_options_count(data, tmp_path, monkeypatch):
  nano.use_devices(monkeypatch, 1)
  config = nano.config(
    data__directory=str(data),
    sft__steps=0,
    rl__steps=2,
    rl__num_iterations=2,
    rl__learning_rate=3e-2,
    rl__importance_sampling_level="sequence",
    rl__dual_clip=1.3,
    rl__baseline="leave_one_out",
    rl__normalize_by_std=False,
    rl__overlong_buffer=16,
    rl__overlong_weight=0.5,
    rl__advantage_noise=0.02,
    rl__top_p=0.5,
    rl__sampler_log_probs="kept",
    rl__mismatch_warning=0.0,
  )
  config_checks.check(config)
  rl_loop.train(config, tmp_path)
  lines = metrics_lib.read(tmp_path / "metrics.jsonl")
  assert len(lines) == 2
  for line in lines:
    values = line["values"]
    assert -1 <= values["rewards/overlong/mean"] < 0
    others = sum(values[f"rewards/{name}/mean"] for name in ("accuracy", "format", "process"))
    assert values["rewards/total/mean"] == pytest.approx(
      others + 0.5 * values["rewards/overlong/mean"]
    )
    assert 0 <= values["clip_ratio/dual_mean"] <= 1
    # An untrained network: hardly a token is likelier than another, so half of the mass is kept.
    assert 0.5 <= values["sampling/importance_sampling_ratio/mean"] < 0.6
    assert "completions/repetition_ratio" not in values
  assert any(
    line["values"]["clip_ratio/low_mean"] + line["values"]["clip_ratio/high_mean"] > 0
    for line in lines
  )


def test_a_run_counts_the_replies_that_end_because_they_repeat_themselves(
  data, tmp_path, monkeypatch
):
  nano.use_devices(monkeypatch, 1)
  config = nano.config(
    data__directory=str(data),
    sft__steps=0,
    rl__steps=1,
    rl__top_k=2,
    rl__repetition_window=2,
    rl__repetition_count=2,
  )
  config_checks.check(config)
  rl_loop.train(config, tmp_path)
  (line,) = metrics_lib.read(tmp_path / "metrics.jsonl")
  values = line["values"]
  assert 0 < values["completions/repetition_ratio"] <= values["completions/clipped_ratio"] <= 1


def test_int8_weights_sample_replies_but_not_evaluations_and_the_mismatch_is_logged(
  data, tmp_path, monkeypatch
):
  nano.use_devices(monkeypatch, 1)
  config = nano.config(
    data__directory=str(data),
    sft__steps=0,
    rl__steps=2,
    rl__eval_every=2,
    rl__eval_split="test",
    rl__sampler_weights="int8",
  )
  config_checks.check(config)
  played, play = [], experience.play.play

  def note(*arguments, decoding, **options):
    played.append((decoding.group, decoding.int8_weights))
    return play(*arguments, decoding=decoding, **options)

  monkeypatch.setattr(experience.play, "play", note)
  rl_loop.train(config, tmp_path)
  assert {*played} == {(config.rl.num_generations, True), (1, False)}
  for line in metrics_lib.read(tmp_path / "metrics.jsonl"):
    values = line["values"]
    # Float32 weights differ by rounding of about 1e-6.
    assert 1e-5 < values["sampling/sampling_logp_difference/mean"] < 0.1
    assert values["sampling/k3"] > 1e-10
    assert values["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=0.01)
