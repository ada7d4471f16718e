"""Phi-2's tokenizer: byte-level BPE, loaded from files or trained on new text."""

from collections.abc import Iterable
import pathlib
from typing import cast

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from vr_jax import errors, plain_json
from vr_jax.models.common import tokenizer as tokenizer_lib
from vr_jax.models.tinyllava import template

SPECIAL_TOKENS = (template.END,)
PARTS = ("vocab.json", "merges.txt")  # of a directory that was written by a slow tokenizer
ADDED = "added_tokens.json"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """See `common.tokenizer.train_tokenizer`; the last row of the vocabulary is left to media."""
  return tokenizer_lib.train_tokenizer(texts, vocab_size - 1, special_tokens=SPECIAL_TOKENS)


def load_tokenizer(path: str | pathlib.Path) -> tokenizers.Tokenizer:
  """Loads a tokenizer.json, also from a directory, or the files of a slow tokenizer in one.

  Raises InputError if there is none, or it is another model's.
  """
  directory = pathlib.Path(path)
  if (directory / "tokenizer.json").is_file() or not (directory / PARTS[0]).is_file():
    return tokenizer_lib.load_tokenizer(path, needed=SPECIAL_TOKENS, owner="Phi-2")
  return _from_parts(directory)


def _from_parts(directory: pathlib.Path) -> tokenizers.Tokenizer:
  """Makes the tokenizer of vocab.json and merges.txt, with added_tokens.json if there is one."""
  if missing := [name for name in PARTS if not (directory / name).is_file()]:
    raise errors.InputError(f"{directory / missing[0]}: no such file; download it, too")
  try:
    model = models.BPE.from_file(*(str(directory / name) for name in PARTS))
    path = directory / ADDED
    added = plain_json.parse(path.read_bytes()) if path.is_file() else {}
    ordered = sorted(added, key=added.__getitem__)
  except Exception as error:  # the library raises bare Exception for any invalid file
    raise errors.InputError(
      f"{directory}: {', '.join(PARTS)} are no tokenizer ({error}); download them again"
    ) from error
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
  if tokenizer.token_to_id(template.END) is None and template.END not in added:
    raise errors.InputError(
      f"{directory}: has no token {template.END}; it is not Phi-2's tokenizer"
    )
  tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=True) for text in ordered])
  tokenizer.add_special_tokens([template.END])
  for text in ordered:
    if tokenizer.token_to_id(text) != added[text]:
      raise errors.InputError(
        f"{directory / ADDED}: {text!r} is to be token {added[text]}, but follows as "
        f"{tokenizer.token_to_id(text)}; take all files from one model"
      )
  return tokenizer


def config_fields(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
  """Config fields that depend on the tokenizer: `vocab_size`, and the id of the end of a reply."""
  fields = {
    "vocab_size": tokenizer.get_vocab_size() + 1,  # the last row is for media
    "eos_token_id": tokenizer.token_to_id(template.END),
  }
  return cast(dict[str, int], fields)  # load_tokenizer made sure that it has the token
