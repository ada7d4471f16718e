"""Bi-level generalised advantage estimation: advantages over several turns, from a critic.

An episode is a row of tokens; the mask marks those that the model wrote, without the tokens of
turns that are not scored. The last token of turn i in the mask is its end e_i, for turns 1 … n. r
is the reward of a token, V its value (of the state before the token is sampled), gamma_turn the
discount between turns, gamma_token the discount within a turn, and lambda the trace decay. From the
last to the first:

    turns:   D_i = r[e_i] + gamma_turn V[e_(i+1)] - V[e_i] + gamma_turn lambda D_(i+1)
             V[e_(n+1)] = D_(n+1) = 0
    tokens:  A_t = r_t + gamma_token V_next - V_t + gamma_token lambda A_next
             next: the next token of the mask
             at t = e_i: A_t = D_i, as if r_t were D_i + V_t and nothing followed

The return of a token, which the critic learns, is A_t + V_t.

With lambda = 1 and gamma_token = 1 this is

    A_t = G_i + (rewards of the turn from t on, without its last one) - V_t
    G_i = sum over j >= i of gamma_turn^(j - i) r[e_j]

Where the answer's reward is placed (`placement`):

    every   each turn end e_i gets gamma_turn^(n - i) times the answer's reward, and no reward
            propagates between turns (gamma_turn = 0 in the turn pass), since the answer is copied
            to each turn already
    last    all of it at e_n; it reaches earlier turns through the turn pass

`every` follows the paper (arXiv 2508.20478, section 3.3), `last` its released code.
`Reconstruction:` the paper leaves open whether rewards propagate between turns with `every`; with
that, the answer would count twice.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import ml_collections

from vr_jax import records
from vr_jax.rl import loss

Placement = Literal["every", "last"]


def make_advantage_fn(
  config: ml_collections.ConfigDict, *, answer_reward: str
) -> Callable[..., tuple[Array, Array, Any]]:
  """Makes a jitted `compute_advantages(scores, rollout, values, ref_log_probs=None)`.

  The function returns (advantages, returns, metrics). Advantages are whitened over the batch.
  The mask leaves out tokens of turns that are not scored: like observations and padding, they get
  advantage 0 and their value as return, so nothing is learned from them.

  Args:
    config: the section `critic`.
    answer_reward: name in `scores.rewards` of the answer's reward, which is placed according to
      `config.placement`. The rest of a turn's total stays with that turn.

  Arguments of the function:
    scores: of each turn.
    rollout: the episodes.
    values: of the critic, each of the state before its token is sampled.
    ref_log_probs: log-probs of the frozen reference; needed if config.kl_weight > 0, when the KL is
      a reward.

  Metrics: critic/advantages/mean and critic/advantages/std, before whitening; critic/kl, the mean
  of k1 over tokens, if the KL is a reward.
  """

  def compute_advantages(
    scores: records.Scores,
    rollout: records.Rollout,
    values: Float[Array, "prompts group time"],
    ref_log_probs: Float[Array, "prompts group time"] | None = None,
  ) -> tuple[Array, Array, dict[str, Array]]:
    turn, log_probs = cast(Array, rollout.turn), cast(Array, rollout.log_probs)
    scored = jnp.take_along_axis(scores.scored, turn, axis=2)
    mask = (rollout.kind == int(records.Kind.MODEL)) & scored
    ends = turn_ends(turn, mask)
    answers = jnp.where(scores.scored, scores.rewards[answer_reward], 0)
    rewards = token_rewards(
      cast(Array, scores.total) - answers,
      answers.sum(axis=-1),
      turn,
      ends,
      gamma_turn=config.gamma_turn,
      placement=config.placement,
    )
    metrics = {}
    if config.kl_weight:
      ref_log_probs = cast(Array, ref_log_probs)
      rewards += kl_rewards(log_probs, ref_log_probs, mask, beta=config.kl_weight)
      kl = loss.kl_divergence(log_probs, ref_log_probs, "k1")
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

  return jax.jit(compute_advantages)


def turn_ends(
  turn: Int[Array, "prompts group time"], mask: Bool[Array, "prompts group time"]
) -> Bool[Array, "prompts group time"]:
  """Marks the last token of each turn in the mask; `turn` never falls along a row."""

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
  """Puts the rewards of turns on their last tokens; all other tokens get 0.

  Args:
    process: rewards of each turn without the answer's.
    answer: the answer's reward of each episode.
    turn: number of each token's turn, from 0.
    ends: marks the last token of each turn.
    gamma_turn: the answer's discount for each turn back, with placement `every`.
    placement: see the module's docstring.
  """
  of_turn = jnp.take_along_axis(process, jnp.clip(turn, 0, process.shape[2] - 1), axis=2)
  later = jnp.cumsum(ends[..., ::-1], axis=-1)[..., ::-1] - ends
  share = gamma_turn**later if placement == "every" else (later == 0)
  return jnp.where(ends, of_turn + share * answer[..., None], 0)


def kl_rewards(
  log_probs: Float[Array, "prompts group time"],
  ref_log_probs: Float[Array, "prompts group time"],
  mask: Bool[Array, "prompts group time"],
  *,
  beta: float,
) -> Float[Array, "prompts group time"]:
  """The KL penalty as a reward: -beta (log_probs - ref_log_probs) on tokens of the mask, else 0."""
  return jnp.where(mask, -beta * loss.kl_divergence(log_probs, ref_log_probs, "k1"), 0)


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
  """Advantages and returns of every token, before whitening; 0 outside the mask.

  Args:
    rewards: from `token_rewards`, plus `kl_rewards` if the KL is a reward. A reward before the end
      of a turn counts within that turn only.
    values: of the critic, each of the state before its token is sampled.
    mask: tokens that the model wrote, without those of turns that are not scored.
    ends: from `turn_ends`.
    gamma_turn: discount between turns.
    gamma_token: discount within a turn.
    gae_lambda: lambda of both passes.
    placement: with `every`, no reward propagates between turns.
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
  """(A - mean) / sqrt(variance + 1e-8) over the mask's tokens in the batch; 0 elsewhere.

  The variance is the unbiased one.
  """
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
    returns: from `advantages`.
    weights: from loss.token_weights (the paper's code: token_mean); tokens of weight 0 are ignored.
    clip: how far a value may move from its old one before it gains nothing more.

  Returns:
    The loss, and sums over tokens by name. `mask` is the number of tokens; divide the others by it:
    `value`, `return`, `squared_error` and `value_clip_ratio` (how often the clipped error is used).
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
