"""The network of a run, without its weights: static half, shapes and shardings of its parameters, how it samples.

All of it follows from a config, a model's sizes and a mesh, whose devices may be those of a machine that is not at hand.
"""

import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
from jaxtyping import Array, Bool, PyTree
import ml_collections

from vr_jax.models.qwen2_5_vl import config as model_config
from vr_jax.models.qwen2_5_vl import model as model_lib
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """A model on a mesh, as a recipe uses it.

  allowed [vocab]: tokens that a reply may hold. stop_tokens: those that end one.
  """

  config: ml_collections.ConfigDict
  mesh: jax.sharding.Mesh
  model: model_config.Config
  allowed: Bool[Array, "vocab"]
  stop_tokens: tuple[int, ...]

  @property
  def architecture(self) -> dict[str, Any]:
    """What a checkpoint's parameters fit: sizes, by name."""
    sizes = {"text": self.model.text, "vision": self.model.vision}
    flat = {f"{part}.{k}": v for part, s in sizes.items() for k, v in vars(s).items()}
    return {**flat, "tie_word_embeddings": self.model.tie_word_embeddings}

  @property
  def frozen(self) -> tuple[str, ...]:
    """Top-level names of the parameters that are not trained."""
    return ("vision",) if self.config.model.freeze_vision else ()

  @functools.cached_property
  def graph(self) -> nnx.GraphDef:
    """The static half of the model."""
    return nnx.split(nnx.eval_shape(self.random_model))[0]

  @functools.cached_property
  def abstract_params(self) -> PyTree:
    """Shapes, dtypes and shardings of the parameters, without the parameters."""
    params = nnx.split(nnx.eval_shape(self.random_model))[1]
    shardings = mesh_lib.param_shardings(params, self.mesh)
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings
    )

  def random_model(self) -> model_lib.Qwen2_5_VL:
    """The model with random weights of config.seed."""
    layout = mesh_lib.MeshLayout(self.mesh)
    return model_lib.Qwen2_5_VL(self.model, rngs=nnx.Rngs(self.config.seed), layout=layout)

  def decoding(self, **changes: Any) -> sampler.Decoding:
    """How the recipe samples; `changes` replace fields of it."""
    rl = self.config.rl
    fields = {
      "group": rl.group,
      "max_new_tokens": rl.max_new_tokens,
      "temperature": rl.temperature,
      "top_p": rl.top_p,
      "stop_tokens": self.stop_tokens,
    }
    return sampler.Decoding(**{**fields, **changes})


def with_section(
  read: model_config.Config, section: ml_collections.ConfigDict
) -> model_config.Config:
  """A model's sizes with what a recipe's section `model` says of them."""
  follows = section.text_follows or read.vision.text_follows
  vision = dataclasses.replace(read.vision, text_follows=follows)
  return dataclasses.replace(read, vision=vision, dtype=section.dtype, remat=section.remat)
