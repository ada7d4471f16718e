"""A model whose next token depends on the last one alone; its samples can be derived by hand."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from vr_jax import records
from vr_jax.models import layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BigramPrefix:
  hidden: jax.Array

  def placed(self, place):
    return BigramPrefix(place(self.hidden, ("prompts", None)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BigramCache:
  """Nothing is to be kept."""

  def select_slots(self, layout, slots):
    return self

  def placed(self, place):
    return self

  def write_rows(self, layout, new, slots, starts, counts):
    return self

  def grow(self, layout, length):
    return self


class Bigram(nnx.Module):
  """`table` [vocab, vocab]: logits of the next token, a row for each last token."""

  def __init__(self, table):
    self.table = nnx.Param(jnp.asarray(table, jnp.float32))
    self.layout = layout.OneDevice()
    self.logit_chunk = len(table)

  def _hidden(self, tokens):
    return jax.nn.one_hot(tokens, self.table[...].shape[0])

  def prefill(self, prompt):
    last = (jnp.asarray(prompt.kind) != records.Kind.PAD).sum(axis=1) - 1
    tokens = jnp.take_along_axis(jnp.asarray(prompt.tokens), last[:, None], axis=1)[:, 0]
    return BigramPrefix(self._hidden(tokens))

  def forward_replies(self, prefix, tokens, valid, episode_inputs=None):
    return self._hidden(tokens)

  def forward_packed_replies(self, prefix, tokens, valid, packing, episode_inputs=None):
    return self._hidden(packing.pack(tokens))

  def decoding_params(self, *, int8_weights=False):
    return nnx.split(self)[1]

  def gather_for_slots(self, x, decode_slots):
    return jnp.take(x, decode_slots.prompt, axis=0, mode="clip")

  def init_cache(self, prefix, slots, length):
    return BigramCache()

  def prepare_decode(self, prefix):
    return prefix

  def encode_vision(self, vision):
    return jnp.zeros((len(vision), 0, self.table[...].shape[0]))

  def init_media_features(self, slots, frames, patches):
    return jnp.zeros((slots, 0, self.table[...].shape[0]))

  def prefill_observation(self, prefix, cache, shown, media, rows):
    return self.prefill(shown).hidden, cache

  def decode_later_turn(self, constants, past, recent, tokens, index, rows, decode_slots):
    return self._hidden(tokens), recent

  def logits(self, hidden):
    return hidden @ self.table[...]

  def decode(self, constants, cache, tokens, index, decode_slots):
    return self._hidden(tokens), cache

  def lm_head_weight(self):
    return self.table[...].T

  def lm_head_bias(self):
    return None


def split(table):
  """(graph, params) of a bigram model."""
  return nnx.split(Bigram(table))


def prompts(*tokens):
  """Prompts of these tokens each, padded on the right."""
  length = max(len(row) for row in tokens)
  rows = np.array([[*row, *[0] * (length - len(row))] for row in tokens], np.int32)
  kind = np.array(
    [[records.Kind.TEXT] * len(r) + [records.Kind.PAD] * (length - len(r)) for r in tokens],
    np.int32,
  )
  return records.Prompt(
    tokens=rows,
    kind=kind,
    positions=np.zeros((*rows.shape, 1), np.int32),
    next_position=np.array([len(r) for r in tokens], np.int32),
    media_index=np.full(rows.shape, -1, np.int32),
    vision=np.zeros((len(rows), 0, 4, 12), np.float32),
  )
