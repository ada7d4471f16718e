"""Which tensors of a Hugging Face file each parameter is, and how the two layouts turn into each other.

Parameters of all layers are one stacked array here and one tensor a layer there. Matrices are [inputs…, outputs…] here
and [outputs, inputs] there. Names are those of the releases (`model.layers…`, `visual…`); newer versions of transformers
put further prefixes before them, which `bare` takes off.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

from flax import nnx
from jaxtyping import PyTree
import numpy as np

from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import model as model_lib

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"

# Our parameter -> the file's tensor, {} standing for the layer.
NAMES = {
  "text.embedding": EMBEDDING,
  "text.head": HEAD,
  "text.norm": "norm.weight",
  "text.layers.norm1": "layers.{}.input_layernorm.weight",
  "text.layers.query": "layers.{}.self_attn.q_proj.weight",
  "text.layers.query_bias": "layers.{}.self_attn.q_proj.bias",
  "text.layers.key": "layers.{}.self_attn.k_proj.weight",
  "text.layers.key_bias": "layers.{}.self_attn.k_proj.bias",
  "text.layers.value": "layers.{}.self_attn.v_proj.weight",
  "text.layers.value_bias": "layers.{}.self_attn.v_proj.bias",
  "text.layers.out": "layers.{}.self_attn.o_proj.weight",
  "text.layers.norm2": "layers.{}.post_attention_layernorm.weight",
  "text.layers.gate": "layers.{}.mlp.gate_proj.weight",
  "text.layers.up": "layers.{}.mlp.up_proj.weight",
  "text.layers.down": "layers.{}.mlp.down_proj.weight",
  "vision.patch": "visual.patch_embed.proj.weight",
  "vision.blocks.norm1": "visual.blocks.{}.norm1.weight",
  "vision.blocks.qkv": "visual.blocks.{}.attn.qkv.weight",
  "vision.blocks.qkv_bias": "visual.blocks.{}.attn.qkv.bias",
  "vision.blocks.out": "visual.blocks.{}.attn.proj.weight",
  "vision.blocks.out_bias": "visual.blocks.{}.attn.proj.bias",
  "vision.blocks.norm2": "visual.blocks.{}.norm2.weight",
  "vision.blocks.gate": "visual.blocks.{}.mlp.gate_proj.weight",
  "vision.blocks.gate_bias": "visual.blocks.{}.mlp.gate_proj.bias",
  "vision.blocks.up": "visual.blocks.{}.mlp.up_proj.weight",
  "vision.blocks.up_bias": "visual.blocks.{}.mlp.up_proj.bias",
  "vision.blocks.down": "visual.blocks.{}.mlp.down_proj.weight",
  "vision.blocks.down_bias": "visual.blocks.{}.mlp.down_proj.bias",
  "vision.merger.norm": "visual.merger.ln_q.weight",
  "vision.merger.hidden": "visual.merger.mlp.0.weight",
  "vision.merger.hidden_bias": "visual.merger.mlp.0.bias",
  "vision.merger.out": "visual.merger.mlp.2.weight",
  "vision.merger.out_bias": "visual.merger.mlp.2.bias",
}
TABLES = ("text.embedding", "text.head")  # [vocab, embed] on both sides
MERGED_INPUTS = ("text.layers.out", "vision.blocks.out")  # [heads, head_dim] is one axis in a file
ROWS = 64  # of a matrix that are turned at a time: a block and its transpose stay in the caches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
  """The tensors of one parameter.

  names: bare, one a layer, or the only one. shape: of one layer, ours; file_shape: the same in a file. inputs: how many
  leading axes of ours stand behind the others in a file; 0 where the order is the same.
  """

  names: tuple[str, ...]
  stacked: bool
  shape: tuple[int, ...]
  file_shape: tuple[int, ...]
  inputs: int

  def from_file(
    self, tensor: np.ndarray, index: tuple[slice, ...], target: np.ndarray
  ) -> np.ndarray:
    """Writes the part `index` (of our axes) of a file's tensor into `target`, in its dtype; returns it."""
    axes = self.shape[self.inputs :], self.shape[: self.inputs]
    source = tensor.reshape(*axes[0], *axes[1])
    source = source[(*index[self.inputs :], *index[: self.inputs])]
    if not self.inputs:
      target[...] = source
      return target
    for outer in np.ndindex(source.shape[: len(axes[0]) - 1]):
      rows, columns = source[outer], target[(..., *outer, slice(None))]
      for start in range(0, len(rows), ROWS):
        block = rows[start : start + ROWS].astype(target.dtype)
        columns[..., start : start + ROWS] = np.moveaxis(block, 0, -1)
    return target

  def to_file(self, values: np.ndarray) -> np.ndarray:
    """One layer of ours -> the file's tensor."""
    order = (*range(self.inputs, values.ndim), *range(self.inputs))
    return np.ascontiguousarray(values.transpose(order)).reshape(self.file_shape)


