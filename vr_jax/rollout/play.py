"""Episodes of a batch, sampled: one turn or several, in the same way for whoever asks.

    played = play.play(graph, params, prompt, allowed, key, dialogue, decoding=…, schedule=…, threads=4)
    replies = decode_replies.decode_replies(dialogue, played.rollout)

An episode of one turn is a reply to its prompt: `sampler` draws all of them in one program. Episodes of several turns go on at
their own pace, a chunk of steps at a time (`turns`).
"""

from concurrent import futures
import dataclasses

from flax import nnx
import jax
from jaxtyping import Array, Bool, Key, PyTree
import ml_collections

from vr_jax import records
from vr_jax.envs import environment as environment_lib
from vr_jax.models import interface
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import encoder, episodes, sampler, turns


def make_schedule(
  config: ml_collections.ConfigDict,
  environment: environment_lib.Environment,
  processor: interface.Processor,
) -> episodes.Schedule:
  """How a recipe's episodes are played."""
  turns, patches = environment.turns, max(config.model.patch_buckets)
  if turns == 1:
    return episodes.Schedule(turns=1, patches=patches)
  section = config.turns
  return episodes.Schedule(
    turns=turns,
    time_buckets=tuple(section.time_buckets),
    shown_buckets=tuple(section.shown_buckets),
    frame_buckets=tuple(section.frame_buckets),
    patches=patches,
    window=environment.window,
    kept=processor.system_length,
    chunk=section.chunk,
    rows=section.rows,
  )


def play(
  graph: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  allowed: Bool[Array, "vocab"],
  key: Key[Array, ""],
  dialogue: episodes.Turns,
  *,
  decoding: sampler.Decoding,
  schedule: episodes.Schedule,
  threads: int,
) -> episodes.Played:
  """Samples `decoding.group` episodes to each prompt.

  prompt: what they open with, on the mesh. dialogue: makes what replies are shown next, on so many threads.

  Raises InputError where `turns.play` does.
  """
  if schedule.turns == 1:
    rollout, computed = sampler.sample_counting(
      graph, params, prompt, allowed, key, decoding=decoding
    )
    return episodes.Played(rollout=rollout, computed=computed)
  prompt = encoder.encode(graph, params, prompt)
  with futures.ThreadPoolExecutor(max(1, threads)) as pool:
    return turns.play(
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


def with_patches(
  played: episodes.Played,
  dialogue: episodes.Turns,
  *,
  schedule: episodes.Schedule,
  mesh: jax.sharding.Mesh,
) -> records.Rollout:
  """The rollout with the patches of what later turns showed, for an update that trains the tower."""
  rollout = played.rollout
  if rollout.suffix is None:
    return rollout
  vision = played.vision(dialogue, schedule)
  vision = mesh_lib.put_batch(vision, mesh, axes=mesh_lib.VISION)
  suffix = dataclasses.replace(rollout.suffix, vision=vision, media=None)
  return dataclasses.replace(rollout, suffix=suffix)
