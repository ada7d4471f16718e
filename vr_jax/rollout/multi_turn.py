"""Episodes of several turns in a run: how they are played, and read for their environment."""

from collections.abc import Sequence
from concurrent import futures
import dataclasses

from flax import nnx
import jax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
import ml_collections
import numpy as np

from vr_jax import records
from vr_jax.envs import environment as environment_lib
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import dialogue as dialogue_lib
from vr_jax.rollout import episodes, sampler, turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Talk:
  """Episodes of a batch. said: as their environment reads them, [prompts][group], those of its items alone."""

  played: episodes.Played
  said: list[list[environment_lib.Episode]]
  dialogue: dialogue_lib.Dialogue


def make_schedule(config: ml_collections.ConfigDict, *, turns: int) -> episodes.Schedule:
  """The schedule of a recipe's config. turns: replies of an episode, at most."""
  section = config.turns
  return episodes.Schedule(
    turns=turns,
    time_buckets=tuple(section.time_buckets),
    shown_buckets=tuple(section.shown_buckets),
    frame_buckets=tuple(section.frame_buckets),
    patches=max(config.model.patch_buckets),
    chunk=section.chunk,
    rows=section.rows,
  )


def play(
  graph: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  allowed: Bool[Array, "vocab"],
  key: Key[Array, ""],
  dialogue: dialogue_lib.Dialogue,
  *,
  timestamps: Sequence[Float[np.ndarray, "pool"]],
  decoding: sampler.Decoding,
  schedule: episodes.Schedule,
  threads: int,
) -> Talk:
  """Plays episodes about the pools of a dialogue, and reads those of its first rows.

  prompt: their openings, on the mesh. timestamps: of the frames of each pool whose episodes are read, seconds. threads: that
  read frames.

  Raises InputError where `turns.play` does.
  """
  with futures.ThreadPoolExecutor(max(1, threads)) as pool:
    played = turns.play(
      graph,
      params,
      prompt,
      allowed,
      key,
      dialogue,
      decoding=decoding,
      schedule=schedule,
      threads=pool,
    )
  environment, processor = dialogue.environment, dialogue.processor
  said = [
    [
      environment_lib.Episode(
        pool=len(scene.pool),
        relevant=environment.relevant(scene.example, times),
        replies=tuple(processor.decode(reply) for reply in replies),
      )
      for replies in group
    ]
    for times, scene, group in zip(timestamps, dialogue.scenes, played.replies, strict=False)
  ]
  return Talk(played=played, said=said, dialogue=dialogue)


def make_rollout(
  talk: Talk, *, schedule: episodes.Schedule, mesh: jax.sharding.Mesh, tower_frozen: bool
) -> records.Rollout:
  """The rollout that an update takes: with the patches of what turns showed if it trains the tower, else with features."""
  made = talk.played.rollout
  if tower_frozen:
    return made
  vision = talk.played.vision(talk.dialogue, schedule)
  vision = mesh_lib.put_batch(vision, mesh, axes=mesh_lib.VISION)
  suffix = dataclasses.replace(made.suffix, vision=vision, media=None)
  return dataclasses.replace(made, suffix=suffix)


def turn_of(rollout: records.Rollout) -> Int[np.ndarray, "prompts group time"]:
  """The turn that each sampled token belongs to; -1 elsewhere."""
  kind, turn = (mesh_lib.local_rows(x) for x in (rollout.kind, rollout.turn))
  return np.where(kind == records.Kind.MODEL, turn, -1).astype(np.int32)
