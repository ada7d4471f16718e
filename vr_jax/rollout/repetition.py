"""Ends replies that repeat themselves: they would go on to the limit of tokens.

A reply repeats itself if its last `window` tokens are one pattern, at least `count` times in a row.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax import records


@dataclasses.dataclass(frozen=True)
class RepetitionStop:
  """When a reply ends. Hashable, as a part of `sampler.Decoding`.

  window: tokens that have to be one pattern; 0: no reply ends so.
  count: the fewest repetitions of the pattern in them, at least 2 and at most `window`.
  """

  window: int = 0
  count: int = 4


def is_repeating(
  tokens: Int[Array, "slots window"], length: Int[Array, "*slots"], stop: RepetitionStop
) -> Bool[Array, "slots"]:
  """Whether replies repeat themselves.

  tokens: the last ones of each reply, the newest last.
  length: tokens that the reply has; of a shorter one, the first of `tokens` mean nothing.
  """
  place = jnp.arange(stop.window)
  period = jnp.arange(1, stop.window // stop.count + 1)[:, None]
  # A pattern of some period: each token is the one that many places before.
  earlier = tokens[:, jnp.maximum(place - period, 0)]
  same = (tokens[:, None] == earlier) | (place < period)
  return same.all(axis=-1).any(axis=-1) & (length >= stop.window)


def append(
  tokens: Int[Array, "slots window"], token: Int[Array, "slots"]
) -> Int[Array, "slots window"]:
  """The last tokens of replies after one more."""
  return jnp.concatenate([tokens[:, 1:], token[:, None]], axis=1)


@functools.partial(jax.jit, static_argnames=("stop_tokens", "max_new_tokens"))
def stopped_fraction(
  rollout: records.Rollout, *, stop_tokens: tuple[int, ...], max_new_tokens: int
) -> Float[Array, ""]:
  """The fraction of replies, over all turns, that ended because they repeat themselves.

  These are the replies below the limit of tokens whose last token does not end a reply.
  """
  tokens, turn = jnp.asarray(rollout.tokens), jnp.asarray(rollout.turn)
  sampled = jnp.asarray(rollout.kind) == int(records.Kind.MODEL)
  following = jnp.pad(sampled, ((0, 0), (0, 0), (0, 1)))[..., 1:]
  next_turn = jnp.pad(turn, ((0, 0), (0, 0), (0, 1)))[..., 1:]
  is_last = sampled & ~(following & (next_turn == turn))
  number = jnp.cumsum(sampled, axis=-1)  # of the sampled tokens, from 1
  # What earlier replies have; the maximum carries it on from each last token.
  before = jax.lax.cummax(jnp.where(is_last, number, 0), axis=2)
  before = jnp.pad(before, ((0, 0), (0, 0), (1, 0)))[..., :-1]
  stopped = is_last & (number - before < max_new_tokens)
  stopped &= ~(tokens[..., None] == jnp.asarray(stop_tokens)).any(axis=-1)
  return stopped.sum() / jnp.maximum(is_last.sum(), 1)
