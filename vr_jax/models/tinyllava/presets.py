"""Sizes of the released TinyLLaVA-Video model with Phi-2, for use without its files.

Source: Zhang199/TinyLLaVA-Video-Phi2-Naive-16-512 on Hugging Face; its parts are microsoft/phi-2
and google/siglip-so400m-patch14-384.
"""

from collections.abc import Mapping
from typing import Any

ORGANIZATION = "Zhang199"  # on the Hub

TOKENS: Mapping[str, int] = {"eos_token_id": 50256}

_PHI_2: Mapping[str, Any] = {
  "model_type": "phi",
  "vocab_size": 51200,
  "hidden_size": 2560,
  "intermediate_size": 10240,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 32,
  "layer_norm_eps": 1e-5,
  "rope_theta": 10000.0,
  "partial_rotary_factor": 0.4,
  "hidden_act": "gelu_new",
  "max_position_embeddings": 2048,
  "tie_word_embeddings": False,
}

_SO400M: Mapping[str, Any] = {
  "model_type": "siglip_vision_model",
  "hidden_size": 1152,
  "intermediate_size": 4304,
  "num_hidden_layers": 27,
  "num_attention_heads": 16,
  "image_size": 384,
  "patch_size": 14,
  "layer_norm_eps": 1e-6,
  "hidden_act": "gelu_pytorch_tanh",
}

# By the name of the release, which is also the name of its directory.
RELEASES: Mapping[str, Mapping[str, Any]] = {
  "TinyLLaVA-Video-Phi2-Naive-16-512": {
    "model_type": "tinyllava",
    "llm_model_name_or_path": "microsoft/phi-2",
    "vision_model_name_or_path": "google/siglip-so400m-patch14-384",
    "connector_type": "naiveresampler",
    "num_queries": 512,
    "num_resampler_layers": 3,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "patch",
    "tokenizer_model_max_length": 3072,
    "text_config": _PHI_2,
    "vision_config": _SO400M,
    **TOKENS,
  }
}
