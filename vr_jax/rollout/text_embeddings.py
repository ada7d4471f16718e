"""Embeds texts: the mean hidden state of their tokens behind some of a network's text layers.

Texts are passed through a network as replies to a prompt of a single token, the one that ends a
turn: networks give the first token of a sequence a large state of its own, which must not count in
a mean over few tokens. So every family can do it with the passes that it has.

Reconstruction (ours, no paper): mean over tokens, behind the final norm, of the first layers.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree
import numpy as np

from vr_jax import records
from vr_jax.models import family as family_lib
from vr_jax.models import interface
from vr_jax.models.common import lora, weight_mapping


def select_params(
  params: PyTree,
  family: family_lib.ModelFamily,
  layers: float,
  take: Callable[[Array, int | None, bool], Array],
) -> PyTree:
  """The parameters that embed texts: those of the embedding, the first text layers and the norm.

  layers: fraction of the text layers, in (0, 1]; their number is rounded up.
  take: called as take(array, count, is_adapter) for one array after the other. It gives the first
    `count` entries of a stack of layers, else (count is None) the whole array, wherever it is
    wanted.

  Returns a tree of the same structure; what is not needed is an empty array.
  """
  groups = family.parameter_groups
  unused = tuple(
    f"{name}." for group in ("vision", "connector", "head") for name in groups.get(group, ())
  )

  def select(name: str, variable: Any) -> Any:
    x = variable.get_value()
    if f"{name}.".startswith(unused):
      return variable.replace(jnp.zeros(0, x.dtype))
    stacked = variable.get_metadata()["axes"][0] == "layers"
    count = math.ceil(layers * len(x)) if stacked else None
    return variable.replace(take(x, count, lora.is_adapter(name)))

  return weight_mapping.unflat(
    {name: select(name, variable) for name, variable in weight_mapping.flat(params).items()}
  )


def start_prompt(processor: interface.Processor) -> records.Prompt:
  """The prompt of one token that texts follow."""
  encoded = processor.encode_tokens([processor.end_token], "the start of a text")
  prompt = processor.collate([encoded], prefix_buckets=(1,), frame_buckets=(0,), patch_buckets=(0,))
  nothing = processor.config.vision_shapes.features(np.zeros, 1, 0)
  return dataclasses.replace(prompt, vision=None, media=nothing)


def make_embed_fn(graphdef: nnx.GraphDef) -> Callable[..., Array]:
  """Makes a jitted `embed(params, prompt, tokens, valid)` -> [texts, embed], float32.

  params: of `select_params`.
  prompt: of `start_prompt`.
  tokens, valid: [texts, time], padded on the right. A text without tokens gets zeros.
  """

  def embed(
    params: PyTree,
    prompt: records.Prompt,
    tokens: Int[Array, "texts time"],
    valid: Bool[Array, "texts time"],
  ) -> Float[Array, "texts embed"]:
    model: interface.LanguageModel = nnx.merge(graphdef, params)
    hidden = model.forward_replies(model.prefill(prompt), tokens[None], valid[None])[0]
    total = jnp.where(valid[..., None], hidden.astype(jnp.float32), 0).sum(axis=1)
    return total / jnp.maximum(valid.sum(axis=1, keepdims=True), 1)

  return jax.jit(embed)
