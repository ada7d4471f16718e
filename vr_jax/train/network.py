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

from vr_jax import errors
from vr_jax.models.common import lora, weight_mapping
from vr_jax.models.qwen2_5_vl import config as model_config
from vr_jax.models.qwen2_5_vl import model as model_lib
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import sampler


def divided(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> ml_collections.ConfigDict:
  """A copy with the micro-batches that a run makes on this mesh: as many as it asks for, or one a prompt of each device."""
  copy = ml_collections.ConfigDict(config.to_dict(), type_safe=False)
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  for section, rows in ((copy.sft, copy.sft.batch), (copy.rl, copy.rl.prompts)):
    section.microbatches = max(1, min(section.microbatches, rows // ways))
  return copy


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
    adapters = {f"lora.{k}": v for k, v in vars(self.adapters).items()} if self.adapters else {}
    return {**flat, "tie_word_embeddings": self.model.tie_word_embeddings, **adapters}

  @functools.cached_property
  def adapters(self) -> lora.Adapters | None:
    """Those of config.model.lora; None where all weights are trained."""
    section = self.config.model.lora
    if not section.rank:
      return None
    chosen = {"text": tuple(section.text), "vision": tuple(section.vision)}
    return lora.Adapters(rank=section.rank, alpha=section.alpha, **chosen)

  @property
  def frozen(self) -> tuple[str, ...]:
    """Names of the parameters, or of what holds them, that are not trained: with adapters all others."""
    if self.adapters:
      return tuple(
        name for name in weight_mapping.flat(self.abstract_params) if not lora.is_adapter(name)
      )
    return ("vision",) if self.config.model.freeze_vision else ()

  @property
  def tower_frozen(self) -> bool:
    """Whether nothing of the vision tower is trained: what it makes of a prompt then stays the same for the whole run."""
    return not self.adapters.vision if self.adapters else self.config.model.freeze_vision

  @functools.cached_property
  def graph(self) -> nnx.GraphDef:
    """The static half of the model."""
    return nnx.split(nnx.eval_shape(self.random_model))[0]

  @functools.cached_property
  def abstract_params(self) -> PyTree:
    """Shapes, dtypes and shardings of the parameters, without the parameters."""
    params = nnx.eval_shape(self.random_params)
    shardings = mesh_lib.param_shardings(params, self.mesh)
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings
    )

  def random_model(self) -> model_lib.Qwen2_5_VL:
    """The model with random weights of config.seed."""
    layout = mesh_lib.MeshLayout(self.mesh)
    rngs = nnx.Rngs(self.config.seed)
    model = model_lib.Qwen2_5_VL(self.model, rngs=rngs, layout=layout)
    return lora.add(model, self.adapters, rngs=rngs) if self.adapters else model

  def random_params(self) -> PyTree:
    """Its parameters; beside adapters the others have config.model.lora.base_dtype."""
    params = nnx.split(self.random_model())[1]
    if not self.adapters:
      return params
    dtype, flat = self.config.model.lora.base_dtype, weight_mapping.flat(params)
    base = {n: v.replace(v.get_value().astype(dtype)) for n, v in flat.items()}
    return weight_mapping.unflat({n: flat[n] if lora.is_adapter(n) else base[n] for n in flat})

  def decoding(self, **changes: Any) -> sampler.Decoding:
    """How the recipe samples; `changes` replace fields of it."""
    rl = self.config.rl
    fields = {
      "group": rl.group,
      "max_new_tokens": rl.max_new_tokens,
      "temperature": rl.temperature,
      "top_p": rl.top_p,
      "stop_tokens": self.stop_tokens,
      "rungs": tuple(rl.rungs),
      "gather": rl.gather,
    }
    return sampler.Decoding(**{**fields, **changes})


def with_section(
  read: model_config.Config, section: ml_collections.ConfigDict
) -> model_config.Config:
  """A model's sizes with what a recipe's section `model` says of them."""
  follows = section.text_follows or read.vision.text_follows
  vision = dataclasses.replace(read.vision, text_follows=follows)
  fields = {name: section[name] for name in ("dtype", "remat", "attention", "logit_chunk")}
  return dataclasses.replace(read, vision=vision, **fields)


def check_context(config: ml_collections.ConfigDict, model: model_config.Config) -> None:
  """Raises InputError where a reply to the longest prompt could pass the model's context."""
  prompt, context = max(config.model.prefix_buckets), model.text.max_position_embeddings
  fields = [("rl.max_new_tokens", config.rl.max_new_tokens)]
  if config.sft.steps:
    fields.append(("sft.max_reply_tokens", config.sft.max_reply_tokens))
  if "traces" in config and config.traces.writer == "sampler":
    fields.append(("traces.max_tokens", config.traces.max_tokens))
  if "turns" in config:
    fields.append(("turns.time_buckets", max(config.turns.time_buckets)))
  for field, reply in fields:
    if prompt + reply > context:
      raise errors.InputError(
        f"--config.{field}={reply}: with prompts of up to {prompt} tokens (config.model.prefix_buckets) this passes "
        f"the model's context of {context}"
      )
