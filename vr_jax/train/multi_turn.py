"""Episodes of several turns in a run: how they are played, and read for their environment."""

from concurrent import futures
import dataclasses
from typing import Any

from jaxtyping import Array, Int, Key, PyTree
import numpy as np

from vr_jax import records
from vr_jax.envs import environment
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import dialogue as dialogue_lib
from vr_jax.rollout import episodes, turns
from vr_jax.train import parts as parts_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Talk:
  """Episodes of a batch. said: as their environment reads them, [prompts][group], those of its items alone."""

  played: episodes.Played
  said: list[list[environment.Episode]]
  dialogue: dialogue_lib.Dialogue


def schedule(parts: parts_lib.Parts) -> episodes.Schedule:
  """That of the recipe."""
  section = parts.config.turns
  return episodes.Schedule(
    turns=parts.environment.turns,
    time_buckets=tuple(section.time_buckets),
    shown_buckets=tuple(section.shown_buckets),
    frame_buckets=tuple(section.frame_buckets),
    patches=max(parts.config.model.patch_buckets),
    chunk=section.chunk,
    rows=section.rows,
  )


def play(
  parts: parts_lib.Parts,
  params: PyTree,
  batch: parts_lib.Batch,
  prompt: records.Prompt,
  key: Key[Array, ""],
  **decoding: Any,
) -> Talk:
  """Plays episodes about the pools of a batch. prompt: its openings, on the mesh; decoding: fields of the recipe's, changed.

  Raises InputError where `turns.play` does.
  """
  dialogue = parts.dialogue(batch)
  with futures.ThreadPoolExecutor(max(1, parts.config.data.threads)) as threads:
    played = turns.play(
      parts.graph,
      params,
      prompt,
      parts.allowed,
      key,
      dialogue,
      decoding=parts.decoding(**decoding),
      schedule=schedule(parts),
      threads=threads,
    )
  said = [
    [
      environment.Episode(
        pool=len(item.clip),
        relevant=parts.environment.relevant(item.example, item.clip.timestamps),
        replies=tuple(parts.processor.decode(reply) for reply in replies),
      )
      for replies in group
    ]
    for item, group in zip(batch.items, played.replies, strict=False)
  ]
  return Talk(played=played, said=said, dialogue=dialogue)


def rollout(parts: parts_lib.Parts, talk: Talk) -> records.Rollout:
  """As an update takes it: where the tower is trained with the patches of what turns showed, else with their features."""
  made = talk.played.rollout
  if parts.tower_frozen:
    return made
  vision = mesh_lib.put_batch(talk.played.vision(talk.dialogue, schedule(parts)), parts.mesh)
  suffix = dataclasses.replace(made.suffix, vision=vision, media=None)
  return dataclasses.replace(made, suffix=suffix)


def turn_of(rollout: records.Rollout) -> Int[np.ndarray, "prompts group time"]:
  """The turn that each sampled token belongs to; -1 elsewhere."""
  kind, turn = (mesh_lib.local_rows(x) for x in (rollout.kind, rollout.turn))
  return np.where(kind == records.Kind.MODEL, turn, -1).astype(np.int32)
