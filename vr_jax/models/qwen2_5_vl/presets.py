"""Sizes of the released Qwen2.5-VL models from their config.json, for use without their files.

Source: config.json of Qwen/Qwen2.5-VL-{3B,7B,72B}-Instruct on Hugging Face.
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


def _release(*, vision_mlp: int, tied: bool, **text: int) -> Mapping[str, Any]:
  return {
    "model_type": "qwen2_5_vl",
    **MEDIA_TOKENS,
    **text,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": tied,
    "vision_config": {
      "depth": 32,
      "hidden_size": 1280,
      "intermediate_size": vision_mlp,
      "num_heads": 16,
      "in_chans": 3,
      "out_hidden_size": text["hidden_size"],
      "patch_size": 14,
      "spatial_merge_size": 2,
      "temporal_patch_size": 2,
      "tokens_per_second": 2,
      "window_size": 112,
      "fullatt_block_indexes": [7, 15, 23, 31],
    },
  }


# By the name of the release, which is also the name of its directory.
RELEASES: Mapping[str, Mapping[str, Any]] = {
  "Qwen2.5-VL-3B-Instruct": _release(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=11008,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    vision_mlp=3420,
    tied=True,
  ),
  "Qwen2.5-VL-7B-Instruct": _release(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vision_mlp=3420,
    tied=False,
  ),
  "Qwen2.5-VL-72B-Instruct": _release(
    vocab_size=152064,
    hidden_size=8192,
    intermediate_size=29568,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vision_mlp=3456,
    tied=False,
  ),
}
