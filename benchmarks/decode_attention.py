"""What a decoding step reads with attention in the kernel, against plain products.

Compiles the decoding loop of released models for TPUs that are not there, in both ways, with
weights in bfloat16 and heads split over `--tensor` devices. Prints a line for each chip and model,
with numbers of one device, layer and token. Embedding, output matrix and what is done once for all
tokens are left out:

keys      MB of keys and values, each counted once: of the prompt, and of half of all replies
plain     MB of attention by launch/costs.py with plain products
kernel    the same in the kernel: what it states, with replies that are half full
others    MB of all else, mainly weights; the same in both
us        microseconds of attention: plain products by XLA's estimated cycles, as far as the whole
          loops differ, and their bytes at peak bandwidth; the kernel, for which XLA estimates no
          cycles, at peak bandwidth
step      bytes of all, plain over kernel

Nothing is measured.

  python -m benchmarks.decode_attention [--chips=v5e,v5p,v6e] [--models=NAME,…] [--tensor=2]
    [--prompts=4] [--group=8] [--prefix=8448] [--reply=1024]
"""

import argparse
from collections.abc import Mapping
import dataclasses
import functools
import json
from typing import Any, cast

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from launch import abstract_state, chips, costs, hlo, topology
from vr_jax.models import interface, registry
from vr_jax.models.common import kv_cache
from vr_jax.models.common import slots as slots_lib
from vr_jax.parallel import mesh as mesh_lib

MODELS = "Qwen2.5-VL-3B-Instruct,Qwen2.5-VL-7B-Instruct,Qwen3-VL-8B-Instruct"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeShapes:
  """Sizes of a decoding loop."""

  prompts: int
  group: int
  prefix: int
  reply: int


def main() -> None:
  """Prints JSON lines."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--chips", default="v5e,v5p,v6e")
  parser.add_argument("--models", default=MODELS)
  parser.add_argument("--tensor", type=int, default=2, help="devices that heads are split over")
  parser.add_argument("--prompts", type=int, default=4, help="of each device")
  parser.add_argument("--group", type=int, default=8)
  parser.add_argument("--prefix", type=int, default=8448)
  parser.add_argument("--reply", type=int, default=1024)
  given = parser.parse_args()
  topology.prepare()
  names = [field.name for field in dataclasses.fields(DecodeShapes)]
  shapes = DecodeShapes(**{name: getattr(given, name) for name in names})
  for chip in given.chips.split(","):
    where = topology.find(f"{chip}:{chips.CHIPS[chip].shapes[0]}")
    for name in given.models.split(","):
      row = compare(registry.preset_config(name), where, shapes, given.tensor)
      print(json.dumps({"chip": chip, "model": name, "tensor": given.tensor, **row}), flush=True)


def compare(
  config: interface.ModelConfig, where: topology.Slice, shapes: DecodeShapes, tensor: int
) -> Mapping[str, float]:
  """The numbers of a line."""
  chip, a_token = where.chip, shapes.reply * config.text_sizes.layers
  plain, kernel = (
    count(config, where, shapes, tensor, attention) for attention in ("xla", "pallas")
  )
  others = kernel.bytes - kernel.kernel_bytes
  other_cycles = kernel.cycles
  width = config.text_sizes.kv_width // tensor * jnp.dtype("bfloat16").itemsize
  keys = shapes.prompts * (shapes.prefix + shapes.group * shapes.reply // 2) * width
  us = 1e6 / a_token
  found = {
    "keys_mb": keys / 1e6,
    "plain_mb": (plain.bytes - others) / a_token / 1e6,
    "kernel_mb": kernel.kernel_bytes / a_token / 1e6,
    "others_mb": others / a_token / 1e6,
    "plain_us": us * (plain.cycles - other_cycles) / chip.clock,
    "plain_us_at_peak": us * (plain.bytes - others) / chip.bandwidth,
    "kernel_us_at_peak": us * kernel.kernel_bytes / chip.bandwidth,
    "step": plain.bytes / kernel.bytes,
  }
  return {name: round(value, 2) for name, value in found.items()}


def count(
  config: interface.ModelConfig,
  where: topology.Slice,
  shapes: DecodeShapes,
  tensor: int,
  attention: str,
) -> costs.Costs:
  """Costs of a loop over all tokens of the replies. attention: xla or pallas."""
  mesh = mesh_lib.make_mesh((1, 1, 1, tensor), where.devices[:tensor])
  layout = mesh_lib.MeshLayout(mesh)
  options: Any = {"dtype": "bfloat16", "decode_attention": attention}
  config = dataclasses.replace(cast(Any, config), **options)
  family = registry.family_of(config)

  def make() -> nnx.Module:
    return family.make_model(config, rngs=nnx.Rngs(0), layout=layout)

  graphdef, params = nnx.split(nnx.eval_shape(make))
  params = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=sharding),
    params,
    mesh_lib.param_shardings(params, mesh),
  )
  slots = shapes.prompts * shapes.group

  def decode(
    params: PyTree,
    prefix: kv_cache.PrefixKV,
    prompt: Int[Array, "slots"],
    group_index: Int[Array, "slots"],
  ) -> Array:
    model: Any = nnx.merge(graphdef, params)
    constants = model.prepare_decode(prefix)
    decode_slots = slots_lib.DecodeSlots(prompt=prompt, group_index=group_index, group=shapes.group)

    def step(carry: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
      index, tokens, cache = carry
      hidden, cache = model.decode(constants, cache, tokens, index, decode_slots)
      return index + 1, jnp.argmax(hidden, axis=-1).astype(jnp.int32), cache

    def unfinished(carry: tuple[Array, Array, Any]) -> Array:
      return (carry[0] < shapes.reply) & (carry[1].max() >= 0)  # as a sampler, it asks the tokens

    cache = model.init_cache(prefix, slots, shapes.reply)
    begin = jnp.int32(0), jnp.zeros(slots, jnp.int32), cache
    return jax.lax.while_loop(unfinished, step, begin)[1]

  replies = jax.ShapeDtypeStruct(
    (slots,), jnp.int32, sharding=layout.sharding(("slots",), (slots,))
  )
  program = jax.jit(decode).lower(params, abstract_prefix(config, layout, shapes), *[replies] * 2)
  module = hlo.parse(hlo.text_of(program.compile()))
  return costs.count(module, turns=shapes.reply)[1]


def abstract_prefix(
  config: Any, layout: mesh_lib.MeshLayout, shapes: DecodeShapes
) -> kv_cache.PrefixKV:
  """Shapes of the keys and values of the prompts."""
  text, lead = config.text, (shapes.prompts, shapes.prefix)

  def struct(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)

  keys = struct(config.text_sizes.layers, *lead, text.num_key_value_heads, text.head_dim)
  prefix = kv_cache.PrefixKV(
    keys=keys,
    values=keys,
    valid=struct(*lead, dtype=jnp.bool_),
    hidden=struct(shapes.prompts, config.hidden_size),
    next_position=struct(shapes.prompts, dtype=jnp.int32),
  )
  place: Any = functools.partial(abstract_state.with_sharding, layout)
  return prefix.placed(place)


if __name__ == "__main__":
  main()
