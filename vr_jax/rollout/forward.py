"""Log-probs of replies: the one forward that sampler and trainer share.

What can be sampled is decided here, once: `token_logits` divides by the temperature and takes out tokens that a reply
may not hold (media placeholders, rows of the embedding that no token uses). The sampler draws from its output, the
trainer scores with it, so at equal parameters their ratio is 1.
"""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from vr_jax import records
from vr_jax.models import layout as layout_lib
from vr_jax.models import seats as seats_lib
from vr_jax.rollout import vocabulary


@runtime_checkable
class Prefix(Protocol):
  """A prompt that has been read: what replies attend to."""

  hidden: Array  # [prompts, embed], at the last token of each prompt


@runtime_checkable
class Model(Protocol):
  """What rollout asks of a network; see models/qwen2_5_vl for the shapes."""

  layout: layout_lib.Layout  # where its arrays lie
  logit_chunk: int  # rows of the vocabulary whose logits the update makes at once

  def prefill(self, prompt: records.Prompt) -> Prefix: ...  # noqa: D102
  def extend(self, prefix: Prefix, tokens: Array, valid: Array) -> Array: ...  # noqa: D102
  def of_slots(self, x: Array, seats: seats_lib.Seats) -> Array: ...  # noqa: D102
  def start_cache(self, prefix: Prefix, slots: int, length: int) -> PyTree: ...  # noqa: D102
  def decode(  # noqa: D102
    self, prefix: Prefix, cache: PyTree, tokens: Array, index: Array, seats: seats_lib.Seats
  ) -> tuple[Array, PyTree]: ...
  def output_rows(self) -> Array: ...  # noqa: D102


def token_logits(
  model: Model,
  hidden: Float[Array, "*shape embed"],
  allowed: Bool[Array, "vocab"],
  temperature: float,
) -> Float[Array, "*shape vocab"]:
  """Logits of the next token, float32, at a temperature > 0; tokens that are not allowed get `vocabulary.IMPOSSIBLE`."""
  flat = hidden.reshape(-1, hidden.shape[-1]) if model.layout.merges else hidden
  logits = vocabulary.token_logits(flat, model.output_rows(), allowed, temperature)
  return logits.reshape(*hidden.shape[:-1], -1)


def reply_log_probs(
  model: Model,
  prompt: records.Prompt,
  tokens: Int[Array, "prompts group time"],
  valid: Bool[Array, "prompts group time"],
  allowed: Bool[Array, "vocab"],
  temperature: float = 1.0,
) -> tuple[Float[Array, "prompts group time"], Float[Array, "prompts group time"]]:
  """Log-prob of each reply token given its prompt and the tokens before it, and the entropy of that choice (nats).

  The prompt is computed once for its whole group. Where `valid` is false both are 0.
  """
  prefix = model.prefill(prompt)
  hidden = model.extend(prefix, tokens, valid)
  first = jnp.broadcast_to(prefix.hidden[:, None, None], hidden[:, :, :1].shape)
  before = jnp.concatenate([first.astype(hidden.dtype), hidden[:, :, :-1]], axis=2)
  log_probs, entropy = _scores(model, before, tokens, allowed, temperature)
  return jnp.where(valid, log_probs, 0), jnp.where(valid, entropy, 0)


def _scores(
  model: Model,
  hidden: Float[Array, "prompts group time embed"],
  tokens: Int[Array, "prompts group time"],
  allowed: Bool[Array, "vocab"],
  temperature: float,
) -> tuple[Float[Array, "prompts group time"], Float[Array, "prompts group time"]]:
  """Log-probs of tokens and entropies; the logits of a large vocabulary come in chunks."""
  shape, matrix = tokens.shape, model.output_rows()
  axes: layout_lib.Axes = ("prompts", "group", "time")
  if model.layout.merges:
    hidden, tokens, axes = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1), ("prompts",)
  chunks = vocabulary.chunks_of(matrix.shape[0], model.logit_chunk)
  if chunks == 1:
    scores = vocabulary.at_once(hidden, matrix, allowed, tokens, temperature)
  else:
    scores = vocabulary.in_chunks(
      hidden, matrix, allowed, tokens, temperature, chunks=chunks, layout=model.layout, axes=axes
    )
  log_probs, entropy = (x.reshape(shape) for x in scores)
  return log_probs, entropy
