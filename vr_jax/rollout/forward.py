"""Log-probs of replies: the one forward that sampler and trainer share; and with a head of another kind, values of a critic.

What can be sampled is decided here, once: `token_logits` divides by the temperature and takes out tokens that a reply
may not hold (media placeholders, rows of the embedding that no token uses). The sampler draws from its output, the
trainer scores with it, so at equal parameters their ratio is 1.
"""

from collections.abc import Callable
import dataclasses
import typing

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from vr_jax import records
from vr_jax.models import interface
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import packing as packing_lib
from vr_jax.rollout import chunked_logprobs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with leaves that are no arrays
class ValueHead:
  """What makes a value of a hidden state: float32 parameters, weight [embed] and bias []."""

  weight: nnx.Param
  bias: nnx.Param

  def __call__(self, hidden: Float[Array, "*batch embed"]) -> Float[Array, "*batch"]:
    """hidden @ weight + bias in float32, on accelerators too."""
    exact = jax.lax.Precision.HIGHEST
    hidden = hidden.astype(jnp.float32)
    return jnp.matmul(hidden, self.weight[...], precision=exact) + self.bias[...]


def token_logits(
  model: interface.LanguageModel,
  hidden: Float[Array, "*shape embed"],
  allowed_tokens: Bool[Array, "vocab"],
  temperature: float,
) -> Float[Array, "*shape vocab"]:
  """Logits of the next token, float32, at a temperature > 0; tokens that are not allowed get `vocabulary.IMPOSSIBLE`."""
  flat = hidden.reshape(-1, hidden.shape[-1]) if model.layout.merges else hidden
  logits = chunked_logprobs.token_logits(flat, model.output_rows(), allowed_tokens, temperature)
  return logits.reshape(*hidden.shape[:-1], -1)


def reply_log_probs(
  model: interface.LanguageModel,
  prompt: records.Prompt,
  tokens: Int[Array, "prompts group time"],
  valid: Bool[Array, "prompts group time"],
  allowed_tokens: Bool[Array, "vocab"],
  temperature: float = 1.0,
  *,
  packed: int | None = None,
  scored: Bool[Array, "prompts group time"] | None = None,
  episode_inputs: records.EpisodeInputs | None = None,
) -> tuple[Float[Array, "prompts group time"], Float[Array, "prompts group time"]]:
  """Log-prob of each reply token given its prompt and the tokens before it, and the entropy of that choice (nats).

  The prompt is computed once for its whole group. Where `valid` is false both are 0; the valid tokens of a reply are
  its first ones. packed: places a device for the valid tokens of replies (`models.packing.size_of`); padding then costs
  nothing beyond them. None: padding is computed like tokens.

  Of several turns: `tokens` are whole episodes behind their prompt, with what `episode_inputs` says of them; scored: the tokens that
  the model wrote (None: all valid ones); of others log-prob and entropy are 0.
  """
  scored = valid if scored is None else scored

  def score(hidden: Array, tokens: Array, axes: layout_lib.Axes) -> tuple[Array, Array]:
    return _scores(model, hidden, tokens, allowed_tokens, temperature, axes)

  scores = _apply_before_tokens(
    model, prompt, tokens, valid, score, packed=packed, episode_inputs=episode_inputs
  )
  log_probs, entropy = (jnp.where(scored, x, 0) for x in scores)
  return log_probs, entropy


def reply_values(
  model: interface.LanguageModel,
  head: ValueHead,
  prompt: records.Prompt,
  tokens: Int[Array, "prompts group time"],
  valid: Bool[Array, "prompts group time"],
  *,
  packed: int | None = None,
  episode_inputs: records.EpisodeInputs | None = None,
) -> Float[Array, "prompts group time"]:
  """The value of the state before each reply token, which is the one that its log-prob is of; 0 where `valid` is false.

  model: of a critic. valid, packed, episode_inputs: as in `reply_log_probs`.
  """

  def value(hidden: Array, tokens: Array, axes: layout_lib.Axes) -> Array:
    del tokens, axes
    return head(hidden)

  values = _apply_before_tokens(
    model, prompt, tokens, valid, value, packed=packed, episode_inputs=episode_inputs
  )
  return jnp.where(valid, values, 0)


def _apply_before_tokens(
  model: interface.LanguageModel,
  prompt: records.Prompt,
  tokens: Int[Array, "prompts group time"],
  valid: Bool[Array, "prompts group time"],
  function: Callable[[Array, Array, layout_lib.Axes], PyTree],
  *,
  packed: int | None,
  episode_inputs: records.EpisodeInputs | None,
) -> PyTree:
  """What `function(hidden, tokens, axes)` makes of the hidden state before each token, [prompts, group, time] of each of its results.

  It is called with tokens of any shape, whose logical axes are `axes`, and gives arrays of that shape.
  """
  prefix = model.prefill(prompt)
  if packed is None:
    hidden = model.extend(prefix, tokens, valid, episode_inputs)
    first = jnp.broadcast_to(prefix.hidden[:, None, None], hidden[:, :, :1].shape)
    before = jnp.concatenate([first.astype(hidden.dtype), hidden[:, :, :-1]], axis=2)
    return function(before, tokens, packing_lib.REPLIES)
  packing = packing_lib.make(model.layout, valid, packed)
  hidden = model.extend_packed(prefix, tokens, valid, packing, episode_inputs)
  # The token before stands before, on the same device; only first tokens have it in their prompt.
  before = model.layout.per_shard(lambda x: jnp.roll(x, 1, axis=0), ((hidden, ("slots", None)),))
  of_others = function(before, packing.pack(tokens), ("slots",))
  at_start = jnp.broadcast_to(
    prefix.hidden[:, None], (*tokens.shape[:2], prefix.hidden.shape[-1])
  ).astype(hidden.dtype)
  of_first = function(at_start, tokens[:, :, 0], packing_lib.REPLIES[:2])
  is_first = jnp.arange(tokens.shape[2]) == 0

  def merged(first: Array, others: Array) -> Array:
    return jnp.where(is_first, first[..., None], packing.unpack(others))

  return jax.tree.map(merged, of_first, of_others)


def _scores(
  model: interface.LanguageModel,
  hidden: Float[Array, "*batch embed"],
  tokens: Int[Array, "*batch"],
  allowed_tokens: Bool[Array, "vocab"],
  temperature: float,
  axes: layout_lib.Axes,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Log-probs of tokens and entropies; the logits of a large vocabulary come in chunks. axes: the logical ones of batch."""
  shape, matrix = tokens.shape, model.output_rows()
  if model.layout.merges:
    hidden, tokens, axes = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1), axes[:1]
  chunks = chunked_logprobs.count_chunks(matrix.shape[0], model.logit_chunk)
  if chunks == 1:
    scores = chunked_logprobs.logprobs_unchunked(
      hidden, matrix, allowed_tokens, tokens, temperature
    )
  else:
    scores = chunked_logprobs.logprobs_chunked(
      hidden,
      matrix,
      allowed_tokens,
      tokens,
      temperature,
      chunks=chunks,
      layout=model.layout,
      axes=axes,
    )
  log_probs, entropy = (x.reshape(shape) for x in scores)
  return log_probs, entropy
