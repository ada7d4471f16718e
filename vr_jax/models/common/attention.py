"""Attention of prompts, frames and replies that share a prompt, on each device's shards.

A long prompt is sharded by its queries. Keys and values are small (grouped heads), so every device
with queries has all keys and values for them. While sampling, the queries of a step or of an
observation are smaller still: they go to the devices that hold the prompt's keys. Three backends
compute the same results:

    xla     plain products, on all platforms; in chunks where there would be too many logits
            (on CPU: more than its caches hold)
    splash  the Pallas kernel of TPUs (emulated on CPU, which is slow); splash_fused is the same
            with one kernel for the backward pass instead of two
    cudnn   the fused kernels of NVIDIA GPUs

Decoding has two of its own:

    xla     plain products
    pallas  our kernel for TPUs (emulated on CPU), which reads less (attention_decode_kernel.py)
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax import errors
from vr_jax.models import interface
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import (
  attention_cudnn,
  attention_decode,
  attention_decode_kernel,
  attention_decode_plan,
  attention_forgetting,
  attention_splash,
  attention_xla,
  zigzag,
)
from vr_jax.models.common import slots as slots_lib

DECODE_PLATFORMS = {"pallas": ("tpu", "cpu"), "xla": ("cpu", "gpu", "tpu")}
# Platforms of each backend. It is the default of the first one for activations of two bytes.
PLATFORMS = {
  "splash": ("tpu", "cpu"),
  "splash_fused": ("tpu", "cpu"),
  "cudnn": ("gpu",),
  "xla": ("cpu", "gpu", "tpu"),
}


def make(config: interface.ModelConfig, layout: layout_lib.Layout) -> "Attention":
  """Makes the attention backend that a config names, or the platform's default.

  The default is `xla` where no faster backend supports the dtype.

  Raises InputError if a backend does not run on the platform or the mesh, or the chip lacks the
    dtype.
  """
  name, platform = config.attention, layout.platform
  in_kernel = _decodes_in_kernel(config, layout)
  if platform == "tpu" and config.dtype == "float16":
    raise errors.InputError("config.model.dtype=float16: TPUs have none; set bfloat16")
  halved = jnp.dtype(config.dtype).itemsize == 2
  if not name:
    own = [backend for backend, runs in PLATFORMS.items() if runs[0] == platform and halved]
    return Attention(layout, own[0] if own else "xla", in_kernel)
  _check_platform("attention", name, platform, PLATFORMS)
  if name == "cudnn" and not halved:
    raise errors.InputError(
      f"config.model.attention=cudnn: takes no {config.dtype}; set config.model.dtype=bfloat16"
    )
  return Attention(layout, name, in_kernel)


def _check_platform(
  field: str, name: str, platform: str, platforms: Mapping[str, Sequence[str]]
) -> None:
  """Raises InputError unless the backend of a field of config.model runs on the platform."""
  if platform not in platforms.get(name, ()):
    fitting = [backend for backend, runs in platforms.items() if platform in runs]
    raise errors.InputError(
      f"config.model.{field}={name}: does not run on {platform}; one of {', '.join(fitting)}"
    )


def _decodes_in_kernel(config: interface.ModelConfig, layout: layout_lib.Layout) -> bool:
  """Whether decoding runs in the kernel. Raises InputError as `make`."""
  name, platform = config.decode_attention, layout.platform
  _check_platform("decode_attention", name, platform, DECODE_PLATFORMS)
  ways = layout.decoding.ways("prefix")
  if name == "pallas" and ways > 1:
    raise errors.InputError(
      "config.model.decode_attention=pallas: takes whole prompts, but sequence of config.mesh "
      f"splits each over {ways} devices; set xla, or sequence 1"
    )
  return name == "pallas"


# Axes of the keys and values of all layers that the decode kernel takes.
_PROMPT_STACK = (None, "prompts", "kv_heads", None, None)
_SLOT_STACK = (None, "slots", "kv_heads", None, None)


class Block(NamedTuple):
  """Keys, values and the mask of valid ones; functions that take it document the axes."""

  key: Array
  value: Array
  valid: Array


class Forgetting(NamedTuple):
  """What tokens of replies no longer attend to.

  visible_from: [prompts, group, time], the index of the first token of its own reply that a token
    attends to. Where it is above 0, only the first `kept` tokens of the prompt are attended to.
  """

  visible_from: Array
  kept: int


class Recent(NamedTuple):
  """Keys and values of the last `index` steps, stacked over layers or as tuples of layers."""

  key: Array | tuple[Array, ...]
  value: Array | tuple[Array, ...]
  index: Array


@dataclasses.dataclass(frozen=True)
class Attention:
  """An attention backend with a layout. Hashable, since it is a static attribute of models."""

  layout: layout_lib.Layout
  backend: str = "xla"
  decodes_in_kernel: bool = False

  def prompts(
    self,
    query: Float[Array, "prompts prefix heads head_dim"],
    key: Float[Array, "prompts prefix kv_heads head_dim"],
    value: Float[Array, "prompts prefix kv_heads head_dim"],
    valid: Bool[Array, "prompts prefix"],
    folded: Bool[Array, "prompts prefix"] | None = None,
  ) -> Float[Array, "prompts prefix heads head_dim"]:
    """Causal attention within prompts; the output at padding is meaningless.

    folded: `valid` in zigzag order (zigzag.py), if query, key, value and the output are in it.
    """
    length = query.shape[1]
    ways = 1 if folded is None else self.layout.ways("prefix")

    def local(query, query_segment, index, key, value, key_segment):
      within = self._function("attend_segments")
      if ways > 1:
        key, value = (zigzag.gathered_in_order(x, ways) for x in (key, value))
      segments = query_segment, key_segment
      return within(query, key, value, *segments, index, causal=True, folded=ways > 1)

    segment = valid.astype(jnp.int32)
    query_segment = segment if folded is None else folded.astype(jnp.int32)
    index = jnp.arange(length) if folded is None else jnp.asarray(zigzag.order(length, ways))
    return self.layout.per_shard(
      local,
      (
        (query, ("prompts", "prefix", "heads", None)),
        (query_segment, ("prompts", "prefix")),
        (index, ("prefix",)),
        (key, ("prompts", None, "kv_heads", None)),
        (value, ("prompts", None, "kv_heads", None)),
        (segment, ("prompts", None)),
      ),
    )

  def frames(
    self,
    query: Float[Array, "prompts frames *rows patches heads head_dim"],
    key: Float[Array, "prompts frames *rows keys heads head_dim"],
    value: Float[Array, "prompts frames *rows keys heads head_dim"],
    segment: Int[Array, "prompts frames *rows patches"],
    key_segment: Int[Array, "prompts frames *rows keys"] | None = None,
  ) -> Float[Array, "prompts frames *rows patches heads head_dim"]:
    """Attention of every patch to the patches of its frame, or row, with the same segment.

    key_segment: None: keys are of the patches that ask. Otherwise others ask, say learned queries.
    """

    def local(query, key, value, segment, key_segment):
      index = jnp.arange(query.shape[-3])
      arrays = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
      segments = (x.reshape(-1, x.shape[-1]) for x in (segment, key_segment))
      attend = self._function("attend_segments", keys=key.shape[-3])
      return attend(*arrays, *segments, index, causal=False).reshape(query.shape)

    leading = ("prompts", "frames", *[None] * (segment.ndim - 2))
    axes = (*leading, "vision_heads", None)
    of_keys = segment if key_segment is None else key_segment
    segments = ((x, leading) for x in (segment, of_keys))
    return self.layout.per_shard(local, ((query, axes), (key, axes), (value, axes), *segments))

  def replies(
    self,
    query: Float[Array, "prompts group time heads head_dim"],
    prefix: Block,
    own: Block,
    forgetting: Forgetting | None = None,
  ) -> Float[Array, "prompts group time heads head_dim"]:
    """Attention of replies to their prompt and, causally, to their own valid tokens.

    prefix: key and value [prompts, prefix, kv_heads, head_dim], valid [prompts, prefix].
    own:    key and value [prompts, group, time, kv_heads, head_dim], valid [prompts, group, time].
    """

    def attend(query, index, *blocks):
      return self._function("attend_replies")(query, *blocks, index)

    local: Callable[..., Array] = attend
    more = ()
    if forgetting is not None:
      local = functools.partial(
        attention_forgetting.attend_replies, kept=forgetting.kept, logits=self._logits
      )
      more = ((forgetting.visible_from, ("prompts", "group", *self._time_axes(query))),)
    prefix_axes, own_axes = ("prompts", None, "kv_heads", None), ("prompts", "group", None)
    return self.layout.per_shard(
      local,
      (
        (query, ("prompts", "group", "time", "heads", None)),
        (jnp.arange(query.shape[2]), self._time_axes(query)),
        (prefix.key, prefix_axes),
        (prefix.value, prefix_axes),
        (prefix.valid, ("prompts", None)),
        (own.key, (*own_axes, "kv_heads", None)),
        (own.value, (*own_axes, "kv_heads", None)),
        (own.valid, own_axes),
        *more,
      ),
    )

  def step(
    self,
    query: Float[Array, "slots heads head_dim"],
    decode_slots: slots_lib.DecodeSlots,
    prefix: Block,
    *pasts: Block,
  ) -> Float[Array, "slots heads head_dim"]:
    """Attention of one new token a reply to its prompt and to the reply up to itself.

    prefix: key [prompts, kv_heads, head_dim, prefix], value [prompts, kv_heads, prefix, head_dim],
            valid [prompts, prefix].
    pasts:  key [slots, kv_heads, head_dim, length], value [slots, kv_heads, length, head_dim],
            valid [length] or [slots, length]; one block or more.
    """
    slot_axes = ("slots", "kv_heads", None, None)
    prefix_axes = ("prompts", "prefix")
    past_inputs = (
      pair
      for past in pasts
      for pair in (
        (past.key, slot_axes),
        (past.value, slot_axes),
        (past.valid, ("slots", None)[2 - past.valid.ndim :]),
      )
    )
    layout = self.layout.decoding
    is_split = layout.shards(prefix_axes, prefix.valid.shape)[1] > 1
    step: Callable[..., Array] = functools.partial(
      attention_decode.step,
      group=decode_slots.group,
      split_by=layout if is_split else None,
    )
    forgetting = ()
    if decode_slots.forgets is not None:
      remembered = jnp.arange(prefix.valid.shape[1]) < decode_slots.kept
      forgetting = ((decode_slots.forgets, ("slots",)), (remembered, ("prefix",)))

    def local(query: Array, *inputs: Array) -> Array:
      forgets, rest = inputs[: len(forgetting)], inputs[len(forgetting) :]
      return step(query, *rest, **dict(zip(("forgets", "remembered"), forgets, strict=False)))

    return layout.per_shard(
      local,
      (
        (query, ("slots", "heads", None)),
        *forgetting,
        (decode_slots.prompt, ("slots",)),
        (decode_slots.group_index, ("slots",)),
        (prefix.key, ("prompts", "kv_heads", None, "prefix")),
        (prefix.value, ("prompts", "kv_heads", "prefix", None)),
        (prefix.valid, prefix_axes),
        *past_inputs,
      ),
    )

  def plan_in_kernel(
    self,
    decode_slots: slots_lib.DecodeSlots,
    prefix: Block,
    *pasts: attention_decode_plan.CachedKeys,
    per_key: int,
  ) -> Int[Array, "plans"]:
    """The plans by which `step_in_kernel` reads keys, one for each device; the same in all layers.

    prefix: key [layers, prompts, kv_heads, head_dim, prefix], value [layers, prompts, kv_heads,
            prefix, head_dim], valid int32 [prompts]: the number of valid tokens, which come first.
    per_key: query heads that share a key's head.
    """
    layout, slots = self.layout.decoding, ("slots",)

    def shape_here(x: Array, axes: layout_lib.Axes) -> tuple[int, ...]:
      parts = layout.shards(axes, x.shape)
      return tuple(size // ways for size, ways in zip(x.shape, parts, strict=True))

    sizes = attention_decode_plan.KernelSizes.choose(
      [shape_here(prefix.key, _PROMPT_STACK), *(shape_here(x.key, _SLOT_STACK) for x in pasts)],
      prefix.key.dtype.itemsize,
      slots=shape_here(jnp.asarray(decode_slots.prompt), slots)[0],
      group=decode_slots.group,
      per_key=per_key,
    )
    forgetting = () if decode_slots.forgets is None else ((decode_slots.forgets, slots),)

    def local(prompt: Array, *inputs: Array) -> Array:
      forgets = inputs[0] if forgetting else None
      return attention_decode_plan.make_plan(
        sizes, prompt, *inputs[len(forgetting) :], forgets=forgets, kept=decode_slots.kept
      )

    return layout.per_shard(
      local,
      (
        (decode_slots.prompt, slots),
        *forgetting,
        (decode_slots.group_index, slots),
        (prefix.valid, ("prompts",)),
        *((x, slots) for past in pasts for x in (past.begin, past.end)),
      ),
      out=(slots, (layout.ways("slots") * sizes.length,)),
    )

  def step_in_kernel(
    self,
    query: Float[Array, "slots heads head_dim"],
    key: Float[Array, "slots kv_heads head_dim"],
    value: Float[Array, "slots kv_heads head_dim"],
    plans: Int[Array, "plans"],
    layer: Int[Array, ""],
    prefix: Block,
    *pasts: attention_decode_plan.CachedKeys,
    group: int,
  ) -> Float[Array, "slots heads head_dim"]:
    """Like `step`, in the kernel, which takes the keys and values of all layers.

    key, value: of the new tokens.
    plans, prefix, pasts: as in `plan_in_kernel`.
    layer: index of the layer in `prefix` and `pasts`.
    """
    token_axes = ("slots", "kv_heads", None)
    step = functools.partial(
      attention_decode_kernel.step, group=group, interpret=self.layout.platform == "cpu"
    )
    return self.layout.decoding.per_shard(
      step,
      (
        (query, ("slots", "heads", None)),
        (key, token_axes),
        (value, token_axes),
        (plans, ("slots",)),
        (layer, ()),
        (prefix.key, _PROMPT_STACK),
        (prefix.value, _PROMPT_STACK),
        *((x, _SLOT_STACK) for past in pasts for x in (past.key, past.value)),
      ),
    )

  def prefill_observation(
    self,
    query: Float[Array, "rows time heads head_dim"],
    own: Block,
    rows: slots_lib.CacheRows,
    prefix: Block,
    past_key: Float[Array, "cache_slots kv_heads head_dim length"],
    past_value: Float[Array, "cache_slots kv_heads length head_dim"],
  ) -> Float[Array, "rows time heads head_dim"]:
    """Attention of appended tokens to their prompt, to their reply's cache and to themselves.

    own:    key and value [rows, time, kv_heads, head_dim], valid [rows, time].
    prefix: key and value [prompts, prefix, kv_heads, head_dim], valid [prompts, prefix].
    """
    row_axes, cache_axes = ("slots", None, "kv_heads", None), ("slots", "kv_heads", None, None)
    prefix_axes = ("prompts", "prefix", "kv_heads", None)
    layout = self.layout.decoding
    is_split = layout.shards(prefix_axes[:2], prefix.valid.shape)[1] > 1
    attend = functools.partial(
      attention_decode.prefill_observation,
      split_by=layout if is_split else None,
      logits=self._logits,
    )
    forgetting = ()
    if rows.visible_from is not None:
      remembered = jnp.arange(prefix.valid.shape[1]) < rows.kept
      forgetting = ((rows.visible_from, ("slots",)), (remembered, ("prefix",)))
    return layout.per_shard(
      attend,
      (
        (query, ("slots", None, "heads", None)),
        (own.key, row_axes),
        (own.value, row_axes),
        (own.valid, ("slots", None)),
        (rows.prompt_slot, ("slots",)),
        (rows.cache_slot, ("slots",)),
        (rows.written, ("slots",)),
        (prefix.key, prefix_axes),
        (prefix.value, prefix_axes),
        (prefix.valid, ("prompts", "prefix")),
        (past_key, cache_axes),
        (past_value, cache_axes),
        *forgetting,
      ),
    )

  def in_splash_kernel(self, keys: int) -> bool:
    """Whether `frames` with so many keys runs in the splash kernel, which writes no logits."""
    is_splash = self.backend in ("splash", "splash_fused")
    return is_splash and keys >= attention_splash.BLOCKS[-1]

  @property
  def _logits(self) -> int:
    """The number of logits that plain products hold at once."""
    return attention_xla.CACHED_LOGITS if self.layout.platform == "cpu" else attention_xla.LOGITS

  def _function(self, name: str, *, keys: int = 2**30) -> Callable[..., Array]:
    """The backend's function of this name; plain products for fewer `keys` than a splash block."""
    on_cpu = self.layout.platform == "cpu"
    if self.in_splash_kernel(keys):
      function = getattr(attention_splash, name)
      return functools.partial(function, fused=self.backend == "splash_fused", interpret=on_cpu)
    if self.backend == "cudnn":
      return getattr(attention_cudnn, name)
    function = getattr(attention_xla, name)
    return functools.partial(function, logits=attention_xla.CACHED_LOGITS) if on_cpu else function

  def _time_axes(self, query: Float[Array, "prompts group time heads head_dim"]) -> layout_lib.Axes:
    """Axes of the index in a reply: sharded only if the queries are sharded along time."""
    parts = self.layout.shards(("prompts", "group", "time", "heads", None), query.shape)
    return ("time",) if parts[2] > 1 else (None,)
