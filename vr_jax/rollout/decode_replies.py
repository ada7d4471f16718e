"""From sampled tokens to what an environment scores: texts, and the segment that each token belongs to."""

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
  """The episodes about the first `rows` scenes of a dialogue (None: about all), as its environment scores them.

  shuffled: the rollout of the same prompts with frames in random order, where there is one.
  """
  environment, processor = dialogue.environment, dialogue.processor
  tokens, turn = (mesh_lib.local_rows(x)[:rows] for x in (rollout.tokens, rollout.turn))
  sampled = _sampled(rollout)[:rows]
  segment = np.where(sampled, 0, -1).astype(np.int32)
  episodes = []
  for row, scene in enumerate(dialogue.scenes[: len(tokens)]):
    relevant = environment.relevant(scene.example, scene.pool.timestamps)
    episodes.append([])
    for group_index in range(tokens.shape[1]):
      place, said = (row, group_index), []
      for number in range(1 + turn[place].max(initial=0, where=sampled[place])):
        mask = sampled[place] & (turn[place] == number)
        ids = tokens[place][mask]
        said.append(processor.decode(ids))
        segment[place][mask] = _segments(
          processor, ids, environment.segment_spans(said[-1], number)
        )
      episode = environment_lib.Episode(
        pool=len(scene.pool), relevant=relevant, replies=tuple(said)
      )
      episodes[-1].append(episode)
  return environment_lib.Replies(
    episodes=episodes,
    segment=segment,
    shuffled=None if shuffled is None else _texts(processor, shuffled)[:rows],
  )


def _texts(processor: interface.Processor, rollout: records.Rollout) -> list[list[str]]:
  """[prompts][group], of episodes of one turn."""
  tokens, sampled = mesh_lib.local_rows(rollout.tokens), _sampled(rollout)
  return [
    [processor.decode(row[mask]) for row, mask in zip(group, masks, strict=True)]
    for group, masks in zip(tokens, sampled, strict=True)
  ]


def _sampled(rollout: records.Rollout) -> Bool[np.ndarray, "prompts group time"]:
  return mesh_lib.local_rows(rollout.kind) == records.Kind.MODEL


def _segments(
  processor: interface.Processor,
  tokens: Int[np.ndarray, "time"],
  pieces: environment_lib.SegmentSpans,
) -> Int[np.ndarray, "time"]:
  """The segment of each token of a reply: that of the piece in which its first character stands, or else the last."""
  if len(pieces) == 1:
    return np.full(len(tokens), pieces[0][1], np.int32)
  borders = [end for end, _ in pieces[:-1]]
  starts = [0, *processor.ends(tokens)[:-1]]
  return np.array([pieces[bisect.bisect_right(borders, start)][1] for start in starts], np.int32)
