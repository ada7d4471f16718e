"""The options of loss and advantages against TRL's trainers, which compute from given log-probs.

Tolerance: 1e-5 relative, both in single precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import batches
from vr_jax.rl import advantages as advantages_lib
from vr_jax.rl import loss as loss_lib
from vr_jax.rl import overlong

trl = pytest.importorskip("trl", reason="the reference is not installed (extra parity)")

# ruff: noqa: E402
import datasets
import tokenizers
import torch
import transformers

WORDS = ("<pad>", "<eos>", *"abcdef")


@pytest.fixture(scope="module")
def make_trainer(tmp_path_factory):
  """A function that makes a trainer of TRL with a network of one small layer.

  make(kind, config, rewards=None, **settings)
  """

  def make(kind, config, rewards=None, **settings):
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "a")),
      pad_token="<pad>",
      eos_token="<eos>",
    )
    network = transformers.Qwen2ForCausalLM(
      transformers.Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
      )
    )
    return kind(
      model=network,
      reward_funcs=rewards or (lambda prompts, **_: [0.0] * len(prompts)),
      args=config(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        per_device_train_batch_size=12,
        num_generations=4,
        max_completion_length=7,
        use_cpu=True,
        bf16=False,
        report_to="none",
        **settings,
      ),
      train_dataset=datasets.Dataset.from_dict({"prompt": ["a b"] * 12}),
      processing_class=tokenizer,
    )

  return make


@pytest.fixture(scope="module")
def trainer(make_trainer):
  trainer = make_trainer(trl.GRPOTrainer, trl.GRPOConfig, beta=0.0, use_bias_correction_kl=False)
  trainer.beta = 0.04  # after it would have loaded a reference, whose log-probs the tests give
  trainer.current_gradient_accumulation_steps = 1
  trainer.model.train()
  return trainer


# Settings of TRL, and the same ones of `policy_loss`. CISPO's `epsilon_high` is the largest weight.
LOSSES = {
  "grpo": ({"loss_type": "grpo"}, "sequence_mean", {}),
  "gspo": (
    {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "sequence_mean",
    {"importance_sampling_level": "sequence"},
  ),
  "gspo by tokens": (
    {"loss_type": "bnpo", "importance_sampling_level": "sequence"},
    "token_mean",
    {"importance_sampling_level": "sequence"},
  ),
  "dual": ({"loss_type": "dapo", "delta": 1.5}, "token_mean", {"dual_clip": 1.5}),
  "gspo and dual": (
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "delta": 1.4},
    "sequence_mean",
    {"importance_sampling_level": "sequence", "dual_clip": 1.4},
  ),
  "cispo": (
    {"loss_type": "cispo", "epsilon_high": 1.4},
    "token_mean",
    {"objective": "cispo", "clip_epsilon_low": 1.0, "clip_epsilon_high": 0.4},
  ),
}


def _losses_of_trl(trainer, monkeypatch, batch, settings):
  """(loss, gradient with respect to the log-probs, share of clipped by TRL's name)."""
  defaults = {"importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.3}
  for name, value in {**defaults, **settings}.items():
    if name == "delta":
      monkeypatch.setattr(trainer.args, "delta", value)
    else:
      monkeypatch.setattr(trainer, name, value)
  rows = {k: torch.tensor(v.reshape(-1, v.shape[-1])) for k, v in batch.items()}
  log_probs = rows["log_probs"].clone().requires_grad_()
  given = log_probs, torch.zeros_like(log_probs), None
  monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: given)
  ids = torch.zeros(log_probs.shape, dtype=torch.long)
  trainer._metrics["train"].clear()
  loss = trainer._compute_loss(
    trainer.model,
    {
      "prompt_ids": ids[:, :1],
      "prompt_mask": torch.ones_like(ids[:, :1]),
      "completion_ids": ids,
      "completion_mask": rows["mask"].long(),
      "advantages": rows["advantages"][:, 0],
      "old_per_token_logps": rows["old"],
      "ref_per_token_logps": rows["reference"],
      "num_items_in_batch": rows["mask"].sum(),
    },
  )
  (gradient,) = torch.autograd.grad(loss, log_probs)
  metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
  return float(loss.detach()), gradient.numpy().reshape(batch["mask"].shape), metrics


def _without_empty_replies(batch):
  """The rows of a batch that have a token, as groups of one.

  TRL's trainers never get empty replies, and would count them as replies with loss 0.
  """
  rows = {name: value.reshape(-1, 1, value.shape[-1]) for name, value in batch.items()}
  return {name: value[rows["mask"].any(-1)[:, 0]] for name, value in rows.items()}


@pytest.mark.parametrize("shape", ["one token", "odd", "one reply"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_those_of_trl(trainer, monkeypatch, name, shape):
  settings, aggregation, options = LOSSES[name]
  for seed in range(3):
    batch = batches.batch(shape, seed=seed, by_reply=True)
    of_trl = _without_empty_replies(batch)
    with monkeypatch.context() as patch:
      expected, gradient, metrics = _losses_of_trl(trainer, patch, of_trl, settings)

    def loss(log_probs, batch=batch):
      return loss_lib.policy_loss(
        log_probs,
        jnp.asarray(batch["old"]),
        jnp.asarray(batch["advantages"]),
        loss_lib.token_weights(jnp.asarray(batch["mask"]), aggregation),
        reference_log_probs=jnp.asarray(batch["reference"]),
        kl_weight=0.04,
        **{"clip_epsilon_low": 0.2, "clip_epsilon_high": 0.3, **options},
      )

    (value, sums), found = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(batch["log_probs"]))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    rows = batch["mask"].any(-1)
    np.testing.assert_allclose(
      np.asarray(found)[rows], gradient[:, 0] * of_trl["mask"][:, 0], rtol=1e-5, atol=1e-7
    )
    if name == "grpo":
      for side in ("low", "high"):
        share = float(sums[f"clip_ratio/{side}"] / sums["mask"])
        assert share == pytest.approx(metrics[f"clip_ratio/{side}_mean"])


def test_leave_one_out_advantages_are_those_of_trls_trainer(make_trainer):
  rng = np.random.default_rng(3)
  rewards = rng.normal(size=(3, 4)).astype(np.float32)
  valid = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0]], bool)
  given = [float(r) if v else None for r, v in zip(rewards.ravel(), valid.ravel(), strict=True)]
  trainer = make_trainer(
    trl.RLOOTrainer,
    trl.RLOOConfig,
    lambda prompts, **_: given,
    normalize_advantages=False,
    beta=0.0,
  )
  trainer.model.train()
  made = trainer._generate_and_score_completions([{"prompt": "a b"}] * 12)
  actual = advantages_lib.group_advantages(
    jnp.asarray(rewards)[..., None],
    jnp.asarray(valid)[..., None],
    baseline="leave_one_out",
    normalize_by_std=False,
  )
  np.testing.assert_allclose(
    actual[..., 0], made["advantages"].numpy().reshape(3, 4), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize(("longest", "buffer"), [(12, 4), (9, 9), (7, 1)])
def test_the_penalty_of_length_is_that_of_trl(longest, buffer):
  from trl import rewards

  lengths = np.arange(15)
  penalty = rewards.get_soft_overlong_punishment  # pyright: ignore[reportPrivateImportUsage]  # lazy
  expected = penalty(longest, buffer)([[0] * n for n in lengths])
  actual = overlong.overlong_penalty(lengths, max_tokens=longest, buffer=buffer)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  assert {-1.0, 0.0} <= set(expected)
