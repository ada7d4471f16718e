"""The forward pass that sampler and trainer share: log-probs of replies, and values of a critic.

`token_logits` alone decides what can be sampled: it divides by the temperature and excludes tokens
that a reply may not contain (media placeholders, rows of the embedding that no token uses). The
sampler draws from its output and the trainer scores with it, so with equal parameters their ratio
is 1.
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
  """The head of a critic, which computes a value from a hidden state.

  weight [embed] and bias [] are float32.
  """

  weight: nnx.Param
  bias: nnx.Param

  def __call__(self, hidden: Float[Array, "*batch embed"]) -> Float[Array, "*batch"]:
    """Computes hidden @ weight + bias in float32, on accelerators too."""
    exact = jax.lax.Precision.HIGHEST
    hidden = hidden.astype(jnp.float32)
    return jnp.matmul(hidden, self.weight[...], precision=exact) + self.bias[...]


def token_logits(
  model: interface.LanguageModel,
  hidden: Float[Array, "*shape embed"],
  allowed_tokens: Bool[Array, "vocab"],
  temperature: float | Float[Array, "slots 1"],
) -> Float[Array, "*shape vocab"]:
  """Logits of the next token divided by the temperature (> 0, or one for each slot), float32.

  Tokens that are not allowed get `chunked_logprobs.IMPOSSIBLE`.
  """
  flat = hidden.reshape(-1, hidden.shape[-1]) if model.layout.merges else hidden
  logits = chunked_logprobs.token_logits(
    flat, model.lm_head_weight(), allowed_tokens, temperature, model.lm_head_bias()
  )
  return logits.reshape(*hidden.shape[:-1], -1)


def slot_logits(
  model: interface.LanguageModel,
  hidden: Float[Array, "slots embed"],
  allowed_tokens: Bool[Array, "vocab"],
  temperature: float | Float[Array, "slots 1"],
) -> Float[Array, "slots vocab"]:
  """`token_logits`, on the devices that draw the tokens of the slots."""
  logits = token_logits(model, hidden, allowed_tokens, temperature)
  layout = model.layout.decoding
  # Computed where the matrix lies: asked only for the rows of its slots, a device would gather it.
  return layout.place(layout.place(logits, ("hidden_slots", "vocab")), ("draws", "vocab"))


def reply_log_probs(
  model: interface.LanguageModel,
  prompt: records.Prompt,
  tokens: Int[Array, "prompts group time"],
  valid: Bool[Array, "prompts group time"],
  allowed_tokens: Bool[Array, "vocab"],
  temperature: float = 1.0,
  *,
  packed_length: int | None = None,
  scored: Bool[Array, "prompts group time"] | None = None,
  episode_inputs: records.EpisodeInputs | None = None,
) -> tuple[Float[Array, "prompts group time"], Float[Array, "prompts group time"]]:
  """The log-prob of each reply token, and the entropy (nats) of the distribution it was drawn from.

  The prompt is computed once for its whole group.

  tokens: of the replies; with several turns, whole episodes without their prompt.
  valid: which tokens are not padding; padding comes last. Results are 0 for padding.
  allowed_tokens, temperature: as the sampler used them.
  packed_length: number of tokens a device in the buffer that valid tokens are packed into
    (`models.common.packing`), so that no other padding is computed. None: padding is computed too.
  scored: tokens that the model wrote; None: all valid ones. Results are 0 for all other tokens:
    padding and observations.
  episode_inputs: of episodes of several turns.
  """
  scored = valid if scored is None else scored

  def score(hidden: Array, tokens: Array, axes: layout_lib.Axes) -> tuple[Array, Array]:
    return _scores(model, hidden, tokens, allowed_tokens, temperature, axes)

  scores = _apply_before_tokens(
    model, prompt, tokens, valid, score, packed_length=packed_length, episode_inputs=episode_inputs
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
  packed_length: int | None = None,
  episode_inputs: records.EpisodeInputs | None = None,
) -> Float[Array, "prompts group time"]:
  """The critic's value of the state before each reply token; 0 for padding.

  The state is the hidden state from which the token's log-prob would be computed.

  model: the critic's network.
  valid, packed_length, episode_inputs: as in `reply_log_probs`.
  """

  def value(hidden: Array, tokens: Array, axes: layout_lib.Axes) -> Array:
    del tokens, axes
    return head(hidden)

  values = _apply_before_tokens(
    model, prompt, tokens, valid, value, packed_length=packed_length, episode_inputs=episode_inputs
  )
  return jnp.where(valid, values, 0)


def _apply_before_tokens(
  model: interface.LanguageModel,
  prompt: records.Prompt,
  tokens: Int[Array, "prompts group time"],
  valid: Bool[Array, "prompts group time"],
  function: Callable[[Array, Array, layout_lib.Axes], PyTree],
  *,
  packed_length: int | None,
  episode_inputs: records.EpisodeInputs | None,
) -> PyTree:
  """Applies `function(hidden, tokens, axes)` to the hidden state before each token.

  Results are arrays [prompts, group, time]. The function is called with tokens of any shape, whose
  logical axes are `axes`, and must return arrays of that shape.
  """
  prefix = model.prefill(prompt)
  if packed_length is None:
    hidden = model.forward_replies(prefix, tokens, valid, episode_inputs)
    first = jnp.broadcast_to(prefix.hidden[:, None, None], hidden[:, :, :1].shape)
    before = jnp.concatenate([first.astype(hidden.dtype), hidden[:, :, :-1]], axis=2)
    return function(before, tokens, packing_lib.REPLIES)
  packing = packing_lib.make(model.layout, valid, packed_length)
  hidden = model.forward_packed_replies(prefix, tokens, valid, packing, episode_inputs)
  # The previous token is on the same device, except for first tokens: theirs is in the prompt.
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
  """Log-probs and entropies of tokens, in chunks of the vocabulary if it is large.

  Below float32 there is at least one chunk: its matrix gets a gradient in float32.

  axes: logical axes of batch.
  """
  shape, matrix, bias = tokens.shape, model.lm_head_weight(), model.lm_head_bias()
  if model.layout.merges:
    hidden, tokens, axes = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1), axes[:1]
  chunks = chunked_logprobs.count_chunks(matrix.shape[0], model.logit_chunk)
  if chunks == 1 and hidden.dtype == jnp.float32:
    scores = chunked_logprobs.logprobs_unchunked(
      hidden, matrix, allowed_tokens, tokens, temperature, bias
    )
  else:
    scores = chunked_logprobs.logprobs_chunked(
      hidden,
      matrix,
      allowed_tokens,
      tokens,
      temperature,
      bias,
      chunks=chunks,
      layout=model.layout,
      axes=axes,
    )
  log_probs, entropy = (x.reshape(shape) for x in scores)
  return log_probs, entropy
