"""Sizes of the released Qwen3-VL models from their config.json, for use without their files.

Source: config.json of Qwen/Qwen3-VL-{2B,4B,8B,32B}-{Instruct,Thinking} on Hugging Face.
"""

from collections.abc import Mapping
from typing import Any

ORGANIZATION = "Qwen"  # on the Hub

MEDIA_TOKENS: Mapping[str, int] = {
  "vision_start_token_id": 151652,
  "vision_end_token_id": 151653,
  "image_token_id": 151655,
  "video_token_id": 151656,
}

VIDEO_PIXELS = (4096, 25165824)  # limits of a whole video in the released processor's files

SMALL_TOWER = {
  "depth": 24,
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "deepstack_visual_indexes": [5, 11, 17],
}
LARGE_TOWER = {
  "depth": 27,
  "hidden_size": 1152,
  "intermediate_size": 4304,
  "deepstack_visual_indexes": [8, 16, 24],
}


def _release(tower: Mapping[str, Any], *, tied: bool, **text: int) -> Mapping[str, Any]:
  return {
    "model_type": "qwen3_vl",
    **MEDIA_TOKENS,
    "tie_word_embeddings": tied,
    "text_config": {
      "model_type": "qwen3_vl_text",
      "vocab_size": 151936,
      "num_key_value_heads": 8,
      "head_dim": 128,
      "hidden_act": "silu",
      "attention_bias": False,
      "max_position_embeddings": 262144,
      "rms_norm_eps": 1e-6,
      "rope_theta": 5000000,
      "rope_scaling": {
        "rope_type": "default",
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
      },
      **text,
    },
    "vision_config": {
      "model_type": "qwen3_vl",
      **tower,
      "num_heads": 16,
      "hidden_act": "gelu_pytorch_tanh",
      "in_channels": 3,
      "patch_size": 16,
      "spatial_merge_size": 2,
      "temporal_patch_size": 2,
      "num_position_embeddings": 2304,
      "out_hidden_size": text["hidden_size"],
    },
  }


_SIZES: Mapping[str, Mapping[str, Any]] = {
  "2B": _release(
    SMALL_TOWER,
    tied=True,
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=28,
    num_attention_heads=16,
  ),
  "4B": _release(
    SMALL_TOWER,
    tied=True,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
  ),
  "8B": _release(
    LARGE_TOWER,
    tied=False,
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
  ),
  "32B": _release(
    LARGE_TOWER,
    tied=False,
    hidden_size=5120,
    intermediate_size=25600,
    num_hidden_layers=64,
    num_attention_heads=64,
  ),
}

# By the name of the release, which is also the name of its directory.
RELEASES: Mapping[str, Mapping[str, Any]] = {
  f"Qwen3-VL-{size}-{kind}": fields
  for size, fields in _SIZES.items()
  for kind in ("Instruct", "Thinking")
}
