"""Sizes and constants of a TinyLLaVA-Video model, named as in its config.json.

A released config.json leaves out what its classes have as defaults, so these are the same here.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vr_jax import errors
from vr_jax.models.common import config_json, flops, prompts, rotary_scaling
from vr_jax.models.tinyllava import vision_inputs

MODEL_TYPE = "tinyllava"
DTYPES = ("float32", "bfloat16", "float16")
VISION_ACTIVATION, TEXT_ACTIVATION = "gelu_pytorch_tanh", "gelu_new"

# connector_type -> whether it is divided into groups, and the dtype of its table of positions.
CONNECTORS = {
  "naiveresampler": (False, "float16"),
  "resamplerwithpe": (False, "float32"),  # an older name; its table is not rounded
  "groupresampler": (True, "float16"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipConfig:
  """The vision tower, SigLIP: an image of one size in, a feature for each patch out.

  num_hidden_layers: as in a file; `depth` of them are used.
  feature_layer: the layer whose output is taken, counted from the end: -1 is the last.
  drops_first: whether the first patch of each image is left out, as in the released models, where
    it was taken for a class token.
  """

  hidden_size: int = 768
  intermediate_size: int = 3072
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  num_channels: int = 3
  image_size: int = 224
  patch_size: int = 16
  layer_norm_eps: float = 1e-6
  feature_layer: int = -2
  drops_first: bool = True

  @property
  def depth(self) -> int:
    """Number of layers up to the one whose output is taken."""
    return self.num_hidden_layers + 1 + self.feature_layer

  @property
  def head_dim(self) -> int:
    """Features of one attention head."""
    return self.hidden_size // self.num_attention_heads

  @property
  def side(self) -> int:
    """Rows and columns of patches of an image; pixels beyond the last whole patch are left out."""
    return self.image_size // self.patch_size

  @property
  def patches(self) -> int:
    """Patches of an image."""
    return self.side**2

  @property
  def tokens(self) -> int:
    """Features of an image that the resampler reads."""
    return self.patches - self.drops_first

  @property
  def patch_dim(self) -> int:
    """Size of one patch: channels x height x width."""
    return self.num_channels * self.patch_size**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
  """The connector: learned queries that read the features of all images of a video.

  queries: media tokens of a video.
  groups: parts of the video, one after the other in time, each of which has its own part of the
    queries; 1: all queries read the whole video.
  position_dtype: of the table of positions.
  """

  queries: int
  layers: int
  groups: int = 1
  grouped: bool = False
  position_dtype: str = "float16"

  heads: ClassVar[int] = 8
  head_dim: ClassVar[int] = 64

  @property
  def latents(self) -> int:
    """Learned queries, which all groups share."""
    return self.queries // self.groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhiConfig:
  """The language model, Phi-2."""

  vocab_size: int = 51200
  hidden_size: int = 2048
  intermediate_size: int = 8192
  num_hidden_layers: int = 24
  num_attention_heads: int = 32
  num_key_value_heads: int = 32
  layer_norm_eps: float = 1e-5
  rope_theta: float = 10000.0
  partial_rotary_factor: float = 0.5  # fraction of a head's features that is rotated
  rope_scaling: rotary_scaling.RotaryScaling | None = None

  @property
  def head_dim(self) -> int:
    """Features of one attention head."""
    return self.hidden_size // self.num_attention_heads

  @property
  def rotary_dim(self) -> int:
    """Features of a head that are rotated, its first ones."""
    return int(self.head_dim * self.partial_rotary_factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyLlavaConfig:
  """Sizes of a whole model, and options of its computation.

  max_position_embeddings: the most tokens of a prompt and its reply together.
  end_token_id: ends a reply, and pads.
  dtype: of activations.
  remat: rematerialisation policy (rematerialisation.py).
  attention: backend (attention.py); "" for the platform's default.
  decode_attention: the same for decoding, xla or pallas.
  logit_chunk: rows of the vocabulary whose logits an update holds in memory at once.
  vision_chunk: patches that the vision tower reads at once on a device (frame_chunks.py).
  """

  text: PhiConfig
  vision: SiglipConfig
  resampler: ResamplerConfig
  max_position_embeddings: int
  end_token_id: int = 50256
  initializer_range: float = 0.02
  dtype: str = "float32"
  remat: str = "none"
  attention: str = ""
  decode_attention: str = "xla"
  logit_chunk: int = 8192
  vision_chunk: int = 65536

  model_type: ClassVar[str] = MODEL_TYPE

  @property
  def tie_word_embeddings(self) -> bool:
    """Never: the output matrix is one of its own."""
    return False

  @property
  def vocab_size(self) -> int:
    """Rows of the token embedding."""
    return self.text.vocab_size

  @property
  def hidden_size(self) -> int:
    """Width of a hidden state of the language model."""
    return self.text.hidden_size

  @property
  def image_token_id(self) -> int:
    """The id where features of a video stand: the last row, which no token of a tokenizer has.

    The released code writes -200 there, and looks up no embedding for it.
    """
    return self.text.vocab_size - 1

  @property
  def architecture(self) -> dict[str, Any]:
    """Sizes by name; parameters fit any config with the same ones."""
    return config_json.flat_sizes(text=self.text, vision=self.vision, resampler=self.resampler)

  @property
  def tower_fields(self) -> dict[str, Any]:
    """Config fields that features depend on, for the key of a feature cache. JSON-able."""
    return {**vars(self.vision), "resampler": dict(vars(self.resampler))}

  @property
  def position_axes(self) -> int:
    """One: tokens are counted."""
    return 1

  @property
  def text_sizes(self) -> flops.TextSizes:
    """Sizes of the language model, for FLOP counts and memory plans."""
    return flops.TextSizes.of_config(self.text, mlp_matrices=2)

  @property
  def vision_shapes(self) -> prompts.VisionShapes:
    """Inputs: patches of all images of a video. Features: one array, as many as queries."""
    vision = self.vision
    patch = vision_inputs.VideoPatches(
      patches=np.zeros(vision.patch_dim, np.uint8), segment=np.array(-1, np.int32)
    )
    return prompts.VisionShapes(
      patch=patch,
      feature=jax.ShapeDtypeStruct((self.hidden_size,), jnp.dtype(self.dtype)),
      images_per_frame=0,
      pixels_per_patch=vision.patch_size**2,
      tokens_per_frame=self.resampler.queries,
      patches_per_image=vision.patches,
    )

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> "TinyLlavaConfig":
    """Builds a config from the fields of a config.json.

    Fields that don't affect the computation (how it was trained, paths of its parts) are ignored.

    Raises:
      InputError: another `model_type`, another language model, vision tower or connector than are
        supported, a missing field, or contradictory sizes.
    """
    model_type = fields.get("model_type", MODEL_TYPE)
    if model_type != MODEL_TYPE:
      raise errors.InputError(f"model_type: is {model_type!r}, but only {MODEL_TYPE!r} can be read")
    text_fields = dict(config_json.required(fields, "text_config"))
    vision_fields = dict(config_json.required(fields, "vision_config"))
    _check_parts(text_fields, vision_fields)
    rope = text_fields.get("rope_parameters") or {}
    text_fields.update({k: rope[k] for k in ("partial_rotary_factor",) if k in rope})
    context = text_fields.get("max_position_embeddings", 2048)
    text_fields.update(config_json.rotary(text_fields, kinds=("default",), context=context))
    heads = text_fields.get("num_attention_heads", PhiConfig.num_attention_heads)
    text_fields["num_key_value_heads"] = text_fields.get("num_key_value_heads") or heads
    vision_fields["feature_layer"] = fields.get("vision_feature_layer", -2)
    vision_fields["drops_first"] = _drops_first(fields)
    longest = fields.get("tokenizer_model_max_length") or context
    config = cls(
      text=config_json.build(PhiConfig, text_fields),
      vision=config_json.build(SiglipConfig, vision_fields),
      resampler=_resampler(fields),
      # Rotary positions go on behind those that the language model was trained with alone.
      max_position_embeddings=rotary_scaling.context(longest, text_fields["rope_scaling"]),
      end_token_id=fields.get("eos_token_id") or text_fields.get("eos_token_id") or 50256,
      initializer_range=text_fields.get("initializer_range", 0.02),
      dtype=fields.get("dtype") or fields.get("torch_dtype") or "float32",
    )
    _check(config_json.checked(config))
    return config


def _resampler(fields: Mapping[str, Any]) -> ResamplerConfig:
  kind = config_json.required(fields, "connector_type")
  if kind not in CONNECTORS:
    raise errors.InputError(
      f"connector_type: is {kind!r}, but only {', '.join(CONNECTORS)} can be read"
    )
  grouped, dtype = CONNECTORS[kind]
  resampler = ResamplerConfig(
    queries=config_json.required(fields, "num_queries"),
    layers=config_json.required(fields, "num_resampler_layers"),
    groups=config_json.required(fields, "group") if grouped else 1,
    grouped=grouped,
    position_dtype=dtype,
  )
  return config_json.checked(resampler)


def connector_type(config: ResamplerConfig) -> str:
  """The name of a resampler in a config.json."""
  kinds = {options: name for name, options in CONNECTORS.items()}
  return kinds[config.grouped, config.position_dtype]


def _drops_first(fields: Mapping[str, Any]) -> bool:
  strategy = fields.get("vision_feature_select_strategy", "patch")
  if strategy not in ("patch", "cls_patch"):
    raise errors.InputError(
      f"vision_feature_select_strategy: is {strategy!r}, neither 'patch' nor 'cls_patch'"
    )
  return strategy == "patch"


def _check_parts(text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
  """Raises InputError if the language model or the tower is not the one that is supported."""
  for name, fields, kind in (
    ("text_config", text, "phi"),
    ("vision_config", vision, "siglip_vision_model"),
  ):
    if fields.get("model_type", kind) != kind:
      raise errors.InputError(
        f"{name}: model_type is {fields['model_type']!r}, but only {kind!r} can be read"
      )
  config_json.check_activation(text, "text", TEXT_ACTIVATION)
  config_json.check_activation(vision, "vision", VISION_ACTIVATION)
  if text.get("qk_layernorm"):
    raise errors.InputError("qk_layernorm: is true, but only attention without is supported")
  if text.get("tie_word_embeddings"):
    raise errors.InputError("tie_word_embeddings: is true, but Phi-2 has an output matrix")


def config_fields(config: TinyLlavaConfig) -> dict[str, Any]:
  """Builds the fields of a new config.json, named as in the releases."""
  vision, resampler = dataclasses.asdict(config.vision), config.resampler
  layer, drops = vision.pop("feature_layer"), vision.pop("drops_first")
  text, scaling = dataclasses.asdict(config.text), config.text.rope_scaling
  del text["rope_scaling"]
  return {
    "architectures": ["TinyLlavaForConditionalGeneration"],
    "model_type": MODEL_TYPE,
    "connector_type": connector_type(resampler),
    "num_queries": resampler.queries,
    "num_resampler_layers": resampler.layers,
    "group": resampler.groups,
    "hidden_size": config.hidden_size,
    "vocab_size": config.vocab_size,
    "vision_hidden_size": config.vision.hidden_size,
    "vision_feature_layer": layer,
    "vision_feature_select_strategy": "patch" if drops else "cls_patch",
    "image_aspect_ratio": "square",
    "tokenizer_model_max_length": config.max_position_embeddings,
    "text_config": {
      "model_type": "phi",
      **text,
      **({} if scaling is None else {"rope_scaling": scaling.fields}),
      "hidden_act": TEXT_ACTIVATION,
      "initializer_range": config.initializer_range,
      "max_position_embeddings": config.max_position_embeddings,
      "tie_word_embeddings": False,
      "bos_token_id": config.end_token_id,
      "eos_token_id": config.end_token_id,
    },
    "vision_config": {
      "model_type": "siglip_vision_model",
      **vision,
      "hidden_act": VISION_ACTIVATION,
    },
  }


def _check(config: TinyLlavaConfig) -> None:
  """Raises InputError if sizes contradict each other, before a matrix product fails on them."""
  text, vision, resampler = config.text, config.vision, config.resampler
  rules = (
    (config.dtype in DTYPES, f"dtype: is {config.dtype!r}, not one of {', '.join(DTYPES)}"),
    (
      text.hidden_size % (2 * text.num_attention_heads) == 0,
      f"hidden_size: {text.hidden_size} is no multiple of 2 x {text.num_attention_heads} heads",
    ),
    (
      text.num_attention_heads % text.num_key_value_heads == 0,
      f"num_key_value_heads: {text.num_key_value_heads} does not divide the attention heads",
    ),
    (
      0 < text.rotary_dim <= text.head_dim and text.rotary_dim % 2 == 0,
      f"partial_rotary_factor: {text.partial_rotary_factor} of {text.head_dim} features is no even "
      "number of them",
    ),
    (
      vision.hidden_size % vision.num_attention_heads == 0,
      f"vision hidden_size: {vision.hidden_size} is no multiple of {vision.num_attention_heads} "
      "heads",
    ),
    (
      vision.patches > vision.drops_first,
      f"image_size: {vision.image_size} pixels hold too few patches of {vision.patch_size}",
    ),
    (
      0 < vision.depth <= vision.num_hidden_layers,
      f"vision_feature_layer: {vision.feature_layer} is none of -1 to -{vision.num_hidden_layers}, "
      "the layers of the vision tower from its end",
    ),
    (
      resampler.groups > 0 and resampler.queries % resampler.groups == 0 and resampler.queries > 0,
      f"group: {resampler.groups} groups do not divide num_queries={resampler.queries}",
    ),
    (
      resampler.queries < config.max_position_embeddings,
      f"num_queries: {resampler.queries} media tokens of one video fill the context of "
      f"{config.max_position_embeddings} (tokenizer_model_max_length), which leaves no room for a "
      "question",
    ),
  )
  for holds, message in rules:
    if not holds:
      raise errors.InputError(message)
