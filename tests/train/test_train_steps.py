"""The jitted steps: micro-batches and skipped updates change nothing, frozen parameters stay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train import nano
from vr_jax import records
from vr_jax.rl import update
from vr_jax.rollout import encoder
from vr_jax.train import batching, initialization, train_step
from vr_jax.train import train_state as train_state_lib


@pytest.fixture(scope="module")
def context(data, request):
  size = getattr(request, "param", "tiny")
  return nano.build(data, size=size, **nano.ROOM[size])


@pytest.fixture(scope="module")
def batch(context):
  items = nano.ragged_items(context, 4)
  tokens, valid = batching.reply_arrays(items, 80)
  return (
    context.builder.prompt(context.builder.batch(items)),
    jnp.asarray(tokens),
    jnp.asarray(valid),
  )


def _start(context, *, frozen=(), **fields):
  """Makes a state and a step from the section `sft`."""
  section = nano.config(**fields).sft
  optimizer = train_state_lib.make_optimizer(section, context.abstract_params, frozen)
  state = train_state_lib.create(initialization.fresh_params(context), optimizer, context.mesh)
  step = train_step.make_sft_step(
    context.graphdef,
    optimizer,
    context.allowed_tokens,
    microbatches=section.microbatches,
    frozen=frozen,
  )
  return state, step


def _leaves(tree):
  return {
    jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree.leaves_with_path(tree)
  }


def test_micro_batches_give_the_loss_and_the_gradients_of_the_whole_batch(context, batch):
  found = {}
  for count in (1, 2, 4):
    state, step = _start(context, sft__microbatches=count, sft__warmup_steps=0)
    state, metrics = step(state, *batch)
    # The first moment of Adam after one step is the clipped gradient times 1 - b1.
    found[count] = ({k: float(v) for k, v in metrics.items()}, _leaves(state.optimizer_state))
  for count in (2, 4):
    assert found[count][0] == pytest.approx(found[1][0], rel=1e-5)
    worst = nano.largest_difference(found[count][1], found[1][1])
    assert worst.value < 1e-4, worst


def test_first_moments_of_bfloat16_move_parameters_as_others_do_and_are_kept_as_they_are(
  context, batch, tmp_path
):
  fields = {"sft__warmup_steps": 0, "sft__moment_dtype": "bfloat16"}
  (exact, step), (rough, rough_step) = (
    _start(context, sft__warmup_steps=0),
    _start(context, **fields),
  )
  for _ in range(2):
    exact, _ = step(exact, *batch)
    rough, _ = rough_step(rough, *batch)
  worst = nano.largest_difference(_leaves(rough.params), _leaves(exact.params))
  assert 0 < worst.value < 2.0**-8, worst
  store = initialization.open_checkpoints(context, tmp_path / "sft")
  store.save(2, rough, {})
  restored = store.restore(_start(context, **fields)[0]).tree
  store.close()
  kept, given = _leaves(restored), _leaves(rough)
  for name, value in given.items():
    assert kept[name].dtype == value.dtype, name
    assert (value.dtype == jnp.bfloat16) == (".mu" in name), name
    np.testing.assert_array_equal(kept[name], value, err_msg=name)


@pytest.mark.parametrize(
  ("context", "frozen"), [("tiny", ("vision",)), ("tiny_qwen3vl", ())], indirect=["context"]
)
def test_frozen_vision_stays_bit_for_bit_and_the_rest_moves(context, batch, frozen):
  state, step = _start(context, frozen=frozen, sft__warmup_steps=0)
  before = _leaves(state.params)
  for _ in range(2):
    state, _ = step(state, *batch)
  after = _leaves(state.params)
  assert any("vision" in name for name in before)
  for name in before:
    fixed = "vision" in name and bool(frozen)
    assert np.array_equal(before[name], after[name]) == fixed, name


@pytest.mark.parametrize("count", [1, 2])
def test_frozen_vision_costs_no_backward_pass_and_has_no_share_in_the_norm(context, batch, count):
  fields = {"sft__warmup_steps": 0, "sft__max_grad_norm": 1e9, "sft__microbatches": count}
  flops, norms, moments = {}, {}, {}
  for frozen in ((), ("vision",)):
    state, step = _start(context, frozen=frozen, **fields)
    flops[frozen] = step.lower(state, *batch).cost_analysis()["flops"]
    state, metrics = step(state, *batch)
    norms[frozen] = float(metrics["grad_norm"])
    moments[frozen] = {k: v for k, v in _leaves(state.optimizer_state).items() if ".mu" in k}
  text = [v for k, v in moments[()].items() if "vision" not in k]
  assert len(text) == len(moments[("vision",)]) < len(moments[()])
  assert norms[()] == pytest.approx(_norm(moments[()].values()), rel=1e-4)
  assert norms[("vision",)] == pytest.approx(_norm(text), rel=1e-4)
  assert norms[("vision",)] < 0.999 * norms[()]
  assert flops[("vision",)] < 0.9 * flops[()]


def _norm(moments):
  """Global norm of the gradients, from Adam's first moments after one step.

  These are 1 - b1 = 0.1 times the gradients.
  """
  return 10 * np.sqrt(sum((moment.astype(np.float64) ** 2).sum() for moment in moments))


def test_a_frozen_parameter_whose_gradient_is_not_finite_voids_nothing():
  optimizer = optax.sgd(1.0)
  params = {"vision": jnp.zeros(1), "text": jnp.ones(1)}

  trained, fixed = train_state_lib.split(params, ("vision",))

  def loss(trained, part):
    params = train_state_lib.join(trained, fixed)
    return (jnp.sqrt(params["vision"]) + part * params["text"]).sum(), {}

  value, _, gradients = update.accumulated_gradients(loss, trained, jnp.ones((2, 1)))
  moved, _, applied, norm = update.guarded_update(
    optimizer, gradients, optimizer.init(trained), trained, value
  )
  moved = train_state_lib.join(moved, fixed)
  assert bool(applied)
  assert float(norm) == pytest.approx(2)
  assert (float(moved["vision"][0]), float(moved["text"][0])) == (0, -1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_void_update_changes_nothing_and_is_counted_and_a_good_one_goes_on(context, batch, bad):
  state, step = _start(context, sft__warmup_steps=0)
  prompt, tokens, valid = batch
  before = _leaves((state.params, state.optimizer_state))
  media = encoder.encode(context.graphdef, state.params, prompt).media
  poisoned = dataclasses.replace(prompt, vision=None, media=media.at[0, 0, 0].set(bad))
  for count in (1, 2):
    state, metrics = step(state, poisoned, tokens, valid)
    assert (int(metrics["nonfinite_updates"]), int(metrics["consecutive_nonfinite_updates"])) == (
      count,
      count,
    )
  after = _leaves((state.params, state.optimizer_state))
  for name, value in before.items():
    np.testing.assert_array_equal(after[name], value, err_msg=name)
  state, metrics = step(state, *batch)
  assert (int(metrics["nonfinite_updates"]), int(metrics["consecutive_nonfinite_updates"])) == (
    2,
    0,
  )
  assert int(state.step) == 3


def _rollout(tokens, valid):
  kind = jnp.where(valid, int(records.Kind.MODEL), int(records.Kind.PAD))
  return records.Rollout(tokens=tokens, log_probs=valid * -1.0, kind=kind, turn=kind * 0)


def test_log_probs_of_micro_batches_are_those_of_the_whole_batch_in_its_order(context, batch):
  prompt, tokens, valid = batch
  params = nano.sharpened(initialization.fresh_params(context))
  whole, parts = (
    np.asarray(
      train_step.make_logprob_fn(
        context.graphdef, context.allowed_tokens, temperature=1.0, microbatches=count
      )(params, prompt, _rollout(tokens, valid))
    )
    for count in (1, 2)
  )
  np.testing.assert_allclose(parts, whole, rtol=2e-6, atol=0)
  assert len({float(row.sum()) for row in whole}) == len(whole)  # a row in another's place shows


def test_nothing_is_learnt_from_a_group_without_signal(context, batch):
  prompt, tokens, valid = batch
  rollout = _rollout(tokens, valid)
  optimizer = train_state_lib.make_optimizer(nano.config().rl, context.abstract_params, ())
  step = train_step.make_rl_step(
    context.graphdef, optimizer, context.allowed_tokens, nano.config().rl
  )
  signal = jnp.array([True, False, True, False])

  def learnt(of_the_silent, signal):
    advantages = jnp.where(signal[:, None, None], 1.0, of_the_silent) * jnp.ones(valid.shape)
    state = train_state_lib.create(
      nano.sharpened(initialization.fresh_params(context)), optimizer, context.mesh
    )
    _, metrics = step(state, prompt, rollout, advantages, signal, None, None)
    return float(metrics["grad_norm"]), int(metrics["loss_tokens"])

  assert learnt(5.0, signal) == learnt(-3.0, signal)
  assert learnt(5.0, signal)[1] == int(valid[::2].sum()) < int(valid.sum())
  assert learnt(5.0, jnp.ones(4, bool))[0] != learnt(5.0, signal)[0]


def test_the_bonus_on_entropy_is_taken_off_the_loss_weighted_as_it_and_raises_entropy(
  context, batch
):
  prompt, tokens, valid = batch
  kind = jnp.where(valid, int(records.Kind.MODEL), int(records.Kind.PAD))
  nothing = jnp.zeros(valid.shape)
  rollout = records.Rollout(tokens=tokens, log_probs=nothing, kind=kind, turn=kind * 0)
  fields = {"rl__learning_rate": 1e-3, "rl__entropy_weight": 0.5, "rl__aggregation": "token_mean"}
  rl = nano.config(**fields).rl
  optimizer = train_state_lib.make_optimizer(rl, context.abstract_params, ())
  state = train_state_lib.create(
    nano.sharpened(initialization.fresh_params(context)), optimizer, context.mesh
  )
  step = train_step.make_rl_step(context.graphdef, optimizer, context.allowed_tokens, rl)
  entropies = []
  for _ in range(3):
    state, metrics = step(state, prompt, rollout, nothing, jnp.ones(4, bool), None, None)
    assert float(metrics["loss"]) == pytest.approx(-0.5 * float(metrics["entropy"]), rel=1e-5)
    entropies.append(float(metrics["entropy"]))
  assert entropies[0] < entropies[1] < entropies[2]
