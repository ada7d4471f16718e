"""Log-probs of replies: the one forward that sampler and trainer share.

What can be sampled is decided here, once: `token_logits` divides by the temperature and takes out tokens that a reply
may not hold (media placeholders, rows of the embedding that no token uses). The sampler draws from its output, the
trainer scores with it, so at equal parameters their ratio is 1.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from vr_jax import records

IMPOSSIBLE = -1e9  # finite, so that p log p of a forbidden token is 0 and not nan


@runtime_checkable
class Prefix(Protocol):
  """A prompt that has been read: what replies attend to."""

  hidden: Array  # [prompts, embed], at the last token of each prompt


@runtime_checkable
class Model(Protocol):
  """What rollout asks of a network; see models/qwen2_5_vl for the shapes."""

  def prefill(self, prompt: records.Prompt) -> Prefix: ...  # noqa: D102
  def extend(self, prefix: Prefix, tokens: Array, valid: Array) -> Array: ...  # noqa: D102
  def start_cache(self, prefix: Prefix, group: int, length: int) -> PyTree: ...  # noqa: D102
  def decode(  # noqa: D102
    self, prefix: Prefix, cache: PyTree, tokens: Array, index: Array
  ) -> tuple[Array, PyTree]: ...
  def logits(self, hidden: Array) -> Array: ...  # noqa: D102


def token_logits(
  model: Model,
  hidden: Float[Array, "*shape embed"],
  allowed: Bool[Array, "vocab"],
  temperature: float,
) -> Float[Array, "*shape vocab"]:
  """Logits of the next token, float32, at a temperature > 0; tokens that are not allowed get `IMPOSSIBLE`."""
  return jnp.where(allowed, model.logits(hidden).astype(jnp.float32) / temperature, IMPOSSIBLE)


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
  every = jax.nn.log_softmax(token_logits(model, before, allowed, temperature))
  log_probs = jnp.take_along_axis(every, tokens[..., None], axis=-1)[..., 0]
  entropy = -(jnp.exp(every) * every).sum(axis=-1)
  return jnp.where(valid, log_probs, 0), jnp.where(valid, entropy, 0)
