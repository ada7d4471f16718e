"""Layouts of decoding: the same greedy replies in each, and weights that stay where they are."""

import dataclasses
import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import nano
from vr_jax import errors
from vr_jax.models.common import layers, weight_mapping
from vr_jax.parallel import decoding_layout
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import refill_sampler, sampler
from vr_jax.train import estimates, initialization, step_shapes

PROMPTS, GROUP = 8, 3
NETWORKS = {
  "tiny": {},
  # Of two frames, Qwen3-VL may show each larger than of eight.
  "tiny_qwen3vl": {"size": "tiny_qwen3vl", "model__patch_buckets": (64,)},
  "tiny_phi2": {"size": "tiny_phi2"},
  "adapters": {"model__lora__rank": 2, "model__lora__vision": ("qkv",)},
}


def _start(context, **changes):
  """Arguments of the sampler, and greedy decoding that ends some replies early."""
  stops = (*context.processor.stop_tokens, *range(60, 240))
  prompt = context.builder.prompt(context.builder.batch(nano.ragged_items(context, PROMPTS)))
  params = _opinionated(initialization.fresh_params(context))
  arguments = context.graphdef, params, prompt, context.allowed_tokens, jax.random.key(3)
  fields = {"group": GROUP, "max_new_tokens": 8, "temperature": 0.0, "slot_fractions": (0.5,)}
  return arguments, context.decoding(**{**fields, **changes}, stop_tokens=stops)


def _opinionated(params):
  """Sharpened parameters, with adapters that change every reply; fresh ones change none."""
  rng, flat = np.random.default_rng(0), weight_mapping.flat(nano.sharpened(params))
  for name, variable in flat.items():
    if name.endswith(layers.LORA_B):
      x = variable.get_value()
      drawn = 0.1 * rng.standard_normal(x.shape, np.float32)
      flat[name] = variable.replace(jax.device_put(drawn, x.sharding))
  return weight_mapping.unflat(flat)


def _replies(context):
  arguments, decoding = _start(context)
  return sampler.sample(*arguments, decoding=decoding)


@functools.cache
def _of_one_device(data, network):
  return np.asarray(_replies(nano.build(data, **NETWORKS[network])).tokens)


# The network of tiny (here nano) has two heads of keys, so that eight devices can't split them.
@pytest.mark.parametrize(
  ("network", "shape", "kind", "copies"),
  [
    ("tiny", (1, 8, 1, 1), "tensor", 1),
    ("tiny", (1, 8, 1, 1), "tensor", 2),
    ("tiny", (1, 8, 1, 1), "tensor", 4),
    ("tiny", (1, 4, 2, 1), "tensor", 1),
    ("tiny", (1, 4, 2, 1), "tensor", 2),
    ("tiny", (2, 2, 1, 2), "tensor", 1),
    ("tiny", (2, 2, 1, 2), "tensor", 2),
    ("tiny", (1, 4, 2, 1), "training", 0),
    ("tiny_qwen3vl", (1, 8, 1, 1), "tensor", 1),
    ("tiny_phi2", (1, 4, 1, 2), "tensor", 1),
    ("adapters", (2, 4, 1, 1), "tensor", 2),
  ],
)
def test_greedy_replies_are_those_of_one_device_in_every_layout(data, network, shape, kind, copies):
  changes = {"rl__decode_layout": kind, "rl__decode_copies": copies, **NETWORKS[network]}
  context = nano.build(data, mesh=shape, **changes)
  rollout = _replies(context)
  expected = _of_one_device(data, network)
  np.testing.assert_array_equal(mesh_lib.local_rows(rollout.tokens), expected)
  assert len(np.unique(expected)) > 5
  # What the update gets lies as training has it.
  rows = mesh_lib.spec_of(("prompts", None, None), expected.shape, context.mesh)
  training = jax.sharding.NamedSharding(context.mesh, rows)
  assert rollout.tokens.sharding.is_equivalent_to(training, 3)


@pytest.mark.parametrize("copies", [1, 2])
def test_a_device_has_a_part_of_the_weights_and_no_step_moves_them(data, copies):
  changes = {"rl__decode_layout": "tensor", "rl__decode_copies": copies}
  context = nano.build(data, mesh=(1, 8, 1, 1), **changes)
  (graphdef, params, prompt, allowed, key), decoding = _start(context)
  prefix, state = sampler._start(graphdef, params, prompt, key, decoding=decoding)
  params = sampler.decoding_params(graphdef, params)
  text, ways = params["text"], 8 // copies
  for name, whole in (("gate", (2, 32, 48 / ways)), ("down", (2, 48 / ways, 32))):
    x = text["layers"][name][...]
    assert x.sharding.shard_shape(x.shape) == whole
  query = text["layers"]["query"][...]
  assert query.sharding.shard_shape(query.shape) == (2, 32, 4 / 2, 8)
  layout = context.layout.decoding
  assert layout.ways("slots") == 4  # two devices share each slot
  assert prefix.keys.sharding.shard_shape(prefix.keys.shape)[1::2] == (PROMPTS / 4, 1)
  abstract = jax.tree.leaves(context.abstract_decoding_params)
  for planned, real in zip(abstract, jax.tree.leaves(params), strict=True):
    assert (planned.shape, planned.dtype) == (real.shape, real.dtype)
    assert planned.sharding.is_equivalent_to(real.sharding, real.ndim)
  program = sampler._decode.lower(
    graphdef, params, prefix, state, allowed, jnp.int32(0), decoding=decoding
  ).compile()
  whole = {x.shape for x in jax.tree.leaves(text) if x.ndim > 1}
  whole |= {shape[1:] for shape in whole if len(shape) > 2}
  moved = set(re.findall(r"= f32\[([\d,]+)\]\S* all-(?:gather|to-all)", program.as_text() or ""))
  assert moved
  assert not {tuple(map(int, dims.split(","))) for dims in moved} & whole


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_large_weights_are_never_whole_on_their_way(data, copies):
  changes = {"rl__decode_layout": "tensor", "rl__decode_copies": copies}
  context = nano.build(data, mesh=(1, 8, 1, 1), **changes)
  moved = sampler.changed_for_decoding.lower(context.graphdef, context.abstract_params)
  text = moved.compile().as_text() or ""
  made = re.findall(r"f32\[([\d,]+)\]\S* (?:all-gather|all-reduce|all-to-all)", text)
  assert made
  assert not {"2,32,48", "2,48,32", "448,32"} & set(made)


