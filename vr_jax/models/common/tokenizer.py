"""Training of byte-level BPE tokenizers, and loading of any tokenizer from a file."""

from collections.abc import Iterable, Sequence
import pathlib

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from vr_jax import errors

# How text is split before bytes are merged: contractions, words with one preceding character,
# single digits, punctuation, spaces.
# Source: tokenizer.json of Qwen2.
PIECES = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(
  texts: Iterable[str], vocab_size: int, *, special_tokens: Sequence[str]
) -> tokenizers.Tokenizer:
  """Trains a tokenizer; the same texts in the same order give the same tokenizer.

  Ids are the 256 bytes, then the merges, then the special tokens. Short texts may give fewer than
  `vocab_size` entries, so size a model by the tokenizer (`ModelFamily.tokenizer_fields`).

  Raises:
    InputError: `vocab_size` leaves no room for bytes and special tokens.
  """
  smallest = 256 + len(special_tokens)
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
    vocab_size=vocab_size - len(special_tokens),
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  tokenizer.add_special_tokens(list(special_tokens))
  return tokenizer


def load_tokenizer(
  path: str | pathlib.Path, *, needed: Sequence[str], owner: str
) -> tokenizers.Tokenizer:
  """Reads a tokenizer.json, or the one in a model directory.

  Raises:
    InputError: the file is missing or not a tokenizer, or it lacks one of the special tokens in
      `needed`, so that it is not a tokenizer of `owner`.
  """
  path = pathlib.Path(path)
  path = path / "tokenizer.json" if path.is_dir() else path
  if not path.is_file():
    raise errors.InputError(f"{path}: no such file; a model directory holds a tokenizer.json")
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except BaseException as error:  # the library raises anything for an invalid file, or panics
    if isinstance(error, KeyboardInterrupt | SystemExit):
      raise
    raise errors.InputError(f"{path}: not a tokenizer ({error}); download it again") from error
  for token in needed:
    if tokenizer.token_to_id(token) is None:
      raise errors.InputError(f"{path}: has no token {token}; it is not {owner}'s tokenizer")
  return tokenizer
