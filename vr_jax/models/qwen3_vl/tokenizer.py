"""Qwen3-VL's tokenizer: that of Qwen2.5-VL in its pieces and special tokens."""

import pathlib

import tokenizers

from vr_jax.models.common import tokenizer as tokenizer_lib
from vr_jax.models.qwen2_5_vl import tokenizer as shared

SPECIAL_TOKENS = shared.SPECIAL_TOKENS
train_tokenizer = shared.train_tokenizer
config_fields = shared.config_fields


def load_tokenizer(path: str | pathlib.Path) -> tokenizers.Tokenizer:
  """Loads a tokenizer.json, also from a directory; InputError if it is another model's."""
  return tokenizer_lib.load_tokenizer(path, needed=shared.NEEDED, owner="Qwen3-VL")
