"""The loss on the validation split during the warm start, and packed supervised replies."""

import numpy as np
import pytest

from tests.train import nano
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import batching, initialization, metrics, run_context, sft_loop, train_step


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
  """Data with a validation split whose last batch is not full."""
  return nano.make_data(
    tmp_path_factory.mktemp("held_out"), data__validation_fraction=0.25, sft__validate_every=1
  )


FIELDS = {"data__validation_fraction": 0.25, "sft__validate_every": 1, "rl__steps": 0}


def test_the_validation_loss_is_the_mean_over_all_its_tokens_once(held_out):
  context = nano.build(held_out, **FIELDS, sft__batch_size=4)
  params = initialization.fresh_params(context)
  log_likelihood = train_step.make_log_likelihood_fn(context.graphdef, context.allowed_tokens)
  found = sft_loop.validation_loss(context, params, log_likelihood, None)
  total, tokens, count = 0.0, 0.0, 0
  for batch in context.builder.read("validation", 1, repeat=False):
    replies = mesh_lib.put_batch(batching.reply_arrays(batch.items, 80), context.mesh)
    log_prob, length = np.asarray(log_likelihood(params, context.builder.prompt(batch), *replies))
    total, tokens, count = total + log_prob, tokens + length, count + 1
  assert count % 4
  assert found == pytest.approx(-total / tokens, rel=1e-6)


def test_the_warm_start_ends_where_the_validation_loss_falls_no_more(
  held_out, tmp_path, monkeypatch
):
  context = nano.build(held_out, **FIELDS, sft__learning_rate=0.0, sft__patience=2)
  monkeypatch.setattr(run_context, "make_run_context", lambda config, workdir, **_: context)
  sft_loop.train(context.config, tmp_path)
  assert initialization.last_step(context, tmp_path / "checkpoints" / "sft") == 3
  lines = metrics.read(tmp_path / "metrics.jsonl")
  losses = [line["values"]["validation_loss"] for line in lines]
  assert losses == [losses[0]] * 3
  sft_loop.train(context.config, tmp_path)  # it is complete: nothing is added
  assert len(metrics.read(tmp_path / "metrics.jsonl")) == 3


def test_packed_replies_have_the_losses_of_padded_ones(held_out, tmp_path, monkeypatch):
  losses = []
  for packing in (0.0, 1.25):
    context = nano.build(
      held_out, sft__token_bucket_ratio=packing, sft__max_reply_tokens=160, rl__steps=0
    )
    monkeypatch.setattr(
      run_context, "make_run_context", lambda config, workdir, context=context, **_: context
    )
    workdir = tmp_path / str(packing)
    sft_loop.train(context.config, workdir)
    losses.append([line["values"]["loss"] for line in metrics.read(workdir / "metrics.jsonl")])
  np.testing.assert_allclose(*losses, rtol=1e-5)
