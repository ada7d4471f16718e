"""The tensors of a released file for each parameter of TinyLLaVA-Video.

Names are those of released models without the prefixes of their parts, which `bare` strips.
"""

import re

from vr_jax.models.common import weight_mapping
from vr_jax.models.tinyllava import config as config_lib

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"

# Prefixes of the parts, here and in a file.
TEXT, TOWER, CONNECTOR = "language_model.model.", "vision_tower._vision_tower.", "connector."
SIGLIP = "vision_model."  # in a tower's names, but not in those of transformers 5

# Our parameter -> the file's tensor, with {} for the layer.
NAMES = {
  "text.embedding": EMBEDDING,
  "text.head": HEAD,
  "text.head_bias": "lm_head.bias",
  "text.norm": "final_layernorm.weight",
  "text.norm_bias": "final_layernorm.bias",
  "vision.patch": "tower.embeddings.patch_embedding.weight",
  "vision.patch_bias": "tower.embeddings.patch_embedding.bias",
  "vision.positions": "tower.embeddings.position_embedding.weight",
  "vision.connector.latents": "connector._connector.latents",
  "vision.connector.linear": "connector._connector.linear.weight",
  "vision.connector.linear_bias": "connector._connector.linear.bias",
  "vision.connector.norm": "connector._connector.norm.weight",
  "vision.connector.norm_bias": "connector._connector.norm.bias",
  "vision.connector.layers.query": "connector._connector.layers.{}.0.to_q.weight",
  "vision.connector.layers.key_value": "connector._connector.layers.{}.0.to_kv.weight",
  "vision.connector.layers.out": "connector._connector.layers.{}.0.to_out.weight",
  "vision.connector.layers.up": "connector._connector.layers.{}.1.1.weight",
  "vision.connector.layers.down": "connector._connector.layers.{}.1.3.weight",
}
for _ours, _theirs in (
  ("text.layers.norm", "layers.{}.input_layernorm"),
  ("text.layers.query", "layers.{}.self_attn.q_proj"),
  ("text.layers.key", "layers.{}.self_attn.k_proj"),
  ("text.layers.value", "layers.{}.self_attn.v_proj"),
  ("text.layers.out", "layers.{}.self_attn.dense"),
  ("text.layers.up", "layers.{}.mlp.fc1"),
  ("text.layers.down", "layers.{}.mlp.fc2"),
  ("vision.blocks.norm1", "tower.encoder.layers.{}.layer_norm1"),
  ("vision.blocks.query", "tower.encoder.layers.{}.self_attn.q_proj"),
  ("vision.blocks.key", "tower.encoder.layers.{}.self_attn.k_proj"),
  ("vision.blocks.value", "tower.encoder.layers.{}.self_attn.v_proj"),
  ("vision.blocks.out", "tower.encoder.layers.{}.self_attn.out_proj"),
  ("vision.blocks.norm2", "tower.encoder.layers.{}.layer_norm2"),
  ("vision.blocks.up", "tower.encoder.layers.{}.mlp.fc1"),
  ("vision.blocks.down", "tower.encoder.layers.{}.mlp.fc2"),
  ("vision.connector.layers.norm_media", "connector._connector.layers.{}.0.norm_media"),
  ("vision.connector.layers.norm_latents", "connector._connector.layers.{}.0.norm_latents"),
  ("vision.connector.layers.norm_mlp", "connector._connector.layers.{}.1.0"),
):
  NAMES[_ours], NAMES[f"{_ours}_bias"] = f"{_theirs}.weight", f"{_theirs}.bias"
TABLES = ("text.embedding", "text.head", "vision.positions", "vision.connector.latents")


class TinyLlavaMapping(weight_mapping.WeightMapping):
  """See `WeightMapping`."""

  names = NAMES
  tables = TABLES
  merged_inputs = ("text.layers.out", "vision.blocks.out", "vision.connector.layers.out")
  head, embedding = HEAD, EMBEDDING

  def bare(self, name: str) -> str:
    """Strips the prefix of the language model, and shortens that of the tower."""
    if name.startswith(TOWER):
      return f"tower.{name.removeprefix(TOWER).removeprefix(SIGLIP)}"
    return name.removeprefix("language_model.").removeprefix("model.")

  def released(self, name: str) -> str:
    """Adds the prefix of the part."""
    if name.startswith("tower."):
      return f"{TOWER}{SIGLIP}{name.removeprefix('tower.')}"
    if name.startswith(CONNECTOR):
      return name
    return f"language_model.{name}" if name.startswith("lm_head.") else f"{TEXT}{name}"

  def module(self, parameter: str) -> str:
    """The released name without its end."""
    return self.released(NAMES[parameter].removesuffix(".weight"))

  def unused(self, config: config_lib.TinyLlavaConfig, name: str) -> bool:
    """Layers of the tower behind the one whose output is taken, its last norm and its head."""
    layer = re.match(r"tower\.encoder\.layers\.(\d+)\.", name)
    vision = config.vision
    behind = layer and vision.depth <= int(layer[1]) < vision.num_hidden_layers
    return bool(behind) or name.startswith(("tower.post_layernorm.", "tower.head."))

  def file_shape(
    self, config: config_lib.TinyLlavaConfig, parameter: str, shape: tuple[int, ...]
  ) -> tuple[int, ...] | None:
    """The patch embedding is a convolution in a file."""
    if parameter != "vision.patch":
      return None
    vision = config.vision
    return shape[1], vision.num_channels, vision.patch_size, vision.patch_size
