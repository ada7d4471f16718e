"""Qwen2.5's tokenizer: byte-level BPE, read from a file or trained on one's own text."""

from collections.abc import Iterable
import pathlib

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from vr_jax import errors

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

# How Qwen2 cuts text before merging bytes: contractions, words with one sign before them, single digits, signs, spaces.
PIECES = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """Learns merges from texts; the same texts in the same order give the same tokenizer.

  Ids are the 256 bytes, then the merges, then the special tokens, as in Qwen2.5. Text too small for `vocab_size`
  entries gives fewer: size a model by the tokenizer (`config_fields`), not by what was asked for.

  Raises:
    InputError: `vocab_size` leaves no room for bytes and special tokens.
  """
  smallest = 256 + len(SPECIAL_TOKENS)
  if vocab_size < smallest:
    raise errors.InputError(f"vocab_size: {vocab_size} is less than the {smallest} that are needed")
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(PIECES), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size - len(SPECIAL_TOKENS),
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
  return tokenizer


def load_tokenizer(path: str | pathlib.Path) -> tokenizers.Tokenizer:
  """Reads a tokenizer.json, or the one in a model directory.

  Raises:
    InputError: no such file, not a tokenizer, or a special token of Qwen2.5-VL is not in it.
  """
  path = pathlib.Path(path)
  path = path / "tokenizer.json" if path.is_dir() else path
  if not path.is_file():
    raise errors.InputError(f"{path}: no such file; a model directory holds a tokenizer.json")
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises bare Exception for all that is wrong with a file
    raise errors.InputError(f"{path}: not a tokenizer ({error}); download it again") from error
  needed = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
  for token in (*needed, "<|image_pad|>", "<|video_pad|>"):
    if tokenizer.token_to_id(token) is None:
      raise errors.InputError(f"{path}: has no token {token}; it is not Qwen2.5-VL's tokenizer")
  return tokenizer


def config_fields(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
  """What a model's config takes from its tokenizer, by the config's names: `vocab_size` and the media tokens."""
  return {
    "vocab_size": tokenizer.get_vocab_size(),
    "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
    "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
    "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
    "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
  }
