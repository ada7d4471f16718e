"""From sampled tokens to what an environment reads: texts, and the segment that each token belongs to."""

import bisect
from collections.abc import Sequence

from jaxtyping import Bool, Int
import numpy as np

from vr_jax import records
from vr_jax.envs import environment as environment_lib
from vr_jax.models import interface
from vr_jax.parallel import mesh as mesh_lib


def decode_replies(
  processor: interface.Processor,
  environment: environment_lib.Environment,
  rollout: records.Rollout,
  shuffled: records.Rollout | None = None,
  *,
  rows: int | None = None,
) -> environment_lib.Replies:
  """The replies to the first `rows` prompts of this process (None: to all).

  shuffled: the rollout of the same prompts with frames in random order, where there is one.
  """
  texts = _texts(processor, rollout)[:rows]
  sampled = _sampled(rollout)[:rows]
  segment = np.where(sampled, 0, -1).astype(np.int32)
  if len(environment.segments) > 1:
    tokens = mesh_lib.local_rows(rollout.tokens)
    for place in np.ndindex(sampled.shape[:2]):
      text = texts[place[0]][place[1]]
      segment[place][sampled[place]] = _segments(
        processor.ends(tokens[place][sampled[place]]), environment.pieces(text)
      )
  return environment_lib.Replies(
    texts=texts,
    segment=segment,
    shuffled=None if shuffled is None else _texts(processor, shuffled)[:rows],
  )


def _texts(processor: interface.Processor, rollout: records.Rollout) -> list[list[str]]:
  """[prompts][group]."""
  tokens, sampled = mesh_lib.local_rows(rollout.tokens), _sampled(rollout)
  return [
    [processor.decode(row[mask]) for row, mask in zip(group, masks, strict=True)]
    for group, masks in zip(tokens, sampled, strict=True)
  ]


def _sampled(rollout: records.Rollout) -> Bool[np.ndarray, "prompts group time"]:
  return mesh_lib.local_rows(rollout.kind) == records.Kind.MODEL


def _segments(ends: Sequence[int], pieces: environment_lib.Pieces) -> Int[np.ndarray, "time"]:
  """The segment of each token of a reply: that of the piece in which its first character stands, or else the last.

  ends: where each token ends in the text.
  """
  borders = [end for end, _ in pieces[:-1]]
  starts = [0, *ends[:-1]]
  return np.array([pieces[bisect.bisect_right(borders, start)][1] for start in starts], np.int32)
