"""Attention of replies in episodes that forget earlier turns.

Plain products with a mask over all keys, on every platform. Forgotten keys get weight 0 exactly, so
they have no influence. Replies that forget nothing use the other modules.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models.common import attention_xla


def attend_replies(
  query: Float[Array, "batch group time heads head_dim"],
  index: Int[Array, "time"],
  prefix_key: Float[Array, "batch prefix kv_heads head_dim"],
  prefix_value: Float[Array, "batch prefix kv_heads head_dim"],
  prefix_valid: Bool[Array, "batch prefix"],
  own_key: Float[Array, "batch group all_time kv_heads head_dim"],
  own_value: Float[Array, "batch group all_time kv_heads head_dim"],
  own_valid: Bool[Array, "batch group all_time"],
  visible_from: Int[Array, "batch group time"],
  *,
  kept: int,
  logits: int,
) -> Float[Array, "batch group time heads head_dim"]:
  """Like `attention_xla.attend_replies`, but the own reply is visible only from `visible_from` on.

  Where that is above 0, only the first `kept` tokens of the prompt are attended to. Replies run one
  after the other.
  """

  def attend_prompt(inputs: tuple[Array, ...]) -> Array:
    query, visible_from, key, value, valid, *prompt = inputs

    def attend_reply(inputs: tuple[Array, ...]) -> Array:
      query, visible_from, key, value, valid = inputs
      places = jnp.arange(key.shape[0])
      seen = valid & (places <= index[:, None]) & (places >= visible_from[:, None])
      return _attend(query, visible_from, prompt, (key, value), seen, kept, logits)

    return jax.lax.map(attend_reply, (query, visible_from, key, value, valid))

  return jax.lax.map(
    attend_prompt,
    (query, visible_from, own_key, own_value, own_valid, prefix_key, prefix_value, prefix_valid),
  )


def _attend(
  query: Float[Array, "queries heads head_dim"],
  visible_from: Int[Array, "queries"],
  prompt: tuple[Array, Array, Array] | list[Array],
  own: tuple[Array, Array],
  seen: Bool[Array, "queries keys"],
  kept: int,
  logits: int,
) -> Float[Array, "queries heads head_dim"]:
  """One softmax over the keys of a prompt and of its reply. seen: mask of the reply's keys."""
  prompt_mask = prompt[2] & ((visible_from[:, None] == 0) | (jnp.arange(len(prompt[2])) < kept))
  mask = jnp.concatenate([prompt_mask, seen], axis=1)
  key, value = (jnp.concatenate([prompt[n], own[n]])[None] for n in (0, 1))

  def attend_chunk(query: Array, mask: Array) -> Array:
    return attention_xla.softmax(query[None], key, value, mask[None])[0]

  size = logits // (query.shape[1] * mask.shape[1])
  return attention_xla.in_chunks(attend_chunk, (query, mask), (0, 0), size)
