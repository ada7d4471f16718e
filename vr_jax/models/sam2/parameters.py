"""The parameters of a SAM2: names as in transformers' Sam2VideoModel, shapes, first values.

Parameters are one flat dict of arrays. Their layout is that of XLA's fast products, not that of
the file: matrices are [in, out], convolutions [height, width, in, out].
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from vr_jax.models.sam2 import config as config_lib

# Axes of the file's tensor in the order of ours, by layout.
_ORDER = {
  "plain": (),
  "matrix": (1, 0),
  "convolution": (2, 3, 1, 0),
  "transposed": (0, 2, 3, 1),  # [in, height, width, out]
}
# First values: a number, or how widely random numbers spread.
FAN_IN, SMALL, UNIT = "fan_in", "small", "unit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
  """One tensor. shape: in a file. start: a number, FAN_IN, SMALL (0.02) or UNIT (1)."""

  shape: tuple[int, ...]
  layout: str = "plain"
  start: float | str = SMALL

  @property
  def order(self) -> tuple[int, ...]:
    """The file's axes in our order."""
    return _ORDER[self.layout] or tuple(range(len(self.shape)))

  @property
  def own_shape(self) -> tuple[int, ...]:
    """The shape here."""
    return tuple(self.shape[axis] for axis in self.order)

  def from_file(self, values: np.ndarray) -> np.ndarray:
    """Converts a file's tensor to our layout."""
    return np.ascontiguousarray(values.transpose(self.order))

  def to_file(self, values: np.ndarray) -> np.ndarray:
    """Converts our array to the file's layout."""
    return np.ascontiguousarray(values.transpose(np.argsort(self.order)))


@dataclasses.dataclass(frozen=True)
class Weights:
  """The parameters whose names start with a prefix, without it."""

  params: Mapping[str, Array]
  prefix: str = ""

  def __getitem__(self, name: str) -> Array:
    """The parameter of this name."""
    return self.params[self.prefix + name]

  def __contains__(self, name: str) -> bool:
    """Whether there is one of this name."""
    return self.prefix + name in self.params

  def __truediv__(self, name: str | int) -> "Weights":
    """The parameters of a part of this one."""
    return Weights(self.params, f"{self.prefix}{name}.")


Named = Iterator[tuple[str, Parameter]]


def parameters(config: config_lib.Sam2Config) -> dict[str, Parameter]:
  """All parameters of a model by name."""
  return dict(sorted([
    *_image_encoder(config),
    *_prompt_encoder(config),
    *_mask_decoder(config),
    *_memory_attention(config),
    *_memory_encoder(config),
    *_memory_bank(config),
  ]))  # fmt: skip


def initialise(config: config_lib.Sam2Config, seed: int) -> dict[str, Array]:
  """Fresh float32 parameters, for training from scratch."""
  rng = np.random.default_rng(seed)
  params = {name: jnp.asarray(_start(spec, rng)) for name, spec in parameters(config).items()}
  # Points and the image's own positions are embedded alike.
  params["prompt_encoder.shared_embedding.positional_embedding"] = params[
    "shared_image_embedding.positional_embedding"
  ]
  return params


def _start(spec: Parameter, rng: np.random.Generator) -> np.ndarray:
  if isinstance(spec.start, int | float):
    return np.full(spec.own_shape, spec.start, np.float32)
  fan_in = math.prod(spec.own_shape[:-1]) // (4 if spec.layout == "transposed" else 1)
  scale = {FAN_IN: 1 / math.sqrt(max(fan_in, 1)), SMALL: 0.02, UNIT: 1.0}[spec.start]
  return (scale * rng.standard_normal(spec.own_shape)).astype(np.float32)


def _linear(name: str, inputs: int, outputs: int) -> Named:
  yield f"{name}.weight", Parameter(shape=(outputs, inputs), layout="matrix", start=FAN_IN)
  yield f"{name}.bias", Parameter(shape=(outputs,), start=0.0)


