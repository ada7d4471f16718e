"""Padding: the shapes that fit the replies of a batch, and what share of the tokens that a step computes are none."""

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
  """What the passes over the replies of a batch are compiled for.

  time: length of its arrays. packed: places a device of each micro-batch (None: padding is computed). packed_whole: the
  same of the whole batch, as scorers take it.
  """

  time: int
  packed: int | None
  packed_whole: int | None


def choose_reply_shapes(
  section: ml_collections.ConfigDict,
  layout: layout_lib.Layout,
  lengths: Int[np.ndarray, "prompts group"],
  *,
  budget: int,
) -> ReplyShapes:
  """The smallest of a few that hold replies of these lengths: time the budget of a reply, halved while it holds the longest.

  section: `rl` or `sft`, for its packing and microbatches.
  """
  time, longest = budget, max(int(lengths.max()), 1)
  while time % 2 == 0 and time // 2 >= longest:
    time //= 2
  if section.token_bucket_ratio <= 1:
    return ReplyShapes(time=time, packed=None, packed_whole=None)
  # Row i of a batch is in micro-batch i mod microbatches.
  of_parts = lengths.reshape(-1, section.microbatches, lengths.shape[1]).swapaxes(0, 1)
  packed, packed_whole = (
    packing.size_of(layout, x, time, ratio=section.token_bucket_ratio)
    for x in (of_parts, lengths[None])
  )
  return ReplyShapes(time=time, packed=packed, packed_whole=packed_whole)


def truncate(rollout: records.Rollout, time: int) -> records.Rollout:
  """The first `time` tokens of all replies."""
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
    *(["forgotten"] if episode_inputs.forgotten is not None else []),
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
  """The share of all tokens computed in a step that are padding, or came after the end of a reply.

  Sampling has counted its own. Then a step reads its prompts to update (a critic as well), and for each of the scorers: reference,
  old policy, critic. Patches, and what the tower makes of them before it is part of a prompt, are no tokens.
  """
  lengths, places = made.lengths, layout.ways("slots")
  full, prefix = lengths.size * chosen.time, made.prompt_with_features.tokens.shape[1]
  updates = rl.num_iterations * (1 + (rl.advantage_estimator == "gae"))
  of_update = full if chosen.packed is None else chosen.packed * places * rl.microbatches
  of_scorer = full if chosen.packed_whole is None else chosen.packed_whole * places
  passes = updates + scorers
  reads = len(lengths) * passes
  computed = made.computed_tokens + updates * of_update + scorers * of_scorer + reads * prefix
  wanted = made.useful_tokens + lengths.sum() * passes + reads * made.prompt_tokens
  return float(1 - wanted / computed)
