"""Bi-level generalised advantage estimation: credit for episodes of several turns, with a critic.

An episode is a row of tokens; those of the mask the model wrote, and the last one of each of its turns is an end e_1 … e_n. With
r the reward of a token, V its value, gH and g the discounts between turns and within one, and lambda the trace decay, from the
last to the first:

    turns:   D_i = r[e_i] + gH V[e_(i+1)] - V[e_i] + gH lambda D_(i+1)      V[e_(n+1)] = D_(n+1) = 0
    tokens:  A_t = r_t + g V_next - V_t + g lambda A_next                   next: the next token of the mask
             where t = e_i: A_t = D_i, that is with r_t = D_i + V_t, and nothing after it

and the return of a token, which the critic learns, is A_t + V_t.

With lambda = 1 that is A_t = G_i + (rewards within the turn from t on, but its last) - V_t, G_i = sum over j >= i of gH^(j - i) r[e_j], where g = 1.

Where an answer's reward goes (`placement`):

    every   gH^(n - i) answer at each end e_i, and each turn is an episode of its own: gH = 0 above
    last    the whole of it at e_n; it reaches earlier turns through the turn pass

`every` is how the paper states it (arXiv 2508.20478, section 3.3), `last` how its released code does it. Reconstruction: the paper
does not say that rewards of later turns other than the answer's are left out of `every`; they would count the answer twice.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import ml_collections

from vr_jax import records
from vr_jax.rl import loss

Placement = Literal["every", "last"]


def make_credit(
  config: ml_collections.ConfigDict, *, answer_reward: str
) -> Callable[..., tuple[Array, Array, Any]]:
  """A jitted `credit(scores, rollout, values, reference=None) -> (advantages, returns, metrics)`.

  Advantages are whitened over the batch. Tokens of turns that are not valid get advantage 0 and for a return their
  value: nobody learns from them.

  Args:
    config: the section `critic`.
    answer_reward: the name in `scores.rewards` of the answer's reward, which is placed as `config.placement` says. The
      rest of each turn's total is the turn's own.

  The function takes:
    scores: of each turn.
    rollout: the episodes.
    values: of the critic, at the tokens.
    reference: log-probs of the frozen reference, needed where config.kl_weight > 0: its KL is then a reward.

  Metrics: critic/advantage and critic/advantage_std before whitening, and critic/kl (mean of k1 over tokens) where it
  is a reward.
  """

  def credit(
    scores: records.Scores,
    rollout: records.Rollout,
    values: Float[Array, "prompts group time"],
    reference: Float[Array, "prompts group time"] | None = None,
  ) -> tuple[Array, Array, dict[str, Array]]:
    valid = jnp.take_along_axis(scores.valid, rollout.turn, axis=2)
    mask = (rollout.kind == int(records.Kind.MODEL)) & valid
    ends = turn_ends(rollout.turn, mask)
    answers = jnp.where(scores.valid, scores.rewards[answer_reward], 0)
    rewards = token_rewards(
      scores.total - answers,
      answers.sum(axis=-1),
      rollout.turn,
      ends,
      gamma_turn=config.gamma_turn,
      placement=config.placement,
    )
    metrics = {}
    if config.kl_weight:
      rewards += kl_rewards(rollout.log_probs, reference, mask, beta=config.kl_weight)
      kl = loss.kl_divergence(rollout.log_probs, reference, "k1")
      metrics["critic/kl"] = kl.mean(where=mask)
    raw, returns = advantages(
      rewards,
      values,
      mask,
      ends,
      gamma_turn=config.gamma_turn,
      gamma_token=config.gamma_token,
      gae_lambda=config.gae_lambda,
      placement=config.placement,
    )
    metrics |= {
      "critic/advantages/mean": raw.mean(where=mask),
      "critic/advantages/std": raw.std(where=mask),
    }
    return whiten(raw, mask), jnp.where(mask, returns, values), metrics

  return jax.jit(credit)


def turn_ends(
  turn: Int[Array, "prompts group time"], mask: Bool[Array, "prompts group time"]
) -> Bool[Array, "prompts group time"]:
  """The last token of each turn among those of the mask; `turn` counts up along a row."""

  def step(later: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
    number, written = here
    return jnp.where(written, number, later), written & (number != later)

  nobody = jnp.full(turn.shape[:2], -1, turn.dtype)
  _, ends = jax.lax.scan(step, nobody, (_time_first(turn), _time_first(mask)), reverse=True)
  return jnp.moveaxis(ends, 0, 2)


def token_rewards(
  process: Float[Array, "prompts group turns"],
  answer: Float[Array, "prompts group"],
  turn: Int[Array, "prompts group time"],
  ends: Bool[Array, "prompts group time"],
  *,
  gamma_turn: float,
  placement: Placement,
) -> Float[Array, "prompts group time"]:
  """Rewards of turns on their last tokens; 0 on all others.

  Args:
    process: of each turn, all but the answer's.
    answer: of each episode.
    turn: of each token, 0 the first.
    ends: the last token of each turn.
    gamma_turn: what an answer is worth one turn earlier, where it is placed at every end.
    placement: see above.
  """
  of_turn = jnp.take_along_axis(process, jnp.clip(turn, 0, process.shape[2] - 1), axis=2)
  later = jnp.cumsum(ends[..., ::-1], axis=-1)[..., ::-1] - ends
  share = gamma_turn**later if placement == "every" else (later == 0)
  return jnp.where(ends, of_turn + share * answer[..., None], 0)


def kl_rewards(
  log_probs: Float[Array, "prompts group time"],
  reference: Float[Array, "prompts group time"],
  mask: Bool[Array, "prompts group time"],
  *,
  beta: float,
) -> Float[Array, "prompts group time"]:
  """-beta (log_probs - reference) on the tokens of the mask: the penalty as a reward, with k1 as the estimate."""
  return jnp.where(mask, -beta * loss.kl_divergence(log_probs, reference, "k1"), 0)


def advantages(
  rewards: Float[Array, "prompts group time"],
  values: Float[Array, "prompts group time"],
  mask: Bool[Array, "prompts group time"],
  ends: Bool[Array, "prompts group time"],
  *,
  gamma_turn: float,
  gamma_token: float,
  gae_lambda: float,
  placement: Placement,
) -> tuple[Float[Array, "prompts group time"], Float[Array, "prompts group time"]]:
  """(advantages, returns) of every token, not whitened; 0 outside the mask, whatever stands there.

  Args:
    rewards: of `token_rewards`, plus `kl_rewards` where the penalty is a reward. Before the end of a turn they count within it.
    values: of the critic, at the tokens.
    mask: tokens that the model wrote.
    ends: of `turn_ends`.
    gamma_turn: discount between turns.
    gamma_token: discount within a turn.
    gae_lambda: lambda, of both passes.
    placement: with `every`, turns are episodes of their own.
  """
  between = gamma_turn if placement == "last" else 0.0
  rewards, values = jnp.where(mask, rewards, 0), jnp.where(mask, values, 0)

  def step(later: tuple[Array, ...], here: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
    turn_advantage, turn_value, advantage, value_after = later
    reward, value, written, end = here
    of_turn = reward + between * turn_value - value + between * gae_lambda * turn_advantage
    of_token = reward + gamma_token * value_after - value + gamma_token * gae_lambda * advantage
    found = jnp.where(end, of_turn, of_token)
    now = (
      jnp.where(end, of_turn, turn_advantage),
      jnp.where(end, value, turn_value),
      jnp.where(written, found, advantage),
      jnp.where(written, value, value_after),
    )
    return now, jnp.where(written, found, 0)

  nothing = jnp.zeros(rewards.shape[:2], rewards.dtype)
  rows = tuple(_time_first(x) for x in (rewards, values, mask, ends & mask))
  _, found = jax.lax.scan(step, (nothing,) * 4, rows, reverse=True)
  found = jnp.moveaxis(found, 0, 2)
  return found, found + values


def whiten(
  advantages: Float[Array, "prompts group time"], mask: Bool[Array, "prompts group time"]
) -> Float[Array, "prompts group time"]:
  """(A - mean) / sqrt(variance + 1e-8) over all tokens of the mask in the batch, the variance unbiased; 0 elsewhere."""
  count = mask.sum()
  mean = jnp.where(mask, advantages, 0).sum() / jnp.maximum(count, 1)
  centred = jnp.where(mask, advantages - mean, 0)
  variance = (centred**2).sum() / jnp.maximum(count - 1, 1)
  return centred * jax.lax.rsqrt(variance + 1e-8)


def value_loss(
  values: Float[Array, "prompts group time"],
  old_values: Float[Array, "prompts group time"],
  returns: Float[Array, "prompts group time"],
  weights: Float[Array, "prompts group time"],
  *,
  clip: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """0.5 sum over tokens of weight * max((v - R)^2, (clip(v, old - clip, old + clip) - R)^2).

  Args:
    values: of the critic being trained.
    old_values: at the start of the update.
    returns: of `advantages`.
    weights: of loss.token_weights (the paper's code: token_mean); tokens of weight 0 take no part.
    clip: how far a value may move from its old one before it gains nothing more.

  Returns:
    The loss, and sums over tokens by name: `mask` (tokens that count), and, to be divided by it, `value`, `return`,
    `squared_error` and `value_clip_ratio` (how often the clipped one counts).
  """
  mask = weights > 0
  error = jnp.where(mask, values - returns, 0) ** 2
  near = old_values + jnp.clip(values - old_values, -clip, clip)
  clipped = jnp.where(mask, near - returns, 0) ** 2
  loss = 0.5 * jnp.where(mask, weights * jnp.maximum(error, clipped), 0).sum()
  sums = {
    "mask": mask,
    "value": jnp.where(mask, values, 0),
    "return": jnp.where(mask, returns, 0),
    "squared_error": error,
    "value_clip_ratio": clipped > error,
  }
  return loss, {name: value.sum().astype(jnp.float32) for name, value in sums.items()}


def _time_first(rows: Array) -> Array:
  return jnp.moveaxis(rows, 2, 0)
