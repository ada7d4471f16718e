"""Log-probs and entropies over a large vocabulary, without all logits in memory at once.

`logprobs_chunked` scans the vocabulary, a chunk of rows of the output matrix at a time, and carries
the maximum and the sums of a softmax. Its backward pass computes the logits of each chunk again and
uses the normaliser that the forward pass kept. Neither pass has an array [positions, vocab], and a
row of the matrix gets its gradient in one piece, from all positions.

`logprobs_unchunked` computes the same in one chunk and keeps the logits.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models import layout as layout_lib

IMPOSSIBLE = -1e9  # finite, so that p log p of a forbidden token is 0 and not nan


def token_logits(
  hidden: Float[Array, "*batch embed"],
  rows: Float[Array, "rows embed"],
  allowed_tokens: Bool[Array, "rows"],
  temperature: float,
) -> Float[Array, "*batch rows"]:
  """Logits of some rows of the vocabulary divided by the temperature, float32.

  Tokens that are not allowed get `IMPOSSIBLE`.
  """
  scores = _dot("...e,ve->...v", hidden, rows.astype(hidden.dtype))
  return jnp.where(allowed_tokens, scores / temperature, IMPOSSIBLE)


def logprobs_unchunked(
  hidden: Float[Array, "*batch embed"],
  matrix: Float[Array, "vocab embed"],
  allowed_tokens: Bool[Array, "vocab"],
  tokens: Int[Array, "*batch"],
  temperature: float,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """The log-prob of each token, and the entropy (nats) of the distribution it is drawn from."""
  every = jax.nn.log_softmax(token_logits(hidden, matrix, allowed_tokens, temperature))
  log_probs = jnp.take_along_axis(every, tokens[..., None], axis=-1)[..., 0]
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
    _Setting(chunks, temperature, layout, axes), hidden, matrix, allowed_tokens, tokens
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scored(
  setting: _Setting, hidden: Array, matrix: Array, allowed_tokens: Array, tokens: Array
) -> tuple[Array, Array]:
  return _forward(setting, hidden, matrix, allowed_tokens, tokens)[0]


def _forward(
  setting: _Setting, hidden: Array, matrix: Array, allowed_tokens: Array, tokens: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
  """Results, and what the backward pass needs.

  The scan carries the maximum, the sum of exp(logit - maximum), the sum of that times
  (logit - maximum), and the logit of the token.
  """

  def of_chunk(carry: tuple[Array, ...], chunk: tuple[Array, ...]) -> tuple[tuple, None]:
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
    of_chunk, start, _chunks(setting, matrix, allowed_tokens, hidden.dtype)
  )
  normaliser, entropy = top + jnp.log(mass), jnp.log(mass) - spread / mass
  log_probs = chosen - normaliser
  return (log_probs, entropy), (hidden, matrix, allowed_tokens, tokens, normaliser, entropy)


def _backward(
  setting: _Setting, saved: tuple[Array, ...], outer: tuple[Array, Array]
) -> tuple[Array | None, ...]:
  """d log_prob / d logit = [is token] - p; d entropy / d logit = -p (log p + entropy)."""
  hidden, matrix, allowed_tokens, tokens, normaliser, entropy = saved
  by_log_prob, by_entropy = (x[..., None] for x in outer)

  def of_chunk(total: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
    rows, allowed_tokens, _ = chunk
    logits, is_token = _chunk_logits(setting, hidden, tokens, chunk)
    log_p = logits - normaliser[..., None]
    p = jnp.exp(log_p)
    slope = by_log_prob * (is_token - p) - by_entropy * p * (log_p + entropy[..., None])
    slope = (jnp.where(allowed_tokens, slope, 0) / setting.temperature).astype(hidden.dtype)
    of_rows = _dot("...v,...e->ve", slope, hidden)
    total = total + _dot("...v,ve->...e", slope, rows)
    return total, setting.layout.place(of_rows, ("vocab", "embed"))

  total, of_rows = jax.lax.scan(
    of_chunk,
    jnp.zeros(hidden.shape, jnp.float32),
    _chunks(setting, matrix, allowed_tokens, hidden.dtype),
  )
  of_rows = jnp.moveaxis(of_rows, 0, 1).reshape(matrix.shape)
  of_matrix = setting.layout.place(of_rows, ("vocab", "embed")).astype(matrix.dtype)
  return total.astype(hidden.dtype), of_matrix, None, None


_scored.defvjp(_forward, _backward)


def _chunks(
  setting: _Setting, matrix: Array, allowed_tokens: Array, dtype: jnp.dtype
) -> tuple[Array, Array, Array]:
  """Rows, allowed tokens and index of each chunk.

  Row v is in chunk v mod chunks, so that a vocabulary that is split over devices stays split.
  """
  count = setting.chunks
  rows = matrix.astype(dtype).reshape(-1, count, matrix.shape[1])
  rows = setting.layout.place(jnp.moveaxis(rows, 1, 0), (None, "vocab", "embed"))
  return rows, allowed_tokens.reshape(-1, count).T, jnp.arange(count)


def _chunk_logits(
  setting: _Setting, hidden: Array, tokens: Array, chunk: tuple[Array, ...]
) -> tuple[Array, Array]:
  """Logits of a chunk, and a mask of the logit that belongs to the token."""
  rows, allowed_tokens, number = chunk
  rows = setting.layout.place(rows, ("vocab", None))
  logits = token_logits(hidden, rows, allowed_tokens, setting.temperature)
  logits = setting.layout.place(logits, (*setting.axes, "vocab"))
  vocabulary = jnp.arange(rows.shape[0]) * setting.chunks + number
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
