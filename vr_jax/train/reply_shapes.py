"""Chooses the shapes that replies are padded to, and measures how much padding a step computes."""

import dataclasses

from jaxtyping import Int
import ml_collections
import numpy as np

from vr_jax import records
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import packing
from vr_jax.train import experience


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplyShapes:
  """The shapes that the passes over the replies of a batch are compiled for.

  time: length of the padded replies.
  packed_length: tokens a device in the packed buffer of one micro-batch. None: not packed.
  packed_length_of_scorers: the same for one of the micro-batches of the passes without gradient.
  """

  time: int
  packed_length: int | None
  packed_length_of_scorers: int | None


def choose_reply_shapes(
  section: ml_collections.ConfigDict,
  layout: layout_lib.Layout,
  lengths: Int[np.ndarray, "prompts group"],
  *,
  budget: int,
) -> ReplyShapes:
  """Chooses the smallest shapes that fit replies of these lengths.

  `time` is the budget, halved as long as the longest reply fits.

  section: `rl` or `sft`, for token_bucket_ratio and the numbers of micro-batches.
  budget: largest number of tokens of a reply.
  """
  time, longest = budget, max(int(lengths.max()), 1)
  while time % 2 == 0 and time // 2 >= longest:
    time //= 2
  if section.token_bucket_ratio <= 1:
    return ReplyShapes(time=time, packed_length=None, packed_length_of_scorers=None)

  def packed(microbatches: int) -> int | None:
    # Row i of a batch is in micro-batch i mod microbatches.
    parts = lengths.reshape(-1, microbatches, lengths.shape[1]).swapaxes(0, 1)
    return packing.size_of(layout, parts, time, ratio=section.token_bucket_ratio)

  return ReplyShapes(
    time=time,
    packed_length=packed(section.microbatches),
    # `sft` has no such passes.
    packed_length_of_scorers=packed(section.get("log_prob_microbatches", 1)),
  )


def truncate(rollout: records.Rollout, time: int) -> records.Rollout:
  """Cuts all replies after `time` tokens."""
  if rollout.tokens.shape[-1] == time:
    return rollout
  arrays = ("tokens", "log_probs", "kind", "turn")
  fields = {name: getattr(rollout, name)[:, :, :time] for name in arrays}
  return dataclasses.replace(
    rollout, **fields, episode_inputs=_truncate_episode_inputs(rollout.episode_inputs, time)
  )


def _truncate_episode_inputs(
  episode_inputs: records.EpisodeInputs | None, time: int
) -> records.EpisodeInputs | None:
  if episode_inputs is None:
    return None
  names = [
    "positions",
    "media_index",
    *(["visible_from"] if episode_inputs.visible_from is not None else []),
  ]
  fields = {name: getattr(episode_inputs, name)[:, :, :time] for name in names}
  return dataclasses.replace(episode_inputs, **fields)


def padding_fraction(
  rl: ml_collections.ConfigDict,
  layout: layout_lib.Layout,
  made: experience.Experience,
  chosen: ReplyShapes,
  *,
  scorers: int,
) -> float:
  """Fraction of a step's computed tokens that is padding, or comes after the end of a reply.

  Sampling counts its own tokens (`Experience`). To them this adds the updates of the policy and the
  critic, and the scorers' passes. The vision tower's work is not counted.

  scorers: forward passes without gradient: reference, old policy, critic.
  """
  lengths, devices = made.lengths, layout.ways("slots")
  full, prefix = lengths.size * chosen.time, made.prompt_with_features.tokens.shape[1]
  updates = rl.num_iterations * (1 + (rl.advantage_estimator == "gae"))
  update_tokens = (
    full if chosen.packed_length is None else chosen.packed_length * devices * rl.microbatches
  )
  scorer_tokens = (
    full
    if chosen.packed_length_of_scorers is None
    else chosen.packed_length_of_scorers * devices * rl.log_prob_microbatches
  )
  passes = updates + scorers
  reads = len(lengths) * passes
  reply_tokens = updates * update_tokens + scorers * scorer_tokens
  computed = made.computed_tokens + reply_tokens + reads * prefix
  wanted = made.useful_tokens + lengths.sum() * passes + reads * made.prompt_tokens
  return float(1 - wanted / computed)
