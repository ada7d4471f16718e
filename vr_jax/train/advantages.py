"""What rewards mean for the tokens that earned them: one advantage each, whatever the recipe rewards apart."""

from collections.abc import Mapping
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax import records
from vr_jax.rl import credit


@functools.partial(
  jax.jit, static_argnames=("segments", "multi_turn", "whole", "normalise", "budget")
)
def assign_credit(
  scores: records.Scores,
  segment: Int[Array, "prompts group time"],
  *,
  segments: tuple[str, ...],
  multi_turn: bool = False,
  whole: bool = False,
  normalise: bool,
  budget: int,
) -> tuple[Array, Array, dict[str, Array]]:
  """What scores mean for each sampled token, on the mesh.

  segment: which one each token belongs to, -1 where none; segments: their names; multi_turn: each is a reply of its own;
  whole: what all of them earn together is the advantage of every token; budget: tokens that a reply may have.

  Returns:
    (advantages [prompts, group, time], signal [prompts]: whether the replies of a prompt differ in reward, metrics of
    the rewards by name).
  """
  advantages, signal = of_segments(scores, whole=whole, normalise=normalise)
  values = {"no_signal_share": 1 - signal.mean(), **_lengths(segment, segments, multi_turn, budget)}
  of_all = {**scores.rewards, "total": scores.total}
  if len(segments) == 1:
    values |= _reward_values(of_all, scores.valid)
    return credit.token_advantages(advantages, segment), signal.any(axis=-1), values
  for number, name in enumerate(segments):
    of_segment = {f"{name}/{reward}": value[..., number] for reward, value in of_all.items()}
    values |= _reward_values(of_segment, scores.valid[..., number])
    if not multi_turn:
      values[f"unjudged_share/{name}"] = 1 - scores.valid[..., number].mean()
    if not whole:
      values[f"no_signal_share/{name}"] = 1 - signal[:, number].mean()
  return credit.token_advantages(advantages, segment), signal.any(axis=-1), values


def of_segments(
  scores: records.Scores, *, whole: bool, normalise: bool
) -> tuple[Float[Array, "prompts group segments"], Bool[Array, "prompts _"]]:
  """(advantages, whether the replies of a group differ in reward); with `whole` all segments have that of their sum."""
  total, valid = scores.total, scores.valid
  if whole:
    total = jnp.where(valid, total, 0).sum(axis=-1, keepdims=True)
    valid = valid.any(axis=-1, keepdims=True)
  advantages = credit.group_advantages(total, valid, normalise=normalise)
  return jnp.broadcast_to(advantages, scores.total.shape), credit.has_signal(total, valid)


def _lengths(
  segment: Int[Array, "prompts group time"],
  segments: tuple[str, ...],
  multi_turn: bool,
  budget: int,
) -> dict[str, Array]:
  """Tokens of replies, and how many of them used up their budget."""
  each = jnp.stack([(segment == number).sum(-1) for number in range(len(segments))], axis=-1)
  reply = each if multi_turn else each.sum(-1)
  values = {
    "reply_tokens": each.sum(-1).mean(),
    "cut_off_share": (reply == budget).sum() / jnp.maximum((reply > 0).sum(), 1),
  }
  named = {f"tokens/{name}": each[..., number].mean() for number, name in enumerate(segments)}
  return {**values, **(named if len(segments) > 1 else {})}


def _reward_values(rewards: Mapping[str, Array], valid: Array) -> dict[str, Array]:
  """Mean and standard deviation of rewards, and how many are 0, over those that are valid."""
  values = {}
  for name, reward in rewards.items():
    values[f"reward/{name}"] = reward.mean(where=valid)
    values[f"reward_std/{name}"] = reward.std(where=valid)
    values[f"reward_zero/{name}"] = (reward == 0).mean(where=valid)
  return values
