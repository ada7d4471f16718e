"""Samples the episodes of a batch, of one turn or several, through one function.

    played = play.play(
      graphdef, params, prompt, allowed_tokens, key, dialogue,
      decoding=…, schedule=…, threads=4,
    )
    replies = decode_replies.decode_replies(dialogue, played.rollout)

An episode of one turn is a reply to its prompt; `sampler` draws all of them together, and
`refill_sampler` in `decoding.slots` slots, each of which gets the next reply once free. Episodes of
several turns proceed independently, a chunk of decoding steps at a time (`multi_turn_sampler`).
"""

from concurrent import futures
import dataclasses

from flax import nnx
import jax
from jaxtyping import Array, Bool, Key, PyTree
import ml_collections

from vr_jax import optional_sections, records
from vr_jax.envs import environment as environment_lib
from vr_jax.models import interface
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import (
  encoder,
  episodes,
  multi_turn_sampler,
  refill_sampler,
  sampler,
  written_replies,
)


def make_schedule(
  config: ml_collections.ConfigDict,
  environment: environment_lib.Environment,
  processor: interface.Processor,
) -> episodes.Schedule:
  """The schedule of a recipe's episodes, from its environment and config."""
  turns = environment.turns
  patches = max(later_patch_buckets(config) if turns > 1 else config.model.patch_buckets)
  if turns == 1:
    return episodes.Schedule(turns=1, patches=patches)
  section = config.turns
  return episodes.Schedule(
    turns=turns,
    episode_buckets=tuple(section.episode_buckets),
    observation_buckets=tuple(section.observation_buckets),
    frame_buckets=tuple(section.frame_buckets),
    patches=patches,
    window=environment.history_turns,
    kept=processor.system_length,
    decode_chunk=section.decode_chunk,
    append_batch_size=section.append_batch_size,
  )


def later_patch_buckets(config: ml_collections.ConfigDict) -> tuple[int, ...]:
  """Patches a frame of the turns after the first, if there are any."""
  return tuple(config.turns.patch_buckets or config.model.patch_buckets)


def prompt_patch_buckets(config: ml_collections.ConfigDict) -> tuple[int, ...]:
  """Patches a frame of prompts: of first turns, or of conversations to learn, with later turns."""
  later = later_patch_buckets(config) if optional_sections.takes_turns(config) else ()
  return tuple(sorted({*config.model.patch_buckets, *later}))


def play(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  allowed_tokens: Bool[Array, "vocab"],
  key: Key[Array, ""],
  dialogue: episodes.Turns,
  *,
  decoding: sampler.Decoding,
  schedule: episodes.Schedule,
  threads: int,
  begun: written_replies.WrittenReplies | None = None,
  next_batch: refill_sampler.NextBatch | None = None,
  ends_outgrown: bool = False,
) -> episodes.EpisodeRollout:
  """Samples `decoding.group` episodes to each prompt.

  prompt: the first turns, on the mesh.
  allowed_tokens: tokens that may be sampled.
  dialogue: encodes the observations that follow replies.
  threads: number of threads on which the dialogue does that.
  begun, next_batch: of `refill_sampler.sample`, which episodes of one turn in slots alone know.
  ends_outgrown: of `multi_turn_sampler.play`.

  Raises InputError as `multi_turn_sampler.play` does.
  """
  if schedule.turns == 1:
    fewer = 0 < decoding.slots < len(prompt.tokens) * decoding.group
    refills = (fewer and not decoding.presence_penalty) or begun or next_batch
    arguments = graphdef, params, prompt, allowed_tokens, key
    if refills:
      sampled = refill_sampler.sample(
        *arguments, decoding=decoding, begun=begun, next_batch=next_batch
      )
      return episodes.EpisodeRollout(
        rollout=sampled.rollout, computed_tokens=sampled.computed_tokens, begun=sampled.begun
      )
    rollout, computed = sampler.sample_counting(*arguments, decoding=decoding)
    return episodes.EpisodeRollout(rollout=rollout, computed_tokens=computed)
  prompt = encoder.encode(graphdef, params, prompt)
  with futures.ThreadPoolExecutor(max(1, threads)) as pool:
    return multi_turn_sampler.play(
      graphdef,
      params,
      prompt,
      allowed_tokens,
      key,
      dialogue,
      decoding=decoding,
      schedule=schedule,
      threads=pool,
      ends_outgrown=ends_outgrown,
    )


def with_patches(
  played: episodes.EpisodeRollout,
  dialogue: episodes.Turns,
  *,
  schedule: episodes.Schedule,
  mesh: jax.sharding.Mesh,
) -> records.Rollout:
  """The rollout with the vision inputs of later turns, for an update that trains the tower."""
  rollout = played.rollout
  if rollout.episode_inputs is None:
    return rollout
  vision = played.vision(dialogue, schedule)
  vision = mesh_lib.put_batch(vision, mesh, axes=mesh_lib.VISION)
  episode_inputs = dataclasses.replace(rollout.episode_inputs, vision=vision, media=None)
  return dataclasses.replace(rollout, episode_inputs=episode_inputs)
