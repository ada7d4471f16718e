"""Log-probs and entropies over a large vocabulary, without all logits in memory at once.

`logprobs_chunked` scans the vocabulary, a chunk of rows of the output matrix at a time, and carries
the maximum and the sums of a softmax. Its backward pass computes the logits of each chunk again and
uses the normaliser that the forward pass kept. Neither pass has an array [positions, vocab], and a
row of the matrix gets its gradient in one piece, from all positions.

`logprobs_unchunked` computes the same in one chunk and keeps the logits.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models import layout as layout_lib

IMPOSSIBLE = -1e9  # finite, so that p log p of a forbidden token is 0 and not nan


def token_logits(
  hidden: Float[Array, "*batch embed"],
  rows: Float[Array, "rows embed"],
  allowed_tokens: Bool[Array, "rows"],
  temperature: float | Float[Array, "slots 1"],
  bias: Float[Array, "rows"] | None = None,
) -> Float[Array, "*batch rows"]:
  """Logits of some rows of the vocabulary divided by the temperature, float32.

  Tokens that are not allowed get `IMPOSSIBLE`.

  temperature: one number, or one for each of [slots] hidden states.
  bias: is added to the product of hidden states and rows, in the dtype of hidden states.
  """
  scores = _dot("...e,ve->...v", hidden, rows.astype(hidden.dtype))
  if bias is not None:
    scores = scores + bias.astype(hidden.dtype)
  return jnp.where(allowed_tokens, scores / temperature, IMPOSSIBLE)


def logprobs_unchunked(
  hidden: Float[Array, "*batch embed"],
  matrix: Float[Array, "vocab embed"],
  allowed_tokens: Bool[Array, "vocab"],
  tokens: Int[Array, "*batch"],
  temperature: float,
  bias: Float[Array, "vocab"] | None = None,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """The log-prob of each token, and the entropy (nats) of the distribution it is drawn from."""
  every = jax.nn.log_softmax(token_logits(hidden, matrix, allowed_tokens, temperature, bias))
  # No gather: XLA's partitioner ends the process on one along a split axis in `data_parts`.
  is_token = tokens[..., None] == jnp.arange(every.shape[-1])
  log_probs = jnp.where(is_token, every, 0).sum(axis=-1)
  return log_probs, -(jnp.exp(every) * every).sum(axis=-1)


def count_chunks(vocabulary: int, rows: int) -> int:
  """The smallest number of equal chunks with at most `rows` rows that a vocabulary divides into."""
  counts = [n for n in range(1, vocabulary + 1) if vocabulary % n == 0]
  return next(count for count in counts if vocabulary // count <= rows)


@dataclasses.dataclass(frozen=True)
class _Setting:
  """Static arguments. layout: placement of arrays; axes: logical axes of the positions."""

  chunks: int
  temperature: float
  layout: layout_lib.Layout
  axes: layout_lib.Axes


def logprobs_chunked(
  hidden: Float[Array, "*batch embed"],
  matrix: Float[Array, "vocab embed"],
  allowed_tokens: Bool[Array, "vocab"],
  tokens: Int[Array, "*batch"],
  temperature: float,
  bias: Float[Array, "vocab"] | None = None,
  *,
  chunks: int,
  layout: layout_lib.Layout,
  axes: layout_lib.Axes,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Same as `logprobs_unchunked`, but a chunk of the vocabulary at a time.

  chunks: how many; has to divide the vocabulary.
  axes: logical axes of batch.
  """
  return _scored(
    _Setting(chunks, temperature, layout, axes), hidden, matrix, bias, allowed_tokens, tokens
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scored(
  setting: _Setting,
  hidden: Array,
  matrix: Array,
  bias: Array | None,
  allowed_tokens: Array,
  tokens: Array,
) -> tuple[Array, Array]:
  return _forward(setting, hidden, matrix, bias, allowed_tokens, tokens)[0]


def _forward(
  setting: _Setting,
  hidden: Array,
  matrix: Array,
  bias: Array | None,
  allowed_tokens: Array,
  tokens: Array,
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
  """Results, and what the backward pass needs.

  The scan carries the maximum, the sum of exp(logit - maximum), the sum of that times
  (logit - maximum), and the logit of the token.
  """

  def of_chunk(carry: tuple[Array, ...], chunk: _Chunk) -> tuple[tuple, None]:
    top, mass, spread, chosen = carry
    logits, is_token = _chunk_logits(setting, hidden, tokens, chunk)
    highest = jnp.maximum(top, logits.max(axis=-1))
    old, below = jnp.exp(top - highest), logits - highest[..., None]
    new = jnp.exp(below)
    spread = old * (spread + (top - highest) * mass) + (new * below).sum(axis=-1)
    mass = old * mass + new.sum(axis=-1)
    chosen = chosen + jnp.where(is_token, logits, 0).sum(axis=-1)
    return (highest, mass, spread, chosen), None

  zero = jnp.zeros(tokens.shape, jnp.float32)
  start = (zero + 10 * IMPOSSIBLE, zero, zero, zero)
  (top, mass, spread, chosen), _ = jax.lax.scan(
    of_chunk, start, _chunks(setting, matrix, bias, allowed_tokens, hidden.dtype)
  )
  normaliser, entropy = top + jnp.log(mass), jnp.log(mass) - spread / mass
  log_probs = chosen - normaliser
  saved = (hidden, matrix, bias, allowed_tokens, tokens, normaliser, entropy)
  return (log_probs, entropy), saved


def _backward(
  setting: _Setting, saved: tuple[Any, ...], outer: tuple[Array, Array]
) -> tuple[Array | None, ...]:
  """d log_prob / d logit = [is token] - p; d entropy / d logit = -p (log p + entropy)."""
  hidden, matrix, bias, allowed_tokens, tokens, normaliser, entropy = saved
  by_log_prob, by_entropy = (x[..., None] for x in outer)

  def of_chunk(total: Array, chunk: _Chunk) -> tuple[Array, tuple[Array, Array | None]]:
    logits, is_token = _chunk_logits(setting, hidden, tokens, chunk)
    log_p = logits - normaliser[..., None]
    p = jnp.exp(log_p)
    slope = by_log_prob * (is_token - p) - by_entropy * p * (log_p + entropy[..., None])
    slope = (jnp.where(chunk.allowed_tokens, slope, 0) / setting.temperature).astype(hidden.dtype)
    of_rows = _dot("...v,...e->ve", slope, hidden)
    total = total + _dot("...v,ve->...e", slope, chunk.rows)
    of_rows = setting.layout.place(of_rows, ("vocab", "embed"))
    if chunk.bias is None:
      return total, (of_rows, None)
    of_bias = slope.astype(jnp.float32).sum(axis=tuple(range(slope.ndim - 1)))
    return total, (of_rows, setting.layout.place(of_bias, ("vocab",)))

  total, (of_rows, of_bias) = jax.lax.scan(
    of_chunk,
    jnp.zeros(hidden.shape, jnp.float32),
    _chunks(setting, matrix, bias, allowed_tokens, hidden.dtype),
  )
  of_rows = jnp.moveaxis(of_rows, 0, 1).reshape(matrix.shape)
  of_matrix = setting.layout.place(of_rows, ("vocab", "embed")).astype(matrix.dtype)
  if bias is not None and of_bias is not None:
    of_bias = setting.layout.place(of_bias.T.reshape(-1), ("vocab",)).astype(bias.dtype)
  return total.astype(hidden.dtype), of_matrix, of_bias, None, None


_scored.defvjp(_forward, _backward)


class _Chunk(NamedTuple):
  """Part of the vocabulary, or all parts stacked. number: index of the chunk."""

  rows: Array
  bias: Array | None
  allowed_tokens: Array
  number: Array


def _chunks(
  setting: _Setting, matrix: Array, bias: Array | None, allowed_tokens: Array, dtype: jnp.dtype
) -> _Chunk:
  """All chunks.

  Row v is in chunk v mod chunks, so that a vocabulary that is split over devices stays split.
  """
  count = setting.chunks
  rows = matrix.astype(dtype).reshape(-1, count, matrix.shape[1])
  rows = setting.layout.place(jnp.moveaxis(rows, 1, 0), (None, "vocab", "embed"))
  return _Chunk(
    rows=rows,
    bias=None if bias is None else bias.reshape(-1, count).T,
    allowed_tokens=allowed_tokens.reshape(-1, count).T,
    number=jnp.arange(count),
  )


def _chunk_logits(
  setting: _Setting, hidden: Array, tokens: Array, chunk: _Chunk
) -> tuple[Array, Array]:
  """Logits of a chunk, and a mask of the logit that belongs to the token."""
  rows = setting.layout.place(chunk.rows, ("vocab", None))
  logits = token_logits(hidden, rows, chunk.allowed_tokens, setting.temperature, chunk.bias)
  logits = setting.layout.place(logits, (*setting.axes, "vocab"))
  vocabulary = jnp.arange(rows.shape[0]) * setting.chunks + chunk.number
  return logits, tokens[..., None] == vocabulary


def _dot(equation: str, left: Array, right: Array) -> Float[Array, "..."]:
  exact = left.dtype == jnp.float32  # stays float32 on accelerators too
  return jnp.einsum(
    equation,
    left,
    right,
    precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )
