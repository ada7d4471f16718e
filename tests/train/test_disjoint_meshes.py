"""Half of the devices samples while the other half trains: numbers are those of one mesh."""

import functools
import shutil
import threading
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import counting, nano
from vr_jax import errors
from vr_jax.envs import registry
from vr_jax.parallel import disjoint_meshes
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import config_checks, estimates, experience, metrics, rl_loop, train_step

STEPS = 2
OFF: dict[str, Any] = {
  "sft__steps": 0,
  "rl__steps": STEPS,
  "rl__learning_rate": 3e-3,
  "rl__checkpoint_every": 2,
  "rl__one_step_off_policy": True,
}
# Matrices move in bfloat16; the tower is trained, so the patches of prompts move as well.
CAST = {"mesh": (2, 2, 1, 1), "model__dtype": "bfloat16", "rl__num_iterations": 2}
# Frozen parameters move once; features come from the cache; groups are replaced while it trains.
ADAPTERS = {
  "model__lora__rank": 2,
  "model__lora__vision": (),
  "model__feature_cache_gib": 0.1,
  "rl__sampler_weights": "int8",
  "rl__dynamic_sampling_max_batches": 1,
  "rl__eval_every": 2,
  "rl__eval_split": "test",
}


def use_devices(patch, count):
  """Makes one mesh of `count` devices, and each of two disjoint ones of as many."""
  nano.use_devices(patch, count)
  make = functools.partial(disjoint_meshes.DisjointMeshes.make, devices=jax.devices()[: 2 * count])
  patch.setattr(disjoint_meshes.DisjointMeshes, "make", make)


def train(patch, directory, config):
  """Trains; returns the replies of each step, and its metrics without those of time."""
  tokens, collect = [], experience.Collector.collect

  def noted(self, *arguments):
    collected = collect(self, *arguments)
    tokens.append(np.asarray(collected.rollout.tokens))
    return collected

  with patch.context() as patch:
    patch.setattr(experience.Collector, "collect", noted)
    rl_loop.train(config, directory)
  lines = metrics.read(directory / "metrics.jsonl")
  kept = lambda name: not name.startswith(("perf/", "vision/"))  # noqa: E731
  return tokens, [{n: v for n, v in line["values"].items() if kept(n)} for line in lines]


def check_equal(patch, directory, *, more_steps=0, **fields):
  """Trains on one mesh and on two; returns the metrics.

  more_steps: that each run goes on from its checkpoint.
  """
  runs, steps = [], STEPS + more_steps
  for disjoint in (False, True):
    workdir = directory / str(disjoint)
    config = functools.partial(nano.config, **OFF, **fields, rl__disjoint_meshes=disjoint)
    tokens, values = train(patch, workdir, config())
    if more_steps:
      more, values = train(patch, workdir, config(rl__steps=steps))
      tokens += more
    runs.append((tokens, values))
  (tokens, one), (tokens_of_halves, halves) = runs
  assert len(tokens) == len(one) == steps
  for expected, found in zip(tokens, tokens_of_halves, strict=True):
    np.testing.assert_array_equal(found, expected)
  assert halves == one
  return one


@pytest.mark.parametrize(
  ("fields", "devices"), [(CAST, 4), (ADAPTERS, 1)], ids=["cast", "adapters"]
)
def test_numbers_are_those_of_one_mesh_of_the_same_shape(
  data, tmp_path, monkeypatch, fields, devices
):
  use_devices(monkeypatch, devices)
  monkeypatch.setitem(registry.ENVIRONMENTS, "moss_chatv", counting.Counting)
  own, more = shutil.copytree(data, tmp_path / "data"), 1 if devices > 1 else 0  # it gets features
  found = check_equal(monkeypatch, tmp_path, more_steps=more, data__directory=str(own), **fields)
  # The replies of step 2 are of the policy before the first update.
  assert found[1]["sampling/sampling_logp_difference/mean"] > 1e-3