@pytest.mark.parametrize(
  ("slots", "copies"),
  [(8, 1), (128, 1), (1024, 2), (2048, 4), (100_000, 16)],
)
def test_many_slots_have_several_copies_of_the_weights(slots, copies):
  # A layer of Qwen2.5-VL-3B.
  shapes = {
    "query": ((36, 2048, 16, 128), ("layers", "embed", "heads", None)),
    "out": ((36, 16, 128, 2048), ("layers", "heads", None, "embed")),
    "gate": ((36, 2048, 11008), ("layers", "embed", "mlp")),
    "up": ((36, 2048, 11008), ("layers", "embed", "mlp")),
    "down": ((36, 11008, 2048), ("layers", "mlp", "embed")),
    "norm": ((36, 2048), ("layers", "embed")),
    "embedding": ((151936, 2048), ("vocab", "embed")),
  }
  params = nnx.State(
    {
      name: nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes)
      for name, (shape, axes) in shapes.items()
    }
  )
  weights = 36 * 2048 * (2 * 16 * 128 + 3 * 11008) + 151936 * 2048

  def cost(copies):  # bytes of memory, and five times those of two sums a layer over 16 devices
    summed = 2 * 36 * 2048 * (slots / copies)
    return 2 * weights * copies / 16 + 5 * 2 * (1 - copies / 16) * 2 * summed

  assert decoding_layout.choose_copies(params, 16, 16, slots) == copies
  assert copies == min((1, 2, 4, 8, 16), key=cost)


def test_copies_that_the_devices_do_not_divide_into_are_refused(data):
  context = nano.build(data, mesh=(1, 8, 1, 1), rl__decode_layout="tensor", rl__decode_copies=3)
  with pytest.raises(errors.InputError, match="decode_copies=3: not a divisor of 4"):
    _ = context.layout


class _OpenedError(Exception):
  """The slots have been opened, which is all that a test wants."""


@pytest.mark.parametrize("kind", ["tensor", "replicated"])
def test_the_estimated_keys_and_values_are_those_of_the_slots_that_the_sampler_opens(
  data, kind, monkeypatch
):
  context = nano.build(
    data, mesh=(1, 4, 1, 1), rl__decode_layout=kind, rl__decode_slots=6, rl__batch_size=PROMPTS
  )
  arguments, decoding = _start(context, slots=6)
  opened, open_slots = [], refill_sampler._open_slots

  def stop(*given, **named):
    opened.append(open_slots(*given, **named))
    raise _OpenedError

  monkeypatch.setattr(refill_sampler, "_open_slots", stop)
  with pytest.raises(_OpenedError):
    refill_sampler.sample_counting(*arguments, decoding=decoding)
  ((prefix, state),) = opened
  arrays = jax.tree.leaves((prefix.keys, prefix.values, state.cache))
  whole = step_shapes.make_step_shapes(context.config, context.model)
  shapes = dataclasses.replace(
    whole, group=GROUP, time=decoding.max_new_tokens, prefix=prefix.valid.shape[1]
  )
  expected = sum(x.addressable_shards[0].data.nbytes for x in arrays)
  assert estimates._cache_bytes(context, shapes) == expected


@pytest.mark.parametrize(
  ("fsdp", "processes", "kv_heads", "ways"),
  [
    (8, 1, 4, 4),
    (8, 2, 8, 4),  # four devices of a process: eight would share prompts over two
    (8, 1, 6, 2),
    (8, 8, 8, 1),
    (2, 1, 4, 2),
  ],
)
def test_heads_are_split_over_devices_of_the_same_processes(fsdp, processes, kv_heads, ways):
  owners = [frozenset([place * processes // fsdp]) for place in range(fsdp)]
  assert decoding_layout.heads_ways(owners, fsdp, kv_heads) == ways


def test_what_all_devices_do_not_divide_is_split_over_the_innermost_ones():
  weight = lambda shape, axes: nnx.Param(jnp.zeros(shape), axes=axes)  # noqa: E731
  params = nnx.State(
    {
      "up": weight((4, 12), ("embed", "mlp")),
      "key": weight((4, 4), ("embed", "kv_heads")),
      "head": weight((7, 4), ("vocab", "embed")),
    }
  )
  mesh = mesh_lib.make_mesh((1, 4, 1, 2))
  rules = decoding_layout.make(mesh, "tensor", params).decoding.rules
  assert rules["mlp"] == ("fsdp_heads", "sequence", "tensor")
  assert rules["vocab"] == ()
  assert rules["kv_heads"] == ("fsdp_heads", "tensor")


def test_one_device_has_one_layout():
  one = mesh_lib.make_mesh((1, 1, 1, 1), jax.devices()[:1])
  layout = decoding_layout.make(one, "tensor", nnx.State({}))
  assert layout.decoding == layout == mesh_lib.MeshLayout(one)
