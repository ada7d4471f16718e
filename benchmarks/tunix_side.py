"""The Tunix side of comparisons: its Qwen2 with our weights, and its sampler.

Prompts are texts of numbers, which are token ids.
"""

from collections.abc import Sequence
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Int
import numpy as np
from tunix.generate import sampler as sampler_lib
from tunix.models.qwen2 import model as model_lib

from benchmarks import workload
from vr_jax.models.common import weight_mapping
from vr_jax.models.qwen2_5_vl import config as config_lib


class Numbers:
  """A tokenizer for Tunix: words are token ids, the last two are the pad and the end token."""

  def __init__(self, vocabulary: int):
    self._vocabulary = vocabulary

  def encode(self, text: str) -> list[int]:
    """Token ids of a text."""
    return [int(word) for word in text.split()]

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of token ids."""
    return " ".join(map(str, tokens))

  def bos_id(self) -> int:
    """0, which adds nothing to prompts."""
    return 0

  def eos_id(self) -> int:
    """The end token; it is forbidden, so that no reply ends."""
    return self._vocabulary - 1

  def pad_id(self) -> int:
    """The pad token; it is forbidden."""
    return self._vocabulary - 2


class Sampler:
  """Tunix's sampler on every prompt of a batch, as often as it has replies."""

  def __init__(self, work: workload.Work):
    sizes, text = work.sizes, work.config.text
    self._mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), devices=jax.devices()[:1])
    rows = np.repeat(np.asarray(work.prompt.tokens), sizes.group, axis=0)
    numbers = Numbers(text.vocab_size)
    self._texts = [numbers.decode(row.tolist()) for row in rows]
    self._forbidden = np.flatnonzero(~np.asarray(work.allowed_tokens)).tolist()
    self._sizes, self._seeds = sizes, itertools.count()
    with jax.set_mesh(self._mesh):
      cache = sampler_lib.CacheConfig(
        cache_size=sizes.prefix + sizes.time,
        num_layers=text.num_hidden_layers,
        num_kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
      )
      self._sampler = sampler_lib.Sampler(_model(work), numbers, cache)

  def __call__(self, temperature: float) -> Int[np.ndarray, "rows time"]:
    """Replies from all tokens; temperature 0 is greedy."""
    drawn = {"temperature": temperature, "top_p": 1.0} if temperature else {}
    with jax.set_mesh(self._mesh):
      found = self._sampler(
        self._texts,
        max_generation_steps=self._sizes.time,
        max_prompt_length=self._sizes.prefix,
        forbidden_tokens=self._forbidden,
        seed=next(self._seeds),
        **drawn,
      )
    return np.stack([np.asarray(tokens)[: self._sizes.time] for tokens in found.tokens])


def _model(work: workload.Work) -> model_lib.Qwen2:
  """Tunix's network with our weights."""
  config = work.config
  text, flat = config.text, weight_mapping.flat(work.params)
  network = model_lib.Qwen2(_config(config), rngs=nnx.Rngs(0))
  weights = {name: np.asarray(variable.get_value()) for name, variable in flat.items()}

  def give(parameter: nnx.Param, values: np.ndarray) -> None:
    parameter.set_value(
      jax.device_put(
        values.reshape(parameter.shape).astype(config.dtype), parameter.get_value().sharding
      )
    )

  give(network.embedder.input_embedding, weights["text.embedding"])
  give(network.final_norm.w, weights["text.norm"])
  for number in range(text.num_hidden_layers):
    layer = network.layers[number]
    own = {
      name.removeprefix("text.layers."): values[number]
      for name, values in weights.items()
      if name.startswith("text.layers.")
    }
    give(layer.input_layernorm.w, own["norm1"])
    give(layer.post_attention_layernorm.w, own["norm2"])
    for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
      give(getattr(layer.attn, f"{short}_proj").w, own[name])
      give(getattr(layer.attn, f"{short}_bias"), own[f"{name}_bias"])
    give(layer.attn.o_proj.w, own["out"])
    for name in ("gate", "up", "down"):
      give(getattr(layer.mlp, f"{name}_proj").kernel, own[name])
  return network


def _config(config: config_lib.Qwen2_5_VLConfig) -> model_lib.ModelConfig:
  text = config.text
  return model_lib.ModelConfig(
    num_layers=text.num_hidden_layers,
    vocab_size=text.vocab_size,
    embed_dim=text.hidden_size,
    hidden_dim=text.intermediate_size,
    num_heads=text.num_attention_heads,
    head_dim=text.head_dim,
    num_kv_heads=text.num_key_value_heads,
    rope_theta=text.rope_theta,
    norm_eps=text.rms_norm_eps,
    use_tied_embedding=config.tie_word_embeddings,
    dtype=jnp.dtype(config.dtype),
    param_dtype=jnp.dtype(config.dtype),
  )
