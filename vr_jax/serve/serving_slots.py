"""The replies that a server decodes together on the devices: a slot each, filled once it is free.

    slots = ServingSlots(context, params, schedule=…, rows=8, length=1024)
    reply = slots.insert(slot, encoded)          prefills one prompt into a free slot
    ended = slots.decode(replies)                a chunk of steps for all slots
    slots.append(reply, observation, max_tokens) what a reply is shown next

Each prompt is prefilled alone and decoded in a program of always the same shape. So what a reply
gets does not depend on the replies beside it.
"""

from collections.abc import Mapping
import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree
import numpy as np

from vr_jax import records
from vr_jax.models import interface
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.models.common import slots as slots_lib
from vr_jax.rollout import (
  encoder,
  episodes,
  play,
  prompt_slots,
  row_sampling,
  sampler,
  turn_decode,
)
from vr_jax.rollout import slot_layout as slot_layout_lib
from vr_jax.train import run_context


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotSettings:
  """How the reply in a slot is sampled.

  seed: of its key, see `row_sampling.reply_key`.
  top_p, top_k, min_p: as in `sampler.Decoding`.
  max_tokens: of each turn.
  stride: steps by which the numbers of the first steps of two turns differ, as in `ChunkSlots`.
  """

  seed: int
  temperature: float
  top_p: float
  top_k: int
  min_p: float
  max_tokens: int
  stride: int


