"""The jitted steps: micro-batches change nothing, a void update changes nothing, and what is frozen stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import nano
from vr_jax.train import parts as parts_lib
from vr_jax.train import state as state_lib
from vr_jax.train import steps


@pytest.fixture(scope="module")
def parts(data):
  return nano.build(data)


@pytest.fixture(scope="module")
def batch(parts):
  items = nano.ragged_items(parts, 4)
  tokens, valid = parts_lib.reply_arrays(items, 80)
  return parts.prompt(items), jnp.asarray(tokens), jnp.asarray(valid)


def _start(parts, *, frozen=(), **fields):
  """A state and a step of the section `sft`."""
  section = nano.config(**fields).sft
  optimizer = state_lib.make_optimizer(section, parts.abstract_params, frozen)
  state = state_lib.create(parts.fresh_params(), optimizer, parts.mesh)
  step = steps.make_sft_step(
    parts.graph, optimizer, parts.allowed, microbatches=section.microbatches
  )
  return state, step


def _leaves(tree):
  return {
    jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree.leaves_with_path(tree)
  }


def test_micro_batches_give_the_loss_and_the_gradients_of_the_whole_batch(parts, batch):
  found = {}
  for count in (1, 2, 4):
    state, step = _start(parts, sft__microbatches=count, sft__warmup_steps=0)
    state, metrics = step(state, *batch)
    # The first moment of Adam after one step is the clipped gradient times 1 - b1.
    found[count] = ({k: float(v) for k, v in metrics.items()}, _leaves(state.optimizer_state))
  for count in (2, 4):
    assert found[count][0] == pytest.approx(found[1][0], rel=1e-5)
    worst = nano.largest_difference(found[count][1], found[1][1])
    assert worst.value < 1e-4, worst


def test_frozen_vision_stays_bit_for_bit_and_the_rest_moves(parts, batch):
  state, step = _start(parts, frozen=("vision",), sft__warmup_steps=0)
  before = _leaves(state.params)
  for _ in range(2):
    state, _ = step(state, *batch)
  after = _leaves(state.params)
  vision = [name for name in before if "vision" in name]
  assert vision
  for name in before:
    assert np.array_equal(before[name], after[name]) == (name in vision), name


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_void_update_changes_nothing_and_is_counted_and_a_good_one_goes_on(parts, batch, bad):
  state, step = _start(parts, sft__warmup_steps=0)
  prompt, tokens, valid = batch
  before = _leaves((state.params, state.optimizer_state))
  poisoned = type(prompt)(**{**vars(prompt), "vision": _poison(prompt.vision, bad)})
  for count in (1, 2):
    state, metrics = step(state, poisoned, tokens, valid)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (count, count)
  after = _leaves((state.params, state.optimizer_state))
  for name, value in before.items():
    np.testing.assert_array_equal(after[name], value, err_msg=name)
  state, metrics = step(state, *batch)
  assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (2, 0)
  assert int(state.step) == 3


def _poison(vision, bad):
  return type(vision)(**{**vars(vision), "patches": vision.patches.at[0, 0, 0, 0].set(bad)})
