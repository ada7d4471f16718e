"""Zigzag order of prompts that devices share: equal results, equal work. On 8 CPU devices.

Reference: the same computation on one device, float32. Tolerance: 1e-5 of the largest.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import model_builders as builders
import numpy as np
import pytest

from vr_jax.models import layout as layout_lib
from vr_jax.models import registry
from vr_jax.models.common import attention, attention_splash, zigzag
from vr_jax.parallel import mesh as mesh_lib


def layout_of(*shape):
  return mesh_lib.MeshLayout(mesh_lib.make_mesh(shape, jax.devices()[: int(np.prod(shape))]))


def assert_same(found, expected):
  for mine, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    scale = max(np.abs(theirs).max(), 1e-3)
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("ways", [1, 2, 3, 4, 7])
def test_every_device_has_the_same_pairs_of_queries_and_keys(ways):
  places = zigzag.order(2 * ways * 3, ways)
  assert sorted(places) == list(range(len(places)))
  parts = places.reshape(ways, -1)
  assert np.all(np.diff(parts, axis=1) > 0)
  assert len(set((parts + 1).sum(axis=1))) == 1
  x = np.arange(len(places))[None, :, None]
  np.testing.assert_array_equal(zigzag.gathered_in_order(jnp.asarray(x[:, places]), ways), x)


@pytest.mark.parametrize("shape", [(1, 2, 4, 1), (1, 2, 3, 1), (2, 1, 2, 2)])
def test_tokens_change_places_and_back(shape):
  layout, axes = layout_of(*shape), ("prompts", "prefix", None)
  x = jnp.arange(2 * 24 * 3).reshape(2, 24, 3)
  folded = jax.jit(functools.partial(zigzag.fold, axes=axes, layout=layout))(x)
  np.testing.assert_array_equal(folded, x[:, zigzag.order(24, shape[2])])
  back = jax.jit(functools.partial(zigzag.unfold, axes=axes, layout=layout))(folded)
  np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("backend", ["xla", "splash"])
def test_attention_in_zigzag_order_is_that_of_one_device_and_so_are_gradients(backend):
  layout, rng = layout_of(1, 2, 4, 1), np.random.default_rng(0)
  heads = {"query": 4, "key": 2, "value": 2}
  arrays = [jnp.asarray(rng.standard_normal((2, 48, n, 8), np.float32)) for n in heads.values()]
  valid = jnp.arange(48) < jnp.array([[48], [37]])
  axes = ("prompts", "prefix", None, None)

  def run(layout, arrays):
    attend = attention.Attention(layout, backend).prompts
    if not zigzag.fits(layout, valid.shape):
      return jnp.where(valid[..., None, None], attend(*arrays, valid), 0)
    move = functools.partial(zigzag.fold, layout=layout)
    arrays, folded = [move(x, axes) for x in arrays], move(valid, axes[:2])
    mixed = zigzag.unfold(attend(*arrays, valid, folded), axes, layout)
    return jnp.where(valid[..., None, None], mixed, 0)

  def both(layout):
    def loss(arrays):
      mixed = run(layout, arrays)
      return (mixed * jnp.sin(jnp.arange(mixed.size)).reshape(mixed.shape)).sum(), mixed

    return jax.jit(jax.grad(loss, has_aux=True))(arrays)

  assert_same(both(layout), both(layout_lib.OneDevice()))


def test_masks_of_the_kernel_let_all_devices_see_as_much_and_nothing_that_is_later():
  ways, keys = 4, 64
  seen = attention_splash.SeenKeys(group=1, keys=keys)
  parts = zigzag.order(keys, ways).reshape(ways, -1)
  for part in parts:
    whole = seen(seen.number(0, part)[:, None], np.arange(keys))
    np.testing.assert_array_equal(whole, np.arange(keys) <= part[:, None])
    assert whole.sum() == keys * (keys + 1) // 2 // ways
  computed = seen.blocks(parts, keys, (4, 4)).sum(axis=(1, 2))
  assert set(computed) == {8 * ways + 2}


@pytest.mark.parametrize("family", ["qwen3_vl", "tinyllava"])
def test_prefilled_prompts_are_those_of_one_device(family):
  loaded = builders.load(builders.FIRST_CASES[family])
  config, params = loaded.config, nnx.state(loaded)
  length = builders.prompt(builders.FIRST_CASES[family], config).tokens.shape[1]
  prompt = builders.prompt(
    builders.FIRST_CASES[family], config, spare=(-length % 8, 0, 0)
  )  # a multiple of two blocks a device

  def prefill(layout):
    make = registry.family_of(config).make_model
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0), layout=layout)))

    def loss(params):
      prefix = nnx.merge(graphdef, params).prefill(prompt)
      there = prefix.valid[None, ..., None, None]
      kept = [jnp.where(there, x, 0) for x in (prefix.keys, prefix.values)]
      return sum(jnp.square(x).mean() for x in (prefix.hidden, *kept)), (prefix.hidden, kept)

    return lambda params: jax.jit(jax.grad(loss, has_aux=True))(params)

  layout = layout_of(1, 2, 4, 1)
  assert zigzag.fits(layout, prompt.tokens.shape)
  split = jax.device_put(params, mesh_lib.param_shardings(params, layout.mesh))
  assert_same(prefill(layout)(split), prefill(layout_lib.OneDevice())(params))


def test_prompts_that_no_two_blocks_a_device_divide_stay_in_order():
  layout = layout_of(1, 2, 4, 1)
  assert not zigzag.fits(layout, (2, 36)) and zigzag.fits(layout, (2, 40))
  assert not zigzag.fits(layout_of(2, 4, 1, 1), (8, 64))
