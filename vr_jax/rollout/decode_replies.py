"""Decodes sampled tokens into texts, and finds the segment that each token belongs to."""

import bisect

from jaxtyping import Bool, Int
import numpy as np

from vr_jax import records
from vr_jax.envs import environment as environment_lib
from vr_jax.models import interface
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import dialogue as dialogue_lib


def decode_replies(
  dialogue: dialogue_lib.Dialogue,
  rollout: records.Rollout,
  shuffled: records.Rollout | None = None,
  *,
  rows: int | None = None,
) -> environment_lib.Replies:
  """Decodes a rollout into the replies that an environment scores.

  dialogue: its scenes are the rows of the rollout.
  shuffled: the rollout of the same prompts with frames in random order, if there is one.
  rows: decode only so many first rows; None: all.
  """
  environment, processor = dialogue.environment, dialogue.processor
  tokens, turn = (mesh_lib.local_rows(x)[:rows] for x in (rollout.tokens, rollout.turn))
  sampled = _sampled(rollout)[:rows]
  segment = np.where(sampled, 0, -1).astype(np.int32)
  episodes = []
  for row, scene in enumerate(dialogue.scenes[: len(tokens)]):
    relevant = environment.relevant(scene.example, scene.pool.timestamps)
    times = tuple(np.asarray(scene.pool.timestamps, float).tolist())
    episodes.append([])
    for group_index in range(tokens.shape[1]):
      index, replies = (row, group_index), []
      for number in range(1 + turn[index].max(initial=0, where=sampled[index])):
        mask = sampled[index] & (turn[index] == number)
        ids = tokens[index][mask]
        replies.append(processor.decode(ids))
        spans = environment.segment_spans(replies[-1], number)
        segment[index][mask] = _segments(processor, ids, spans)
      episode = environment_lib.Episode(
        pool=len(scene.pool), relevant=relevant, replies=tuple(replies), times=times
      )
      episodes[-1].append(episode)
  return environment_lib.Replies(
    episodes=episodes,
    segment=segment,
    shuffled=None if shuffled is None else _texts(processor, shuffled)[:rows],
  )


def _texts(processor: interface.Processor, rollout: records.Rollout) -> list[list[str]]:
  """The replies of episodes of one turn, [prompts][group]."""
  tokens, sampled = mesh_lib.local_rows(rollout.tokens), _sampled(rollout)
  return [
    [processor.decode(row[mask]) for row, mask in zip(group, masks, strict=True)]
    for group, masks in zip(tokens, sampled, strict=True)
  ]


def _sampled(rollout: records.Rollout) -> Bool[np.ndarray, "prompts group time"]:
  """Which tokens of this process's rows were sampled."""
  return mesh_lib.local_rows(rollout.kind) == records.Kind.MODEL


def _segments(
  processor: interface.Processor,
  tokens: Int[np.ndarray, "time"],
  spans: environment_lib.SegmentSpans,
) -> Int[np.ndarray, "time"]:
  """The segment of each token of a reply: the one that its first character belongs to.

  Tokens after the last span belong to the last segment.
  """
  if len(spans) == 1:
    return np.full(len(tokens), spans[0][1], np.int32)
  borders = [end for end, _ in spans[:-1]]
  starts = [0, *processor.ends(tokens)[:-1]]
  return np.array([spans[bisect.bisect_right(borders, start)][1] for start in starts], np.int32)
