"""Sizes and constants of SAM2 and SAM2.1, and how transformers' config.json names them."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from vr_jax import errors, plain_json
from vr_jax.models.common import config_json

MODEL_TYPE = "sam2_video"
STRIDE = 16  # pixels of a position of the features that memories are made of
SIZES = ("tiny", "small", "base_plus", "large")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HieraConfig:
  """The image encoder. Tuples have one entry a stage.

  windows: side of an attention window, in patches. A stage's first block uses that of the stage
    before.
  global_blocks: indices over all blocks of those that attend to the whole image.
  position_size: side of the learned positions, which are resized to the image.
  """

  dims: tuple[int, ...] = (96, 192, 384, 768)
  heads: tuple[int, ...] = (1, 2, 4, 8)
  blocks: tuple[int, ...] = (1, 2, 7, 2)
  windows: tuple[int, ...] = (8, 4, 14, 7)
  global_blocks: tuple[int, ...] = (5, 7, 9)
  position_size: int = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sam2Config:
  """A whole model.

  image_size: pixels of the square that frames are resized to.
  width: features of the neck, the memory attention and the mask decoder.
  memory_width: features of a stored memory; `width` is a multiple.
  decoder_heads, decoder_mlp: of the mask decoder's two layers.
  attention_layers, attention_mlp: of the memory attention.
  fuser_mlp: hidden features of the memory encoder's two blocks.
  occlusion_embedding, pointer_positions: whether memories say that their object is out of sight,
    and pointers how long ago they were; both are new in 2.1.
  memories: frames before the present one whose memories are kept, and the prompted frame.
  pointers: most object pointers that a frame attends to.
  """

  hiera: HieraConfig = HieraConfig()
  image_size: int = 1024
  width: int = 256
  memory_width: int = 64
  decoder_heads: int = 8
  decoder_mlp: int = 2048
  attention_layers: int = 4
  attention_mlp: int = 2048
  fuser_mlp: int = 1024
  occlusion_embedding: bool = True
  pointer_positions: bool = True
  memories: int = 7
  pointers: int = 16

  def __post_init__(self):
    if self.image_size % 32:
      raise errors.InputError(f"image_size: is {self.image_size}, not a multiple of 32")
    if self.width % self.memory_width:
      raise errors.InputError(
        f"memory_encoder_output_channels: {self.memory_width} does not divide {self.width}"
      )
    starts = {sum(self.hiera.blocks[:stage]) for stage in range(1, 4)}
    if wrong := sorted(starts & set(self.hiera.global_blocks)):
      raise errors.InputError(
        f"global_attention_blocks: {wrong} are first of a stage, which attends in windows"
      )

  @property
  def side(self) -> int:
    """Positions along each side of the features that memories are made of."""
    return self.image_size // STRIDE

  @property
  def mask_side(self) -> int:
    """Pixels along each side of a predicted mask."""
    return 4 * self.side


_RELEASED = {
  "tiny": HieraConfig(),
  "small": HieraConfig(blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
  "base_plus": HieraConfig(
    dims=(112, 224, 448, 896),
    heads=(2, 4, 8, 16),
    blocks=(2, 3, 16, 3),
    global_blocks=(12, 16, 20),
    position_size=14,
  ),
  "large": HieraConfig(
    dims=(144, 288, 576, 1152),
    heads=(2, 4, 8, 16),
    blocks=(2, 6, 36, 4),
    windows=(8, 4, 16, 8),
    global_blocks=(23, 33, 43),
  ),
}


def released(size: str, version: str = "2.1") -> Sam2Config:
  """The config of a released model: one of SIZES, version 2.0 or 2.1."""
  new = version == "2.1"
  return Sam2Config(hiera=_RELEASED[size], occlusion_embedding=new, pointer_positions=new)


def smallest(image_size: int = 128) -> Sam2Config:
  """A model that is trained in minutes on simulated videos, and used in tests."""
  hiera = HieraConfig(
    dims=(16, 32, 64, 128),
    heads=(1, 2, 4, 8),
    blocks=(1, 2, 3, 1),
    windows=(4, 2, 4, 2),
    global_blocks=(5,),
    position_size=4,
  )
  return Sam2Config(
    hiera=hiera,
    image_size=image_size,
    width=128,
    decoder_heads=4,
    decoder_mlp=128,
    attention_layers=2,
    attention_mlp=128,
    fuser_mlp=128,
  )


# Fields of config.json that the code takes for granted, with their only value: (section, field).
_FIXED = {
  ("", "multimask_output_in_sam"): True,
  ("", "multimask_output_for_tracking"): True,
  ("", "multimask_min_pt_num"): 0,
  ("", "multimask_max_pt_num"): 1,
  ("", "max_cond_frame_num"): -1,
  ("", "sigmoid_scale_for_mem_enc"): 20.0,
  ("", "sigmoid_bias_for_mem_enc"): -10.0,
  ("", "memory_attention_num_attention_heads"): 1,
  ("", "memory_attention_downsample_rate"): 1,
  ("", "memory_attention_feed_forward_hidden_act"): "relu",
  ("", "mask_downsampler_kernel_size"): 3,
  ("", "mask_downsampler_stride"): 2,
  ("", "mask_downsampler_total_stride"): 16,
  ("", "mask_downsampler_hidden_act"): "gelu",
  ("", "memory_fuser_num_layers"): 2,
  ("", "memory_fuser_kernel_size"): 7,
  ("", "memory_fuser_hidden_act"): "gelu",
  ("prompt_encoder_config", "patch_size"): STRIDE,
  ("prompt_encoder_config", "mask_input_channels"): 16,
  ("prompt_encoder_config", "hidden_act"): "gelu",
  ("mask_decoder_config", "num_hidden_layers"): 2,
  ("mask_decoder_config", "attention_downsample_rate"): 2,
  ("mask_decoder_config", "num_multimask_outputs"): 3,
  ("mask_decoder_config", "iou_head_depth"): 3,
  ("mask_decoder_config", "dynamic_multimask_via_stability"): True,
  ("mask_decoder_config", "dynamic_multimask_stability_delta"): 0.05,
  ("mask_decoder_config", "dynamic_multimask_stability_thresh"): 0.98,
  ("vision_config", "fpn_kernel_size"): 1,
  ("vision_config", "fpn_top_down_levels"): [2, 3],
  ("vision_config", "num_feature_levels"): 3,
  ("backbone_config", "num_query_pool_stages"): 3,
  ("backbone_config", "patch_kernel_size"): [7, 7],
  ("backbone_config", "patch_stride"): [4, 4],
  ("backbone_config", "patch_padding"): [3, 3],
  ("backbone_config", "query_stride"): [2, 2],
  ("backbone_config", "mlp_ratio"): 4.0,
  ("backbone_config", "hidden_act"): "gelu",
}


def read_config(path: pathlib.Path) -> Sam2Config:
  """Reads transformers' config.json of a Sam2Video model; fields that are absent are the tiny's.

  Raises InputError if it is none, or describes what can't be computed here.
  """
  try:
    fields = plain_json.parse(path.read_bytes())
    kind = fields.get("model_type")
  except (OSError, ValueError, AttributeError) as error:
    raise errors.InputError(f"{path}: no valid config.json ({error})") from error
  if kind != MODEL_TYPE:
    raise errors.InputError(f"{path}: model_type is {kind!r}, not {MODEL_TYPE!r}")
  try:
    return from_dict(fields)
  except errors.InputError as error:
    raise errors.InputError(f"{path}: {error}") from error
  except (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError),
  ) as error:
    raise errors.InputError(f"{path}: {error!r} in the sizes of the model") from error


def from_dict(fields: Mapping[str, Any]) -> Sam2Config:
  """Builds a config from transformers' fields. Raises InputError on what can't be computed."""
  vision = fields.get("vision_config") or {}
  backbone = vision.get("backbone_config") or {}
  sections = {
    "": fields,
    "vision_config": vision,
    "backbone_config": backbone,
    "prompt_encoder_config": fields.get("prompt_encoder_config") or {},
    "mask_decoder_config": fields.get("mask_decoder_config") or {},
  }
  for (section, name), value in _FIXED.items():
    found = sections[section].get(name, value)
    if found != value and not (isinstance(value, list) and found == value[0]):
      raise errors.InputError(f"{name}: is {found!r}, but only {value!r} can be computed")
  rope = fields.get("rope_parameters") or {}
  theta = rope.get("rope_theta", fields.get("memory_attention_rope_theta", 10000))
  if theta != 10000:
    raise errors.InputError(f"rope_theta: is {theta!r}, but only 10000 can be computed")
  return _sizes(fields, vision, backbone, sections["mask_decoder_config"])


def _sizes(
  fields: Mapping[str, Any],
  vision: Mapping[str, Any],
  backbone: Mapping[str, Any],
  decoder: Mapping[str, Any],
) -> Sam2Config:
  base = HieraConfig()
  position = backbone.get("window_positional_embedding_background_size") or (base.position_size,)
  hiera = HieraConfig(
    dims=tuple(backbone.get("embed_dim_per_stage") or base.dims),
    heads=tuple(backbone.get("num_attention_heads_per_stage") or base.heads),
    blocks=tuple(backbone.get("blocks_per_stage") or base.blocks),
    windows=tuple(backbone.get("window_size_per_stage") or base.windows),
    global_blocks=tuple(backbone.get("global_attention_blocks") or base.global_blocks),
    position_size=int(position[0]),
  )
  size = fields.get("image_size", 1024)
  width = vision.get("fpn_hidden_size", 256)
  same = {
    "hidden_size of mask_decoder_config": decoder.get("hidden_size", 256),
    "iou_head_hidden_dim": decoder.get("iou_head_hidden_dim", 256),
    "memory_attention_hidden_size": fields.get("memory_attention_hidden_size", 256),
    "memory_encoder_hidden_size": fields.get("memory_encoder_hidden_size", 256),
    "mask_downsampler_embed_dim": fields.get("mask_downsampler_embed_dim", 256),
    "memory_fuser_embed_dim": fields.get("memory_fuser_embed_dim", 256),
  }
  for name, value in same.items():
    if value != width:
      raise errors.InputError(f"{name}: is {value!r:.60}, but fpn_hidden_size is {width}")
  config = Sam2Config(
    hiera=config_json.checked(hiera),
    image_size=int(size if isinstance(size, int) else size[0]),
    width=width,
    memory_width=fields.get("memory_encoder_output_channels", 64),
    decoder_heads=decoder.get("num_attention_heads", 8),
    decoder_mlp=decoder.get("mlp_dim", 2048),
    attention_layers=fields.get("memory_attention_num_layers", 4),
    attention_mlp=fields.get("memory_attention_feed_forward_hidden_size", 2048),
    fuser_mlp=fields.get("memory_fuser_intermediate_dim", 1024),
    occlusion_embedding=fields.get("enable_occlusion_spatial_embedding", True),
    pointer_positions=fields.get("enable_temporal_pos_encoding_for_object_pointers", True),
    memories=fields.get("num_maskmem", 7),
    pointers=fields.get("max_object_pointers_in_encoder", 16),
  )
  return config_json.checked(config)


def to_dict(config: Sam2Config) -> dict[str, Any]:
  """The fields of a config.json that transformers' Sam2VideoModel reads."""
  hiera, side, width = config.hiera, config.side, config.width
  backbone = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": hiera.dims[0],
    "image_size": [config.image_size, config.image_size],
    "window_positional_embedding_background_size": [hiera.position_size] * 2,
    "blocks_per_stage": list(hiera.blocks),
    "embed_dim_per_stage": list(hiera.dims),
    "num_attention_heads_per_stage": list(hiera.heads),
    "window_size_per_stage": list(hiera.windows),
    "global_attention_blocks": list(hiera.global_blocks),
  }
  return {
    "architectures": ["Sam2VideoModel"],
    "model_type": MODEL_TYPE,
    "image_size": config.image_size,
    "vision_config": {
      "model_type": "sam2_vision_model",
      "backbone_config": backbone,
      "backbone_channel_list": list(reversed(hiera.dims)),
      "backbone_feature_sizes": [[4 * side] * 2, [2 * side] * 2, [side] * 2],
      "fpn_hidden_size": width,
    },
    "prompt_encoder_config": {"hidden_size": width, "image_size": config.image_size},
    "mask_decoder_config": {
      "hidden_size": width,
      "mlp_dim": config.decoder_mlp,
      "num_attention_heads": config.decoder_heads,
      "iou_head_hidden_dim": width,
    },
    "num_maskmem": config.memories,
    "max_object_pointers_in_encoder": config.pointers,
    "enable_occlusion_spatial_embedding": config.occlusion_embedding,
    "enable_temporal_pos_encoding_for_object_pointers": config.pointer_positions,
    "memory_attention_hidden_size": width,
    "memory_attention_num_layers": config.attention_layers,
    "memory_attention_feed_forward_hidden_size": config.attention_mlp,
    "memory_attention_rope_feat_sizes": [side, side],
    "memory_encoder_hidden_size": width,
    "memory_encoder_output_channels": config.memory_width,
    "mask_downsampler_embed_dim": width,
    "memory_fuser_embed_dim": width,
    "memory_fuser_intermediate_dim": config.fuser_mlp,
  }
