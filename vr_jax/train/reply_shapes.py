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
  packed_length_of_batch: the same for the whole batch, for passes without micro-batches.
  """

  time: int
  packed_length: int | None
  packed_length_of_batch: int | None


def choose_reply_shapes(
  section: ml_collections.ConfigDict,
  layout: layout_lib.Layout,
  lengths: Int[np.ndarray, "prompts group"],
  *,
  budget: int,
) -> ReplyShapes:
  """Chooses the smallest shapes that fit replies of these lengths.

  `time` is the budget, halved as long as the longest reply fits.

  section: `rl` or `sft`, for token_bucket_ratio and microbatches.
  budget: largest number of tokens of a reply.
  """
  time, longest = budget, max(int(lengths.max()), 1)
  while time % 2 == 0 and time // 2 >= longest:
    time //= 2
  if section.token_bucket_ratio <= 1:
    return ReplyShapes(time=time, packed_length=None, packed_length_of_batch=None)
  # Row i of a batch is in micro-batch i mod microbatches.
  microbatches = lengths.reshape(-1, section.microbatches, lengths.shape[1]).swapaxes(0, 1)
  packed_length, packed_length_of_batch = (
    packing.size_of(layout, x, time, ratio=section.token_bucket_ratio)
    for x in (microbatches, lengths[None])
  )
  return ReplyShapes(
    time=time, packed_length=packed_length, packed_length_of_batch=packed_length_of_batch
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
    full if chosen.packed_length_of_batch is None else chosen.packed_length_of_batch * devices
  )
  passes = updates + scorers
  reads = len(lengths) * passes
  reply_tokens = updates * update_tokens + scorers * scorer_tokens
  computed = made.computed_tokens + reply_tokens + reads * prefix
  wanted = made.useful_tokens + lengths.sum() * passes + reads * made.prompt_tokens
  return float(1 - wanted / computed)
