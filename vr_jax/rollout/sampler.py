"""Sampling: prompts -> groups of replies, with a key/value cache and one prefill per prompt."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vr_jax import records
from vr_jax.rollout import forward, vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """How replies are drawn. Hashable: a static argument of the jitted sampler.

  temperature 0 is greedy. `top_p` keeps the smallest set of tokens whose probability reaches it. A reply ends with one
  of `stop_tokens`, which belongs to it, or after `max_new_tokens`.
  """

  group: int
  max_new_tokens: int
  temperature: float
  top_p: float
  stop_tokens: tuple[int, ...]


@functools.partial(jax.jit, static_argnames=("graph", "decoding"))
def sample(
  graph: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  allowed: Bool[Array, "vocab"],
  key: Key[Array, ""],
  *,
  decoding: Decoding,
) -> records.Rollout:
  """Draws `decoding.group` replies to each prompt.

  Each row has a key of its own, folded from `key`, its prompt's and its group's index: what is drawn for a row does not
  depend on how long the others run. Decoding ends when every reply has. The log-probs are those of the distribution at
  the temperature, before top-p (at temperature 0: at temperature 1), with media tokens taken out; this is what
  `forward.reply_log_probs` computes for the same tokens.
  """
  model = nnx.merge(graph, params)
  prompts, group, time = prompt.tokens.shape[0], decoding.group, decoding.max_new_tokens
  prefix = model.prefill(prompt)
  row_keys = _row_keys(key, prompts, group)
  stops = jnp.array(decoding.stop_tokens)
  hidden = jnp.broadcast_to(prefix.hidden[:, None], (prompts, group, prefix.hidden.shape[-1]))
  blank = jnp.zeros((prompts, group, time))
  start = (
    jnp.int32(0),
    hidden,
    model.start_cache(prefix, group, time),
    blank.astype(jnp.int32),
    blank,
    jnp.zeros((prompts, group), bool),
    jnp.zeros((prompts, group), jnp.int32),
  )

  def unfinished(carry: PyTree) -> Array:
    index, *_, done, _ = carry
    return (index < time) & ~done.all()

  def step(carry: PyTree) -> PyTree:
    index, hidden, cache, tokens, log_probs, done, lengths = carry
    logits = forward.token_logits(model, hidden, allowed, decoding.temperature or 1.0)
    token, log_prob = _draw(logits, row_keys, index, decoding)
    token, log_prob = jnp.where(done, 0, token), jnp.where(done, 0, log_prob)
    tokens = jax.lax.dynamic_update_index_in_dim(tokens, token, index, axis=2)
    log_probs = jax.lax.dynamic_update_index_in_dim(log_probs, log_prob, index, axis=2)
    lengths = lengths + ~done
    done = done | (token[..., None] == stops).any(axis=-1)
    hidden, cache = model.decode(prefix, cache, token, index)
    return index + 1, hidden, cache, tokens, log_probs, done, lengths

  *_, tokens, log_probs, _, lengths = jax.lax.while_loop(unfinished, step, start)
  sampled = jnp.arange(time) < lengths[..., None]
  kind = jnp.where(sampled, int(records.Kind.MODEL), int(records.Kind.PAD))
  return records.Rollout(tokens=tokens, log_probs=log_probs, kind=kind, turn=jnp.zeros_like(tokens))


def _row_keys(key: Key[Array, ""], prompts: int, group: int) -> Key[Array, "prompts group"]:
  def of_prompt(prompt: Array) -> Array:
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(key, prompt)))(
      jnp.arange(group)
    )

  return jax.vmap(of_prompt)(jnp.arange(prompts))


def _draw(
  logits: Float[Array, "prompts group vocab"],
  row_keys: Key[Array, "prompts group"],
  index: Int[Array, ""],
  decoding: Decoding,
) -> tuple[Int[Array, "prompts group"], Float[Array, "prompts group"]]:
  log_probs = jax.nn.log_softmax(logits)
  if decoding.temperature == 0:
    token = jnp.argmax(logits, axis=-1)
  else:
    kept = nucleus(log_probs, decoding.top_p) if decoding.top_p < 1 else log_probs

    def draw_row(key: Array, row: Array) -> Array:
      return jax.random.categorical(jax.random.fold_in(key, index), row)

    token = jax.vmap(jax.vmap(draw_row))(row_keys, kept)
  token = token.astype(jnp.int32)
  return token, jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]


def nucleus(
  log_probs: Float[Array, "prompts group vocab"], top_p: float
) -> Float[Array, "prompts group vocab"]:
  """Log-probs with all but the most likely tokens, those whose mass first reaches `top_p`, made impossible.

  The most likely token always stays. Ties at the edge stay together. Source: Holtzman et al., arXiv 1904.09751.
  """
  ordered = jnp.sort(log_probs, axis=-1, descending=True)
  mass_before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
  inside = (mass_before < top_p) | (mass_before <= 0)
  edge = jnp.where(inside, ordered, jnp.inf).min(axis=-1, keepdims=True)
  return jnp.where(log_probs >= edge, log_probs, vocabulary.IMPOSSIBLE)
