"""The tensors of a Hugging Face file for each parameter of Qwen3-VL.

Names are those of released models without their prefixes, which `bare` strips.
"""

from vr_jax.models.common import weight_mapping
from vr_jax.models.qwen3_vl import config as config_lib

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"

# Our parameter -> the file's tensor, with {} for the layer.
NAMES = {
  "text.embedding": EMBEDDING,
  "text.head": HEAD,
  "text.norm": "norm.weight",
  "text.layers.norm1": "layers.{}.input_layernorm.weight",
  "text.layers.query": "layers.{}.self_attn.q_proj.weight",
  "text.layers.query_norm": "layers.{}.self_attn.q_norm.weight",
  "text.layers.key": "layers.{}.self_attn.k_proj.weight",
  "text.layers.key_norm": "layers.{}.self_attn.k_norm.weight",
  "text.layers.value": "layers.{}.self_attn.v_proj.weight",
  "text.layers.out": "layers.{}.self_attn.o_proj.weight",
  "text.layers.norm2": "layers.{}.post_attention_layernorm.weight",
  "text.layers.gate": "layers.{}.mlp.gate_proj.weight",
  "text.layers.up": "layers.{}.mlp.up_proj.weight",
  "text.layers.down": "layers.{}.mlp.down_proj.weight",
  "vision.patch": "visual.patch_embed.proj.weight",
  "vision.patch_bias": "visual.patch_embed.proj.bias",
  "vision.positions": "visual.pos_embed.weight",
  "vision.blocks.norm1": "visual.blocks.{}.norm1.weight",
  "vision.blocks.norm1_bias": "visual.blocks.{}.norm1.bias",
  "vision.blocks.qkv": "visual.blocks.{}.attn.qkv.weight",
  "vision.blocks.qkv_bias": "visual.blocks.{}.attn.qkv.bias",
  "vision.blocks.out": "visual.blocks.{}.attn.proj.weight",
  "vision.blocks.out_bias": "visual.blocks.{}.attn.proj.bias",
  "vision.blocks.norm2": "visual.blocks.{}.norm2.weight",
  "vision.blocks.norm2_bias": "visual.blocks.{}.norm2.bias",
  "vision.blocks.up": "visual.blocks.{}.mlp.linear_fc1.weight",
  "vision.blocks.up_bias": "visual.blocks.{}.mlp.linear_fc1.bias",
  "vision.blocks.down": "visual.blocks.{}.mlp.linear_fc2.weight",
  "vision.blocks.down_bias": "visual.blocks.{}.mlp.linear_fc2.bias",
}
for _module, _name in (
  ("merger", "visual.merger"),
  ("deepstack", "visual.deepstack_merger_list.{}"),
):
  for _ours, _theirs in (("norm", "norm"), ("hidden", "linear_fc1"), ("out", "linear_fc2")):
    NAMES[f"vision.{_module}.{_ours}"] = f"{_name}.{_theirs}.weight"
    NAMES[f"vision.{_module}.{_ours}_bias"] = f"{_name}.{_theirs}.bias"
TABLES = ("text.embedding", "text.head", "vision.positions")  # the same order here and in a file


class Qwen3Mapping(weight_mapping.WeightMapping):
  """See `WeightMapping`."""

  names = NAMES
  tables = TABLES
  merged_inputs = ("text.layers.out", "vision.blocks.out")
  head, embedding = HEAD, EMBEDDING

  def bare(self, name: str) -> str:
    """Strips `model.` and `language_model.`."""
    return name.removeprefix("model.").removeprefix("language_model.")

  def released(self, name: str) -> str:
    """Adds `model.` and `language_model.`."""
    if name.startswith("lm_head."):
      return name
    return f"model.{name}" if name.startswith("visual.") else f"model.language_model.{name}"

  def module(self, parameter: str) -> str:
    """Adds `model.visual` or `model.language_model`."""
    return self.released(NAMES[parameter].removesuffix(".weight"))

  def file_shape(
    self, config: config_lib.Qwen3VLConfig, parameter: str, shape: tuple[int, ...]
  ) -> tuple[int, ...] | None:
    """The patch embedding is a convolution in a file."""
    if parameter != "vision.patch":
      return None
    vision = config.vision
    size = (vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    return shape[1], vision.in_channels, *size
