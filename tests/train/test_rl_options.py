"""Options of loss and advantages in the step and in the loop: exact in packed micro-batches, and logged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout import test_packing
from tests.train import nano
from vr_jax.train import initialization, rl_loop, steps
from vr_jax.train import metrics as metrics_lib
from vr_jax.train import state as state_lib


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
  score = steps.make_scorer(context.graph, context.allowed, temperature=rl.temperature)
  old = score(params, prompt, rollout) + 0.6 * rng.normal(size=advantages.shape)
  optimizer = state_lib.make_optimizer(rl, context.abstract_params, ())
  found = []
  for count, packed in ((2, test_packing._size(context, 2)), (1, None)):
    rl.microbatches = count
    step = steps.make_rl_step(context.graph, optimizer, context.allowed, rl)
    state = state_lib.create(jax.tree.map(jnp.copy, params), optimizer, context.mesh)
    state, metrics = step(
      state, prompt, rollout, advantages, jnp.ones(prompts, bool), old, None, packed
    )
    gradients = {
      jax.tree_util.keystr(path): np.array(leaf)
      for path, leaf in jax.tree.leaves_with_path(state.optimizer_state)
    }
    found.append((metrics, gradients))
  (parted, some), (whole, expected) = found
  assert 0 < whole["clipped_low"] < 1 and 0 < whole["clipped_high"] < 1
  assert ("clipped_dual" in whole) == ("dual_clip" in options)
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
    rl__epochs=2,
    rl__learning_rate=3e-2,
    rl__importance_sampling_level="sequence",
    rl__dual_clip=1.3,
    rl__baseline="leave_one_out",
    rl__normalise=False,
    rl__overlong_buffer=16,
    rl__overlong_weight=0.5,
  )
  rl_loop.train(config, tmp_path)
  lines = metrics_lib.read(tmp_path / "metrics.jsonl")
  assert len(lines) == 2
  for line in lines:
    values = line["values"]
    assert -1 <= values["reward/overlong"] < 0
    others = sum(values[f"reward/{name}"] for name in ("accuracy", "format", "process"))
    assert values["reward/total"] == pytest.approx(others + 0.5 * values["reward/overlong"])
    assert 0 <= values["clipped_dual"] <= 1
  assert any(line["values"]["clipped_low"] + line["values"]["clipped_high"] > 0 for line in lines)
