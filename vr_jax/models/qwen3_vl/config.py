"""Sizes and constants of a Qwen3-VL model, named as in Hugging Face's config.json."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from vr_jax import errors
from vr_jax.models.common import config_json, flops, prompts, rotary_scaling
from vr_jax.models.qwen3_vl import vision_inputs

MODEL_TYPE = "qwen3_vl"
DTYPES = ("float32", "bfloat16", "float16")
VISION_ACTIVATION = "gelu_pytorch_tanh"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VisionConfig:
  """The vision tower: patches of pixels in, features of `out_hidden_size` out."""

  depth: int
  hidden_size: int
  intermediate_size: int
  num_heads: int
  out_hidden_size: int
  in_channels: int = 3
  patch_size: int = 16
  temporal_patch_size: int = 2
  spatial_merge_size: int = 2
  num_position_embeddings: int = 2304  # of the learned table, a square
  # Blocks whose outputs become features too, added behind the first text layers (DeepStack).
  deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)
  rope_theta: float = 10000.0

  @property
  def head_dim(self) -> int:
    """Features of one attention head."""
    return self.hidden_size // self.num_heads

  @property
  def patch_dim(self) -> int:
    """Size of one patch: channels x frames x height x width."""
    return self.in_channels * self.temporal_patch_size * self.patch_size**2

  @property
  def merge_unit(self) -> int:
    """Patches that become one media token."""
    return self.spatial_merge_size**2

  @property
  def pixel_factor(self) -> int:
    """Height and width of a resized frame are multiples of this number of pixels."""
    return self.patch_size * self.spatial_merge_size

  @property
  def table_side(self) -> int:
    """Rows and columns of the learned table of positions."""
    return math.isqrt(self.num_position_embeddings)

  @property
  def levels(self) -> int:
    """Number of DeepStack's features of each media token."""
    return len(self.deepstack_visual_indexes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3TextConfig:
  """The language model."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int = 128
  rms_norm_eps: float = 1e-6
  rope_theta: float = 5000000.0
  # Rotary frequencies of time, height and width. They are interleaved: see text.py.
  mrope_section: tuple[int, ...] = (24, 20, 20)
  max_position_embeddings: int = 128000  # most tokens of a prompt and its reply, unless scaled
  rope_scaling: rotary_scaling.RotaryScaling | None = None

  @property
  def queries_per_key(self) -> int:
    """Query heads that share a key and value head."""
    return self.num_attention_heads // self.num_key_value_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VLConfig:
  """Sizes of a whole model, and options of its computation.

  dtype: of activations.
  remat: rematerialisation policy (rematerialisation.py).
  attention: backend (attention.py); "" for the platform's default.
  decode_attention: the same for decoding, xla or pallas.
  logit_chunk: rows of the vocabulary whose logits an update holds in memory at once.
  vision_chunk: patches that the vision tower reads at once on a device (frame_chunks.py).
  """

  text: Qwen3TextConfig
  vision: Qwen3VisionConfig
  image_token_id: int
  video_token_id: int
  vision_start_token_id: int
  vision_end_token_id: int
  tie_word_embeddings: bool = False
  initializer_range: float = 0.02
  dtype: str = "float32"
  remat: str = "none"
  attention: str = ""
  decode_attention: str = "xla"
  logit_chunk: int = 8192
  vision_chunk: int = 65536

  model_type: ClassVar[str] = MODEL_TYPE

  @property
  def vocab_size(self) -> int:
    """Rows of the token embedding."""
    return self.text.vocab_size

  @property
  def hidden_size(self) -> int:
    """Width of a hidden state of the language model."""
    return self.text.hidden_size

  @property
  def max_position_embeddings(self) -> int:
    """The most tokens that a prompt and its reply may have together."""
    return rotary_scaling.context(self.text.max_position_embeddings, self.text.rope_scaling)

  @property
  def architecture(self) -> dict[str, Any]:
    """Sizes by name; parameters fit any config with the same ones."""
    flat = config_json.flat_sizes(text=self.text, vision=self.vision)
    return {**flat, "tie_word_embeddings": self.tie_word_embeddings}

  @property
  def tower_fields(self) -> dict[str, Any]:
    """Config fields that features depend on, for the key of a feature cache. JSON-able."""
    return dict(vars(self.vision))

  @property
  def position_axes(self) -> int:
    """Time, height and width."""
    return 3

  @property
  def text_sizes(self) -> flops.TextSizes:
    """Sizes of the language model, for FLOP counts and memory plans."""
    return flops.TextSizes.of_config(self.text, mlp_matrices=3)

  @property
  def vision_shapes(self) -> prompts.VisionShapes:
    """Inputs: patches with their places. Features: input embeddings, and DeepStack's levels."""
    vision, dtype = self.vision, jnp.dtype(self.dtype)
    patch = vision_inputs.Qwen3VisionInputs(
      patches=np.zeros(vision.patch_dim, np.uint8),
      rows=np.zeros(2, np.int32),
      table_rows=np.zeros(4, np.int32),
      table_weights=np.zeros(4, np.float32),
      segment=np.array(-1, np.int32),
    )
    width = vision.out_hidden_size
    feature = vision_inputs.VisionFeatures(
      embedding=cast(Any, jax.ShapeDtypeStruct((width,), dtype)),
      levels=cast(Any, jax.ShapeDtypeStruct((vision.levels, width), dtype)),
    )
    return prompts.VisionShapes(
      patch=patch,
      feature=feature,
      patches_per_token=vision.merge_unit,
      images_per_frame=vision.temporal_patch_size,
      pixels_per_patch=vision.patch_size**2,
    )

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> "Qwen3VLConfig":
    """Builds a config from Hugging Face's fields.

    Fields that don't affect the computation (token ids for generation, versions) are ignored.

    Raises:
      InputError: another `model_type`, a missing field, or contradictory sizes.
    """
    model_type = fields.get("model_type", MODEL_TYPE)
    if model_type != MODEL_TYPE:
      raise errors.InputError(f"model_type: is {model_type!r}, but only {MODEL_TYPE!r} can be read")
    text_fields = dict(config_json.required(fields, "text_config"))
    vision_fields = dict(config_json.required(fields, "vision_config"))
    vision_fields.setdefault("out_hidden_size", config_json.required(text_fields, "hidden_size"))
    vision_fields.update(config_json.rotary(vision_fields, kinds=("axial", "default")))
    config_json.check_activation(text_fields, "text", "silu")
    config_json.check_activation(vision_fields, "vision", VISION_ACTIVATION)
    if text_fields.get("attention_bias"):
      raise errors.InputError("attention_bias: is true, but only projections without are supported")
    rotary = text_fields.get("rope_parameters") or text_fields.get("rope_scaling") or {}
    if not rotary.get("mrope_interleaved", True):
      raise errors.InputError("mrope_interleaved: is false, but frequencies must be interleaved")
    context = Qwen3TextConfig.max_position_embeddings
    text_fields.update(config_json.rotary(text_fields, kinds=("mrope", "default"), context=context))
    tied = fields.get("tie_word_embeddings", text_fields.get("tie_word_embeddings", False))
    dtype = fields.get("dtype") or fields.get("torch_dtype") or text_fields.get("dtype")
    config = config_json.build(
      cls,
      {
        **fields,
        "text": config_json.build(Qwen3TextConfig, text_fields),
        "vision": config_json.build(Qwen3VisionConfig, vision_fields),
        "tie_word_embeddings": bool(tied),
        "initializer_range": text_fields.get("initializer_range", 0.02),
        "dtype": dtype or "float32",
      },
    )
    _check(config)
    return config


def config_fields(config: Qwen3VLConfig) -> dict[str, Any]:
  """Builds the fields of a new config.json, nested as in the releases."""
  text, vision = dataclasses.asdict(config.text), dataclasses.asdict(config.vision)
  section, theta = text.pop("mrope_section"), text["rope_theta"]
  scaling = config.text.rope_scaling
  rope = {"rope_type": "default"} if scaling is None else scaling.fields
  rope |= {"mrope_section": section, "mrope_interleaved": True}
  named = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  ids = {name: value for name, value in named.items() if name.endswith("_token_id")}
  return {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": MODEL_TYPE,
    "text_config": {
      "model_type": f"{MODEL_TYPE}_text",
      **text,
      "attention_bias": False,
      "hidden_act": "silu",
      "initializer_range": config.initializer_range,
      "rope_scaling": {**rope, "rope_theta": theta},
      "tie_word_embeddings": config.tie_word_embeddings,
      "bos_token_id": None,  # the released ids may exceed a small vocabulary
      "eos_token_id": None,
    },
    "vision_config": {"model_type": MODEL_TYPE, **vision, "hidden_act": VISION_ACTIVATION},
    "tie_word_embeddings": config.tie_word_embeddings,
    **ids,
  }


def _check(config: Qwen3VLConfig) -> None:
  """Raises InputError if sizes contradict each other, before a matrix product fails on them."""
  text, vision = config.text, config.vision
  indexes = vision.deepstack_visual_indexes
  rules = (
    (config.dtype in DTYPES, f"dtype: is {config.dtype!r}, not one of {', '.join(DTYPES)}"),
    (
      text.num_attention_heads % text.num_key_value_heads == 0,
      f"num_key_value_heads: {text.num_key_value_heads} does not divide the attention heads",
    ),
    (
      len(text.mrope_section) == 3 and 2 * sum(text.mrope_section) == text.head_dim,
      f"mrope_section: {text.mrope_section} must add up to half the head, {text.head_dim // 2}",
    ),
    (
      vision.hidden_size % (4 * vision.num_heads) == 0,
      f"vision hidden_size: {vision.hidden_size} is no multiple of 4 x {vision.num_heads} heads",
    ),
    (
      vision.out_hidden_size == text.hidden_size,
      f"out_hidden_size: {vision.out_hidden_size} is not the text hidden_size {text.hidden_size}",
    ),
    (
      vision.table_side**2 == vision.num_position_embeddings,
      f"num_position_embeddings: {vision.num_position_embeddings} is no square",
    ),
    (
      list(indexes) == sorted({i for i in indexes if 0 <= i < vision.depth}) and bool(indexes),
      f"deepstack_visual_indexes: {indexes} are not rising numbers of the {vision.depth} blocks",
    ),
    (
      vision.levels <= text.num_hidden_layers,
      f"deepstack_visual_indexes: {vision.levels} levels for {text.num_hidden_layers} text layers",
    ),
  )
  for holds, message in rules:
    if not holds:
      raise errors.InputError(message)