def _convolution(name: str, inputs: int, outputs: int, side: int) -> Named:
  shape = (outputs, inputs, side, side)
  yield f"{name}.weight", Parameter(shape=shape, layout="convolution", start=FAN_IN)
  yield f"{name}.bias", Parameter(shape=(outputs,), start=0.0)


def _upscaling(name: str, inputs: int, outputs: int) -> Named:
  shape = (inputs, outputs, 2, 2)
  yield f"{name}.weight", Parameter(shape=shape, layout="transposed", start=FAN_IN)
  yield f"{name}.bias", Parameter(shape=(outputs,), start=0.0)


def _norm(name: str, width: int) -> Named:
  yield f"{name}.weight", Parameter(shape=(width,), start=1.0)
  yield f"{name}.bias", Parameter(shape=(width,), start=0.0)


def _mlp(name: str, inputs: int, hidden: int, outputs: int, *, between: int = 0) -> Named:
  yield from _linear(f"{name}.proj_in", inputs, hidden)
  for layer in range(between):
    yield from _linear(f"{name}.layers.{layer}", hidden, hidden)
  yield from _linear(f"{name}.proj_out", hidden, outputs)


def _attention(name: str, width: int, inner: int, keys: int | None = None) -> Named:
  yield from _linear(f"{name}.q_proj", width, inner)
  yield from _linear(f"{name}.k_proj", keys or width, inner)
  yield from _linear(f"{name}.v_proj", keys or width, inner)
  yield from _linear(f"{name}.o_proj", inner, width)


def _image_encoder(config: config_lib.Sam2Config) -> Named:
  hiera, base = config.hiera, "vision_encoder.backbone"
  first = hiera.dims[0]
  position = (hiera.position_size,) * 2
  yield f"{base}.pos_embed", Parameter(shape=(1, first, *position))
  yield f"{base}.pos_embed_window", Parameter(shape=(1, first, *(hiera.windows[0],) * 2))
  yield from _convolution(f"{base}.patch_embed.projection", 3, first, 7)
  number = 0
  for stage, count in enumerate(hiera.blocks):
    out = hiera.dims[stage]
    for index in range(count):
      width = hiera.dims[stage - 1] if stage and not index else out
      name = f"{base}.blocks.{number}"
      yield from _norm(f"{name}.layer_norm1", width)
      yield from _linear(f"{name}.attn.qkv", width, 3 * out)
      yield from _linear(f"{name}.attn.proj", out, out)
      yield from _norm(f"{name}.layer_norm2", out)
      yield from _mlp(f"{name}.mlp", out, 4 * out, out)
      if width != out:
        yield from _linear(f"{name}.proj", width, out)
      number += 1
  for level, width in enumerate(reversed(hiera.dims)):
    yield from _convolution(f"vision_encoder.neck.convs.{level}", width, config.width, 1)