class ServingSlots:
  """Slots on the devices. One thread uses it; a call that fails leaves it unusable.

  rows: number of slots, a multiple of the devices that hold some.
  """

  def __init__(
    self,
    context: run_context.RunContext,
    params: PyTree,
    *,
    schedule: episodes.Schedule,
    rows: int,
    length: int,
  ):
    """Makes empty slots.

    schedule: of the recipe's turns; its `decode_chunk` is the number of steps of a chunk.
    rows: number of slots, at least.
    length: tokens that each slot has room for after its prompt.
    """
    self._context, self._params, self._schedule = context, params, schedule
    # Each chunk needs the keys of all slots again.
    self._reply_key = functools.lru_cache(maxsize=1024)(row_sampling.reply_key)
    self._layout = nnx.merge(context.graphdef, params).layout.decoding
    ways = self._layout.ways("slots")
    self.rows = -(-rows // ways) * ways
    self._places = slot_layout_lib.SlotLayout.for_groups(self._layout, self.rows, 1)
    self._decoding = context.decoding(group=1, temperature=1.0, top_p=1.0, slot_fractions=())
    self._decoding_params = sampler.decoding_params(context.graphdef, params)
    prompt = self._pad_prompt(prompts_lib.nothing(context.processor.position_axes), largest=True)
    self._prefix, self._state = _open_slots(
      context.graphdef, params, prompt, rows=self.rows, length=length, patches=schedule.patches
    )

  def features(self, encoded: prompts_lib.EncodedPrompt) -> PyTree:
    """Runs the vision tower over a prompt's frames; returns features [media, …] on the host."""
    prompt = self._pad_prompt(encoded)
    media = encoder.features(self._context.graphdef, self._params, prompt.vision)
    index = prompt.media_index[0]
    kept = index[index >= 0]
    return jax.tree.map(lambda x: np.asarray(x)[0][kept], jax.device_get(media))

  def insert(self, slot: int, encoded: prompts_lib.EncodedPrompt) -> episodes.EpisodeState:
    """Prefills a prompt that has features into a slot; returns the reply that begins there."""
    prefix = _prefill(self._context.graphdef, self._params, self._pad_prompt(encoded))
    self._prefix, self._state = _insert(
      self._layout, self._prefix, self._state, prefix, jnp.int32(slot)
    )
    return episodes.EpisodeState(
      device=slot // self._places.slots,
      cache_slot=slot % self._places.slots,
      prompt_slot=int(self._places.reply()[slot]),
      position=encoded.next_position,
    )

  def decode(self, replies: Mapping[int, tuple[episodes.EpisodeState, SlotSettings]]) -> list[int]:
    """Decodes a chunk of steps for the replies in some slots; returns the slots whose reply ended.

    Their new tokens are in `replies[slot][0].replies[-1]`.
    """
    left, step = np.zeros(self.rows, np.int32), np.zeros(self.rows, np.int32)
    keys = np.tile(self._reply_key(0), (self.rows, 1))
    top_p, top_k = np.ones(self.rows, np.float32), np.zeros(self.rows, np.int32)
    temperature, min_p = (np.zeros(self.rows, np.float32) for _ in range(2))
    for slot, (reply, settings) in replies.items():
      done = len(reply.replies[-1])
      left[slot] = settings.max_tokens - done
      step[slot] = (len(reply.replies) - 1) * settings.stride + done
      keys[slot], temperature[slot] = self._reply_key(settings.seed), settings.temperature
      top_p[slot], top_k[slot], min_p[slot] = settings.top_p, settings.top_k, settings.min_p
    zeros = np.zeros(self.rows, np.int32)
    self._state, decoded = turn_decode.decode(
      self._context.graphdef,
      self._decoding_params,
      self._prefix,
      self._state,
      turn_decode.ChunkSlots(
        rows=self._cache_rows({slot: reply for slot, (reply, _) in replies.items()}),
        row=zeros,
        group_index=zeros,
        step=step,
        left=left,
      ),
      self._context.allowed_tokens,
      jax.random.key(0),
      jnp.int32(0),
      row_sampling.RowSampling(
        key_data=keys, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p
      ),
      decoding=self._decoding,
      chunk=self._schedule.decode_chunk,
    )
    tokens, counts, ended = jax.device_get((decoded.tokens, decoded.counts, decoded.ended))
    for slot, (reply, _) in replies.items():
      reply.add_reply_tokens(tokens[slot, : counts[slot]])
    return [slot for slot in replies if ended[slot]]

  def append(
    self, reply: episodes.EpisodeState, observation: episodes.EncodedObservation, max_tokens: int
  ) -> None:
    """Appends an observation to a reply, which goes on with its next turn.

    Raises InputError if the observation and a reply of `max_tokens` don't fit the largest buckets.
    """
    schedule, processor = self._schedule, self._context.processor
    episodes.check_observation_fits(
      observation,
      written=reply.written,
      frames=reply.frames,
      reply=max_tokens,
      schedule=schedule,
    )
    size = episodes.ObservationSize.from_encoded(observation)
    bucket = prompts_lib.smallest_bucket
    sizes = prompts_lib.PromptSizes(
      prefix=bucket([("turn", size.tokens)], schedule.observation_buckets, "tokens"),
      frames=bucket([("turn", size.frames)], schedule.frame_buckets, "frames"),
      patches=schedule.patches,
    )
    nothing = prompts_lib.nothing(processor.position_axes)
    batch = processor.pad(
      [
        observation if device == reply.device else nothing for device in range(self._places.devices)
      ],
      sizes,
    )
    self._state = turn_decode.append_observations(
      self._context.graphdef,
      self._params,
      self._prefix,
      self._state,
      slot_layout_lib.put_on_devices(self._layout, batch),
      self._cache_rows({reply.device: reply}, count=self._places.devices, of_turn=0),
      np.zeros(self._places.devices, np.int32),
      stride=0,
    )
    reply.start_next_turn(size)

  def _cache_rows(
    self, replies: Mapping[int, episodes.EpisodeState], *, count: int = 0, of_turn: int = -1
  ) -> slots_lib.CacheRows:
    """Cache slots, prompts and progress of replies by their row.

    count: of rows, if they are not the slots; empty rows are out of range then.
    of_turn: added to the number of turns so far: that of the turn that is computed next.
    """
    places, window, visible_from = self._places, self._schedule.window, None
    cache_slot = np.full(count, places.slots, np.int32) if count else places.device_slot()
    prompt_slot = np.full(count, places.replies, np.int32) if count else places.reply()
    cache_slot, prompt_slot = (x.astype(np.int32) for x in (cache_slot, prompt_slot))
    written, position = np.zeros_like(cache_slot), np.zeros_like(cache_slot)
    for row, reply in replies.items():
      cache_slot[row], prompt_slot[row] = reply.cache_slot, reply.prompt_slot
      written[row], position[row] = reply.written, reply.position
    if window is not None and self._schedule.forgets:
      visible_from = np.zeros_like(cache_slot)
      for row, reply in replies.items():
        visible_from[row] = reply.visible_from(len(reply.replies) + of_turn, window)
    return slots_lib.CacheRows(
      cache_slot=cache_slot,
      prompt_slot=prompt_slot,
      written=written,
      position=position,
      visible_from=visible_from,
      kept=self._schedule.kept,
    )

  def _pad_prompt(
    self, encoded: prompts_lib.EncodedPrompt, *, largest: bool = False
  ) -> records.Prompt:
    """Pads a prompt to its buckets, or to the largest; without frames it has features of none."""
    if not encoded.frames:
      shapes = self._context.model.vision_shapes
      encoded = dataclasses.replace(encoded, features=shapes.features(np.zeros, 0))
    sizes = find_buckets(self._context, encoded)
    if largest:
      sizes = dataclasses.replace(sizes, prefix=max(self._context.config.model.prefix_buckets))
    return self._context.processor.pad([encoded], sizes)


def find_buckets(
  context: run_context.RunContext, encoded: prompts_lib.EncodedPrompt
) -> prompts_lib.PromptSizes:
  """The sizes to which a prompt is padded. Raises InputError if it is larger than the largest."""
  model = context.config.model
  return context.processor.sizes(
    [encoded],
    prefix_buckets=model.prefix_buckets,
    frame_buckets=model.frame_buckets,
    patch_buckets=play.prompt_patch_buckets(context.config),
  )


@functools.partial(jax.jit, static_argnames="graphdef")
def _prefill(graphdef: nnx.GraphDef, params: PyTree, prompt: records.Prompt) -> interface.Prefix:
  return nnx.merge(graphdef, params).prefill(prompt)


@functools.partial(jax.jit, static_argnames=("graphdef", "rows", "length", "patches"))
def _open_slots(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  *,
  rows: int,
  length: int,
  patches: int,
) -> tuple[interface.Prefix, turn_decode.EpisodeDecodeState]:
  """Empty slots: their prompts are all zeros. prompt: one, as large as the largest."""
  model = nnx.merge(graphdef, params)
  one = jax.eval_shape(model.prefill, prompt)
  prefix = prompt_slots.blank_prefix(model.layout.decoding, one, rows)
  hidden = jnp.zeros((rows, one.hidden.shape[-1]), one.hidden.dtype)
  return prefix, turn_decode.EpisodeDecodeState(
    hidden=model.layout.decoding.place(hidden, ("slots", None)),
    cache=model.init_cache(prefix, rows, length),
    # Only updates read features again, so that later turns have room for those of one frame.
    media=model.init_media_features(rows, 1, patches),
  )


@functools.partial(jax.jit, static_argnames="layout", donate_argnames=("prefix", "state"))
def _insert(
  layout: layout_lib.Layout,
  prefix: interface.Prefix,
  state: turn_decode.EpisodeDecodeState,
  one: interface.Prefix,
  slot: Int[Array, ""],
) -> tuple[interface.Prefix, turn_decode.EpisodeDecodeState]:
  """Puts the prefix of one prompt into a slot; what its cache holds counts as not written."""

  def put(x: Array, new: Array, axes: layout_lib.Axes) -> Array:
    is_row = [axis == "prompts" for axis in axes]
    widths = [
      (0, 0 if row else size - part)
      for row, size, part in zip(is_row, x.shape, new.shape, strict=True)
    ]
    start = [slot if row else jnp.zeros_like(slot) for row in is_row]
    padded = jnp.pad(new, widths)  # with tokens that are not valid
    return layout.place(jax.lax.dynamic_update_slice(x, padded, start), axes)

  hidden = jax.lax.dynamic_update_slice(state.hidden, one.hidden, (slot, jnp.zeros_like(slot)))
  hidden = layout.place(hidden, ("slots", None))
  prefix = prompt_slots.put_prompts(prefix, one, put)
  return prefix, dataclasses.replace(state, hidden=hidden)