def abstract_params(config: config_lib.Config) -> PyTree:
  """Shapes and logical axes of a model's parameters, without the parameters."""
  return nnx.eval_shape(lambda: nnx.state(model_lib.Qwen2_5_VL(config, rngs=nnx.Rngs(0))))


def flat(params: PyTree) -> dict[str, nnx.Variable]:
  """Variables by dotted name, in the order of the tree."""
  return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(params)}


def unflat(flat_params: Mapping[str, nnx.Variable]) -> PyTree:
  """The tree of variables by dotted name."""
  return nnx.from_flat_state([(tuple(n.split(".")), v) for n, v in flat_params.items()])


def slots(config: config_lib.Config, flat_params: Mapping[str, nnx.Variable]) -> dict[str, Slot]:
  """The tensors of every parameter of a model, by the parameter's dotted name."""
  return {name: _slot(config, name, variable.shape) for name, variable in flat_params.items()}


def module(parameter: str) -> str:
  """The module of transformers' model that holds a weight, {} standing for the layer."""
  name = NAMES[parameter].removesuffix(".weight")
  return f"model.{name}" if name.startswith("visual.") else f"model.language_model.{name}"


def adapter_slots(parameter: str, shapes: Sequence[tuple[int, ...]]) -> tuple[Slot, Slot]:
  """The tensors of a weight's adapter, A then B, in a file of PEFT's; `shapes` are those of ours, layers included."""
  full = f"base_model.model.{module(parameter)}"

  def slot(end: str, shape: tuple[int, ...], leading: int) -> Slot:
    return Slot(
      names=tuple(f"{full.format(layer)}.{end}.weight" for layer in range(shape[0])),
      stacked=True,
      shape=shape[1:],
      file_shape=(math.prod(shape[1 + leading :]), math.prod(shape[1 : 1 + leading])),
      inputs=leading,
    )

  return slot("lora_A", shapes[0], inputs(parameter)), slot("lora_B", shapes[1], 1)


def by_tensor(slots_by_name: Mapping[str, Slot]) -> dict[str, Slot]:
  """The same by the bare names of the tensors."""
  return {name: slot for slot in slots_by_name.values() for name in slot.names}


def bare(name: str) -> str:
  """A tensor's name without the prefixes that come and go between versions."""
  return name.removeprefix("model.").removeprefix("language_model.").removeprefix("model.")


def released(name: str) -> str:
  """A bare name as the releases have it, which every version reads."""
  return name if name.startswith(("visual.", "lm_head.")) else f"model.{name}"


def inputs(parameter: str) -> int:
  """How many leading axes of a matrix (but that of layers) are its inputs."""
  return 2 if parameter in MERGED_INPUTS else 1


def _slot(config: config_lib.Config, parameter: str, shape: tuple[int, ...]) -> Slot:
  stacked = "{}" in NAMES[parameter]
  inner = shape[1:] if stacked else shape
  vector = parameter.endswith("_bias") or len(inner) == 1
  leading = 0 if vector or parameter in TABLES else inputs(parameter)
  if parameter == "vision.patch":
    vision = config.vision
    size = (vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    file_shape = (inner[1], vision.in_channels, *size)
  elif vector:
    file_shape = (math.prod(inner),)
  elif parameter in TABLES:
    file_shape = inner
  else:
    file_shape = (math.prod(inner[leading:]), math.prod(inner[:leading]))
  names = [NAMES[parameter].format(layer) for layer in range(shape[0] if stacked else 1)]
  return Slot(
    names=tuple(names), stacked=stacked, shape=inner, file_shape=file_shape, inputs=leading
  )
