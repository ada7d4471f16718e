"""Qwen2.5-VL's tokenizer: byte-level BPE, loaded from a file or trained on new text."""

from collections.abc import Iterable
import pathlib
from typing import cast

import tokenizers

from vr_jax.models.common import tokenizer as tokenizer_lib

SPECIAL_TOKENS = (
  "<|endoftext|>",
  "<|im_start|>",
  "<|im_end|>",
  "<|object_ref_start|>",
  "<|object_ref_end|>",
  "<|box_start|>",
  "<|box_end|>",
  "<|quad_start|>",
  "<|quad_end|>",
  "<|vision_start|>",
  "<|vision_end|>",
  "<|vision_pad|>",
  "<|image_pad|>",
  "<|video_pad|>",
)

NEEDED = (
  "<|endoftext|>",
  "<|im_start|>",
  "<|im_end|>",
  "<|vision_start|>",
  "<|vision_end|>",
  "<|image_pad|>",
  "<|video_pad|>",
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """See `common.tokenizer.train_tokenizer`; special tokens are ordered as in Qwen2.5."""
  return tokenizer_lib.train_tokenizer(texts, vocab_size, special_tokens=SPECIAL_TOKENS)


def load_tokenizer(path: str | pathlib.Path) -> tokenizers.Tokenizer:
  """Loads a tokenizer.json, also from a directory; InputError if it is another model's."""
  return tokenizer_lib.load_tokenizer(path, needed=NEEDED, owner="Qwen2.5-VL")


def config_fields(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
  """Config fields that depend on the tokenizer: `vocab_size` and ids of media tokens."""
  fields = {
    "vocab_size": tokenizer.get_vocab_size(),
    "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
    "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
    "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
    "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
  }
  return cast(dict[str, int], fields)  # load_tokenizer made sure that it has them all
