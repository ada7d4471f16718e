"""The tensors of a Hugging Face file for each parameter of Qwen2.5-VL.

Names are those of released models (`model.layers…`, `visual…`). Newer versions of transformers add
prefixes, which `bare` strips.
"""

from vr_jax.models.common import weight_mapping
from vr_jax.models.qwen2_5_vl import config as config_lib

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"

# Our parameter -> the file's tensor, with {} for the layer.
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
TABLES = ("text.embedding", "text.head")  # [vocab, embed] here and in a file


class Mapping(weight_mapping.WeightMapping):
  """See `WeightMapping`."""

  names = NAMES
  tables = TABLES
  merged_inputs = ("text.layers.out", "vision.blocks.out")
  head, embedding = HEAD, EMBEDDING

  def bare(self, name: str) -> str:
    """Strips `model.` and `language_model.`."""
    return name.removeprefix("model.").removeprefix("language_model.").removeprefix("model.")

  def released(self, name: str) -> str:
    """Adds `model.` to names of the language model."""
    return name if name.startswith(("visual.", "lm_head.")) else f"model.{name}"

  def module(self, parameter: str) -> str:
    """Adds `model.visual` or `model.language_model`."""
    name = NAMES[parameter].removesuffix(".weight")
    return f"model.{name}" if name.startswith("visual.") else f"model.language_model.{name}"

  def file_shape(
    self, config: config_lib.Qwen2_5_VLConfig, parameter: str, shape: tuple[int, ...]
  ) -> tuple[int, ...] | None:
    """The patch embedding is a convolution in a file."""
    if parameter != "vision.patch":
      return None
    vision = config.vision
    size = (vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    return shape[1], vision.in_channels, *size
