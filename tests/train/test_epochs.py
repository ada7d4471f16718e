"""Several updates on one batch of replies: old log-probs, logged metrics, learning rates."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import counting, nano
from vr_jax.envs import registry
from vr_jax.train import learner, metrics, rl_loop, train_step
from vr_jax.train import train_state as train_state_lib

BATCHES, EPOCHS = 2, 2


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
  """Trains, and returns (updates, logged lines, scored).

  updates: (params before, params after, old log-probs, metrics) of each update.
  scored: (params, log-probs) of each call of the log-prob function.
  """
  workdir = tmp_path_factory.mktemp("epochs")
  config = nano.config(
    data__directory=str(data),
    sft__steps=0,
    rl__steps=BATCHES,
    rl__num_iterations=EPOCHS,
    rl__kl_weight=0.0,
  )
  make_step, make_scorer = train_step.make_rl_step, train_step.make_logprob_fn
  updates, scored = [], []

  def watched_step(*arguments, **options):
    step = make_step(*arguments, **options)

    def watched(state, *batch, old_log_probs, **options):
      before = jax.tree.map(np.array, state.params)
      state, values = step(state, *batch, old_log_probs=old_log_probs, **options)
      after = jax.tree.map(np.array, state.params)
      updates.append((before, after, np.array(old_log_probs), jax.device_get(values)))
      return state, values

    return watched

  def watched_scorer(*arguments, **options):
    score = make_scorer(*arguments, **options)

    def watched(params, prompt, rollout, packed_length):
      log_probs = np.array(score(params, prompt, rollout, packed_length=packed_length))
      scored.append((jax.tree.map(np.array, params), log_probs))
      return jnp.asarray(scored[-1][1])

    return watched

  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 1)
    patch.setitem(registry.ENVIRONMENTS, "moss_chatv", counting.Counting)
    patch.setattr(train_step, "make_rl_step", watched_step)
    patch.setattr(train_step, "make_logprob_fn", watched_scorer)
    rl_loop.train(config, workdir)
  return updates, metrics.read(workdir / "metrics.jsonl"), scored


def _same(left, right):
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, left, right)))


def test_every_update_on_a_batch_is_held_to_the_policy_from_before_the_batch(run):
  updates, _, scored = run
  assert len(updates) == BATCHES * EPOCHS
  assert len(scored) == BATCHES
  for batch, (params, log_probs) in enumerate(scored):
    first, second = updates[batch * EPOCHS : (batch + 1) * EPOCHS]
    assert _same(params, first[0])
    assert not _same(params, second[0])
    for _, _, old, _ in (first, second):
      np.testing.assert_array_equal(old, log_probs)
    assert first[3]["policy_ratio"] == pytest.approx(1, abs=1e-5)
    assert abs(second[3]["policy_ratio"] - 1) > 1e-6


def test_what_is_logged_of_a_batch_is_the_mean_over_its_updates(run):
  updates, lines, _ = run
  assert [line["step"] for line in lines] == [1, 2]
  for batch, line in enumerate(lines):
    logged = [update[3] for update in updates[batch * EPOCHS : (batch + 1) * EPOCHS]]
    for name in ("loss", "grad_norm", "policy_ratio", "entropy"):
      assert logged[0][name] != logged[1][name]
      assert line["values"][name] == pytest.approx(np.mean([each[name] for each in logged]))


def test_a_void_update_shows_whichever_of_a_batchs_updates_it_was():
  updates = [
    {"nonfinite_updates": 3, "consecutive_nonfinite_updates": 1},
    {"nonfinite_updates": 3, "consecutive_nonfinite_updates": 0},
  ]
  assert learner.combine_updates(updates) == {
    "nonfinite_updates": 3,
    "consecutive_nonfinite_updates": 1,
  }


def _learning_rates(epochs, schedule):
  """The learning rate of each update: with a constant gradient, Adam moves by it."""
  section = nano.config(
    rl__steps=6, rl__warmup_steps=2, rl__num_iterations=epochs, rl__schedule=schedule
  ).rl
  section.weight_decay = 0.0
  params = nnx.State({"norm": nnx.Param(jnp.ones(1), axes=("embed",))})
  optimizer = train_state_lib.make_optimizer(section, params, ())
  state, moved = optimizer.init(params), []
  for _ in range(6 * epochs):
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    moved.append(-float(jax.tree.leaves(updates)[0][0]))
  return np.array(moved) / section.learning_rate


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_schedule_takes_as_many_batches_whatever_the_number_of_updates_on_each(schedule):
  once, thrice = _learning_rates(1, schedule), _learning_rates(3, schedule)
  np.testing.assert_allclose(thrice[::3], once, atol=1e-4)
  assert thrice[5] < 1
  assert thrice[6] == pytest.approx(1, abs=1e-4)
