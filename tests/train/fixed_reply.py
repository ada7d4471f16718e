"""A model whose weights are set so that it writes one and the same reply to every prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tokenizers

from vr_jax.models import qwen2_5_vl
from vr_jax.train import initialization, run_context


def save(context: run_context.RunContext, pieces: Sequence[str], directory: Path) -> Path:
  """Saves a Qwen2.5-VL that replies with these pieces of text, all different, and then ends.

  Each piece becomes a token.
  """
  tokenizer = tokenizers.Tokenizer.from_str(context.processor.tokenizer.to_str())
  tokenizer.add_tokens(list(pieces))
  config: Any = context.model
  assert config.tie_word_embeddings and tokenizer.get_vocab_size() <= config.vocab_size
  params = rewritten(initialization.fresh_params(context), tokenizer, pieces)
  qwen2_5_vl.save_pretrained(params, directory, config=config)
  tokenizer.save(str(directory / "tokenizer.json"))
  return directory


def rewritten(params: Any, tokenizer: tokenizers.Tokenizer, pieces: Sequence[str]) -> Any:
  """Parameters like these, of a model that replies with these pieces, each a token, and then ends.

  Attention adds nothing, and the tokens of the reply have one-hot embeddings; the first layer's
  feed-forward block adds that of the next token, which the tied output matrix reads. The newline,
  which ends the head of every reply, is followed by the first piece.
  """
  names = [*pieces, "<|im_end|>"]
  chain = [tokenizer.encode("\n").ids[-1], *map(tokenizer.token_to_id, names)]
  params = jax.tree.map(jnp.zeros_like, params)
  text, units = params["text"], jnp.arange(len(chain))
  text["embedding"][...] = text["embedding"][...].at[jnp.array(chain), units].set(1)
  for norm in (text["norm"], text["layers"]["norm1"], text["layers"]["norm2"]):
    norm[...] = jnp.ones_like(norm[...])
  for weight in (text["layers"]["gate"], text["layers"]["up"]):
    weight[...] = weight[...].at[0, units, units].set(1)
  down = text["layers"]["down"]
  down[...] = down[...].at[0, units[:-1], units[1:]].set(1)
  return params