def _prompt_encoder(config: config_lib.Sam2Config) -> Named:
  name, width = "prompt_encoder", config.width
  position = Parameter(shape=(2, width // 2), start=UNIT)
  yield "shared_image_embedding.positional_embedding", position
  yield f"{name}.shared_embedding.positional_embedding", position
  yield f"{name}.point_embed.weight", Parameter(shape=(4, width))
  yield f"{name}.not_a_point_embed.weight", Parameter(shape=(1, width))
  yield f"{name}.no_mask_embed.weight", Parameter(shape=(1, width))
  yield from _convolution(f"{name}.mask_embed.conv1", 1, 4, 2)
  yield from _norm(f"{name}.mask_embed.layer_norm1", 4)
  yield from _convolution(f"{name}.mask_embed.conv2", 4, 16, 2)
  yield from _norm(f"{name}.mask_embed.layer_norm2", 16)
  yield from _convolution(f"{name}.mask_embed.conv3", 16, width, 1)


def _mask_decoder(config: config_lib.Sam2Config) -> Named:
  name, width = "mask_decoder", config.width
  for token, count in (("iou_token", 1), ("mask_tokens", 4), ("obj_score_token", 1)):
    yield f"{name}.{token}.weight", Parameter(shape=(count, width))
  for layer in range(2):
    inner = f"{name}.transformer.layers.{layer}"
    yield from _attention(f"{inner}.self_attn", width, width)
    yield from _attention(f"{inner}.cross_attn_token_to_image", width, width // 2)
    yield from _attention(f"{inner}.cross_attn_image_to_token", width, width // 2)
    yield from _mlp(f"{inner}.mlp", width, config.decoder_mlp, width)
    for number in range(1, 5):
      yield from _norm(f"{inner}.layer_norm{number}", width)
  yield from _attention(f"{name}.transformer.final_attn_token_to_image", width, width // 2)
  yield from _norm(f"{name}.transformer.layer_norm_final_attn", width)
  yield from _upscaling(f"{name}.upscale_conv1", width, width // 4)
  yield from _norm(f"{name}.upscale_layer_norm", width // 4)
  yield from _upscaling(f"{name}.upscale_conv2", width // 4, width // 8)
  yield from _convolution(f"{name}.conv_s0", width, width // 8, 1)
  yield from _convolution(f"{name}.conv_s1", width, width // 4, 1)
  for mask in range(4):
    mlp = f"{name}.output_hypernetworks_mlps.{mask}"
    yield from _mlp(mlp, width, width, width // 8, between=1)
  yield from _mlp(f"{name}.iou_prediction_head", width, width, 4, between=1)
  yield from _mlp(f"{name}.pred_obj_score_head", width, width, 1, between=1)


def _memory_attention(config: config_lib.Sam2Config) -> Named:
  width = config.width
  for layer in range(config.attention_layers):
    name = f"memory_attention.layers.{layer}"
    yield from _attention(f"{name}.self_attn", width, width)
    yield from _attention(f"{name}.cross_attn_image", width, width, config.memory_width)
    yield from _linear(f"{name}.linear1", width, config.attention_mlp)
    yield from _linear(f"{name}.linear2", config.attention_mlp, width)
    for number in range(1, 4):
      yield from _norm(f"{name}.layer_norm{number}", width)
  yield from _norm("memory_attention.layer_norm", width)


def _memory_encoder(config: config_lib.Sam2Config) -> Named:
  name, width = "memory_encoder", config.width
  for layer in range(4):
    inputs, outputs = 4**layer, 4 ** (layer + 1)
    yield from _convolution(f"{name}.mask_downsampler.layers.{layer}.conv", inputs, outputs, 3)
    yield from _norm(f"{name}.mask_downsampler.layers.{layer}.layer_norm", outputs)
  yield from _convolution(f"{name}.mask_downsampler.final_conv", 256, width, 1)
  yield from _convolution(f"{name}.feature_projection", width, width, 1)
  for layer in range(2):
    block = f"{name}.memory_fuser.layers.{layer}"
    yield from _convolution(f"{block}.depthwise_conv", 1, width, 7)
    yield from _norm(f"{block}.layer_norm", width)
    yield from _linear(f"{block}.pointwise_conv1", width, config.fuser_mlp)
    yield from _linear(f"{block}.pointwise_conv2", config.fuser_mlp, width)
    # The reference starts at 1e-6; a network that is trained for minutes can't wait for it to grow.
    yield f"{block}.scale", Parameter(shape=(width,), start=0.1)
  yield from _convolution(f"{name}.projection", width, config.memory_width, 1)


def _memory_bank(config: config_lib.Sam2Config) -> Named:
  width, memory = config.width, config.memory_width
  yield "memory_temporal_positional_encoding", Parameter(shape=(config.memories, 1, 1, memory))
  yield "no_memory_embedding", Parameter(shape=(1, 1, width))
  # In every file, used by none.
  yield "no_memory_positional_encoding", Parameter(shape=(1, 1, width))
  yield "no_object_pointer", Parameter(shape=(1, width))
  yield from _convolution("mask_downsample", 1, 1, 4)
  yield from _mlp("object_pointer_proj", width, width, width, between=1)
  if config.pointer_positions:
    yield from _linear("temporal_positional_encoding_projection_layer", width, memory)
  if config.occlusion_embedding:
    yield "occlusion_spatial_embedding_parameter", Parameter(shape=(1, memory))