def test_replies_are_sampled_while_the_update_runs_on_other_devices(data, tmp_path, monkeypatch):
  """Each update waits until the replies of the next step exist; so these must not wait for it."""
  use_devices(monkeypatch, 1)
  sampling, training = ({device} for device in jax.devices()[:2])
  sampled, events, before = threading.Event(), [], {id(x) for x in jax.live_arrays()}
  make, collect = train_step.make_rl_step, experience.Collector.collect

  def wait(x):
    events.append("in time" if sampled.wait(60) else "never sampled")
    return x

  @jax.jit
  def after_sampling(x):
    return jax.pure_callback(wait, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

  def make_waiting(*arguments, **options):
    update = make(*arguments, **options)

    def waiting(state, prompt, rollout, advantages, *rest, **more):
      everything = (state, prompt, rollout, advantages)
      assert all(x.devices() == training for x in jax.tree.leaves(everything))
      events.append("launched")
      return update(state, prompt, rollout, after_sampling(advantages), *rest, **more)

    return waiting

  def noted(self, params, step, timer):
    sampled.clear()
    arrays = jax.tree.leaves(params)
    assert all(x.devices() == sampling for x in arrays)
    held = [x for x in jax.live_arrays() if x.devices() == sampling and id(x) not in before]
    # Adam's moments would be twice as much more.
    assert sum(x.nbytes for x in held) < 2 * sum(x.nbytes for x in arrays)
    events.append(f"samples {step}")
    made = collect(self, params, step, timer)
    jax.block_until_ready(made.rollout)
    sampled.set()
    return made

  monkeypatch.setattr(train_step, "make_rl_step", make_waiting)
  monkeypatch.setattr(experience.Collector, "collect", noted)
  rl_loop.train(
    nano.config(data__directory=str(data), **OFF, rl__disjoint_meshes=True), tmp_path / "run"
  )
  order = [event for event in events if event != "in time"]
  assert order == ["samples 1", "launched", "samples 2", "launched"]
  assert events.count("in time") == STEPS


def test_what_can_not_be_halved_is_an_error(monkeypatch):
  make = disjoint_meshes.DisjointMeshes.make
  with pytest.raises(errors.InputError, match=r"even number of devices in each process.* 0 has 3"):
    make((-1, 1, 1, 1), jax.devices()[:3])
  with pytest.raises(errors.InputError, match="needs 8 devices, this run has 4 for each"):
    make((8, 1, 1, 1))
  chips = [
    types.SimpleNamespace(process_index=index // 4, device_kind="TPU v6 lite", id=index)
    for index in range(8)
  ]
  with monkeypatch.context() as patch:
    patch.setattr(jax, "devices", lambda: chips)
    with pytest.raises(errors.InputError, match="half of the chips of each of 2 hosts of TPU v6"):
      make((-1, 1, 1, 1))
  config = nano.config(rl__disjoint_meshes=True)
  with pytest.raises(errors.InputError, match=r"set rl.one_step_off_policy above 0"):
    config_checks.check(config)


def test_copies_keep_shardings_and_every_part_stays_in_its_process():
  meshes = disjoint_meshes.DisjointMeshes.make((2, 1, 1, 2))
  spec = jax.sharding.PartitionSpec("data", None, "tensor")
  x = jax.random.normal(jax.random.key(0), (6, 3, 4))
  placed = jax.device_put(x, jax.sharding.NamedSharding(meshes.training, spec))
  there = meshes.to_sampling({"x": placed, "none": None})
  assert there["x"].sharding == jax.sharding.NamedSharding(meshes.sampling, spec)
  np.testing.assert_array_equal(there["x"], x)
  back = meshes.to_training(there)["x"]
  assert back.sharding == placed.sharding and isinstance(back, jnp.ndarray)
  np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize(("group", "trains"), [(4, True), (1024, False)])
def test_the_half_that_trains_samples_nothing_and_the_other_has_no_optimizer(data, group, trains):
  fields = {"sft__steps": 0, "rl__one_step_off_policy": True, "rl__max_new_tokens": 64}
  fields |= {"rl__num_generations": group, "rl__batch_size": 8, "data__directory": str(data)}
  mesh = mesh_lib.make_mesh((-1, 1, 1, 1))
  one, half = (
    estimates.estimate(nano.config(**fields, rl__disjoint_meshes=is_on), mesh).memory
    for is_on in (False, True)
  )
  if trains:  # this half takes more
    assert (half.state, half.gradient, half.sampling) == (one.state, one.gradient, 0)
  else:
    assert half.state < one.state / 2 and (half.gradient, half.sampling) == (0, one.sampling)
