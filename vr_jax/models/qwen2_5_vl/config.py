"""Sizes and constants of a Qwen2.5-VL model, named as in Hugging Face's config.json."""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vr_jax import errors
from vr_jax.models.common import config_json, flops, prompts, rotary_scaling
from vr_jax.models.qwen2_5_vl import vision_inputs

MODEL_TYPE = "qwen2_5_vl"
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
  """The vision tower: patches of pixels in, features of `out_hidden_size` out."""

  depth: int
  hidden_size: int
  intermediate_size: int
  num_heads: int
  out_hidden_size: int
  in_channels: int = 3
  patch_size: int = 14
  temporal_patch_size: int = 2
  spatial_merge_size: int = 2
  window_size: int = 112  # pixels; side of the square in which window layers attend
  fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
  tokens_per_second: int = 4  # steps of the temporal rotary position in one second
  rope_theta: float = 10000.0
  # Position of text after a medium (see positions.py). "largest": as the released weights were
  # trained, whose files lack this field. "sides": as transformers counts since 5.3.
  rope_after_video: str = "largest"

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
  def window_tokens(self) -> int:
    """Side of an attention window in media tokens."""
    return self.window_size // self.spatial_merge_size // self.patch_size

  @property
  def window_patches(self) -> int:
    """Patches of an attention window that the border does not cut off."""
    return self.window_tokens**2 * self.merge_unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
  """The language model."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  rms_norm_eps: float = 1e-6
  rope_theta: float = 1000000.0
  mrope_section: tuple[int, ...] = (16, 24, 24)  # rotary frequencies of time, height, width
  max_position_embeddings: int = 128000  # most tokens of a prompt and its reply, unless scaled
  rope_scaling: rotary_scaling.RotaryScaling | None = None

  @property
  def head_dim(self) -> int:
    """Features of one attention head."""
    return self.hidden_size // self.num_attention_heads

  @property
  def queries_per_key(self) -> int:
    """Query heads that share a key and value head."""
    return self.num_attention_heads // self.num_key_value_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2_5_VLConfig:  # noqa: N801
  """Sizes of a whole model, and options of its computation.

  dtype: of activations.
  remat: rematerialisation policy (rematerialisation.py).
  attention: backend (attention.py); "" for the platform's default.
  decode_attention: the same for decoding, xla or pallas.
  logit_chunk: rows of the vocabulary whose logits an update holds in memory at once.
  vision_chunk: patches that the vision tower reads at once on a device (frame_chunks.py).
  """

  text: TextConfig
  vision: VisionConfig
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
    return {k: v for k, v in vars(self.vision).items() if k != "rope_after_video"}

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
    """Inputs: patches with their rows, columns, windows and slots. Features: one array."""
    vision = self.vision
    patch = vision_inputs.VisionInputs(
      patches=np.zeros(vision.patch_dim, np.uint8),
      rows=np.zeros(2, np.int32),
      window=np.array(-1, np.int32),
      slot=np.array(-1, np.int32),
    )
    return prompts.VisionShapes(
      patch=patch,
      feature=jax.ShapeDtypeStruct((vision.out_hidden_size,), jnp.dtype(self.dtype)),
      patches_per_token=vision.merge_unit,
      images_per_frame=vision.temporal_patch_size,
      pixels_per_patch=vision.patch_size**2,
    )

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> "Qwen2_5_VLConfig":
    """Builds a config from Hugging Face's fields, flat (releases) or nested (transformers 5).

    Fields that don't affect the computation (token ids for generation, versions) are ignored.

    Raises:
      InputError: another `model_type`, a missing field, or contradictory sizes.
    """
    model_type = fields.get("model_type", MODEL_TYPE)
    if model_type != MODEL_TYPE:
      raise errors.InputError(f"model_type: is {model_type!r}, but only {MODEL_TYPE!r} can be read")
    nested_text = fields.get("text_config")
    text_fields = fields if nested_text is None else nested_text
    vision_fields = dict(config_json.required(fields, "vision_config"))
    vision_fields.setdefault("out_hidden_size", config_json.required(text_fields, "hidden_size"))
    if "in_chans" in vision_fields:
      vision_fields.setdefault("in_channels", vision_fields["in_chans"])
    vision_fields.update(config_json.rotary(vision_fields, kinds=("axial", "default")))
    config_json.check_activation(text_fields, "text", "silu")
    config_json.check_activation(vision_fields, "vision", "silu")
    if text_fields.get("use_sliding_window"):
      raise errors.InputError("use_sliding_window: is true, but only full attention is supported")
    context = TextConfig.max_position_embeddings
    rotary = config_json.rotary(text_fields, kinds=("mrope", "default"), context=context)
    text = config_json.build(TextConfig, {**text_fields, **rotary})
    tied = fields.get("tie_word_embeddings", text_fields.get("tie_word_embeddings", False))
    dtype = fields.get("dtype") or fields.get("torch_dtype") or text_fields.get("dtype")
    config = config_json.build(
      cls,
      {
        **fields,
        "text": text,
        "vision": config_json.build(VisionConfig, vision_fields),
        "tie_word_embeddings": bool(tied),
        "initializer_range": text_fields.get("initializer_range", 0.02),
        "dtype": dtype or "float32",
      },
    )
    _check(config)
    return config


def config_fields(config: Qwen2_5_VLConfig) -> dict[str, Any]:
  """Builds the fields of a new config.json, nested as in transformers 5.

  Rotary constants are named as in the releases, which all versions read.
  """
  text = dataclasses.asdict(config.text)
  section, scaling = text.pop("mrope_section"), config.text.rope_scaling
  rope = {"type": "mrope"} if scaling is None else scaling.fields
  named = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  ids = {name: value for name, value in named.items() if name.endswith("_token_id")}
  return {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": MODEL_TYPE,
    "text_config": {
      "model_type": f"{MODEL_TYPE}_text",
      **text,
      "hidden_act": "silu",
      "initializer_range": config.initializer_range,
      "rope_scaling": {**rope, "mrope_section": section},
      "tie_word_embeddings": config.tie_word_embeddings,
      "bos_token_id": None,  # the released ids may exceed a small vocabulary
      "eos_token_id": None,
    },
    "vision_config": {
      "model_type": MODEL_TYPE,
      **dataclasses.asdict(config.vision),
      "hidden_act": "silu",
    },
    "tie_word_embeddings": config.tie_word_embeddings,
    **ids,
  }


def _check(config: Qwen2_5_VLConfig) -> None:
  """Raises InputError if sizes contradict each other, before a matrix product fails on them."""
  text, vision = config.text, config.vision
  rules = (
    (config.dtype in DTYPES, f"dtype: is {config.dtype!r}, not one of {', '.join(DTYPES)}"),
    (
      text.hidden_size % text.num_attention_heads == 0,
      f"hidden_size: {text.hidden_size} is no multiple of {text.num_attention_heads} heads",
    ),
    (
      text.num_attention_heads % text.num_key_value_heads == 0,
      f"num_key_value_heads: {text.num_key_value_heads} does not divide the attention heads",
    ),
    (
      2 * sum(text.mrope_section) == text.head_dim,
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
      vision.rope_after_video in ("sides", "largest"),
      f"rope_after_video: is {vision.rope_after_video!r}, neither 'sides' nor 'largest'",
    ),
    (
      vision.window_tokens > 0,
      f"window_size: {vision.window_size} pixels are less than one media token",
    ),
  )
  for holds, message in rules:
    if not holds:
      raise errors.InputError(message)
