"""The tests' sharing of programs: between equal settings, and no others."""

import functools

from flax import nnx
import jax.numpy as jnp
import optax
import pytest

from tests.train import nano
from vr_jax.train import train_state, train_step

GRAPH = nnx.split(nnx.eval_shape(lambda: nnx.Linear(1, 1, rngs=nnx.Rngs(0))))[0]
OPTIMIZER = optax.sgd(1.0)


def make_step(allowed_tokens=(True, True), frozen=(), **changes):
  allowed = jnp.array(allowed_tokens)
  section = nano.config(**changes).rl
  return train_step.make_rl_step(GRAPH, OPTIMIZER, allowed, section, frozen=frozen)


def test_steps_of_equal_settings_are_one_whatever_a_run_does_around_them():
  assert make_step() is make_step(rl__steps=7, rl__batch_size=8, rl__checkpoint_every=1)


@pytest.mark.parametrize(
  "changes",
  [
    {"rl__clip_epsilon_low": 0.05},
    {"rl__kl_weight": 0.5},
    {"rl__microbatches": 2},
    {"rl__temperature": 0.3},
    {"rl__max_new_tokens": 7},
    {"frozen": ("vision",)},
    {"allowed_tokens": (True, False)},
  ],
  ids=lambda changes: next(iter(changes)),
)
def test_a_step_with_another_setting_is_another(changes):
  assert make_step(**changes) is not make_step()


def test_optimizers_are_one_for_one_schedule_of_the_learning_rate():
  def make(**changes):
    return train_state.make_optimizer(nano.config(**changes).rl, {}, ())

  constant, cosine = (functools.partial(make, rl__schedule=name) for name in ("constant", "cosine"))
  assert constant(rl__steps=5) is constant(rl__steps=6)
  assert cosine(rl__steps=5) is cosine(rl__steps=5)
  assert cosine(rl__steps=5) is not cosine(rl__steps=6)
  for changes in ({"rl__learning_rate": 1e-5}, {"rl__warmup_steps": 3}, {"rl__max_grad_norm": 9.0}):
    assert constant(**changes) is not constant()
