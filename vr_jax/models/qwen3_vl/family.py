"""The model family of Qwen3-VL, for the registry."""

import dataclasses

import ml_collections
import tokenizers

from vr_jax import errors
from vr_jax.models import family
from vr_jax.models.common import lora
from vr_jax.models.qwen3_vl import config as config_lib
from vr_jax.models.qwen3_vl import (
  flops,
  hf_mapping,
  model,
  presets,
  processor,
  tokenizer,
  transformers_files,
)


def with_options(
  config: config_lib.Qwen3VLConfig, section: ml_collections.ConfigDict
) -> config_lib.Qwen3VLConfig:
  """Applies the computation options of a recipe's section `model` to a config."""
  if section["rope_after_video"]:
    raise errors.InputError(
      f"config.model.rope_after_video={section['rope_after_video']}: Qwen3-VL knows one position "
      "of text after a video; leave it empty"
    )
  options = ("dtype", "remat", "attention", "decode_attention", "logit_chunk", "vision_chunk")
  fields = {name: section[name] for name in options}
  return dataclasses.replace(config, **fields)


def make_processor(
  config: config_lib.Qwen3VLConfig,
  words: tokenizers.Tokenizer,
  section: ml_collections.ConfigDict,
) -> processor.Qwen3VLProcessor:
  """Makes a processor with the options of a recipe's section `model`."""
  return processor.Qwen3VLProcessor(
    config,
    words,
    section["min_pixels"],
    section["max_pixels"],
    min_video_pixels=section["min_video_pixels"] or presets.VIDEO_PIXELS[0],
    max_video_pixels=section["max_video_pixels"] or presets.VIDEO_PIXELS[1],
    system=section["system"],
    library=section["resize_backend"],
  )


def limit_pixels(section: ml_collections.ConfigDict, least: int, most: int, frames: int) -> None:
  """Sets the limits of images, and of a whole video of so many frames."""
  family.limit_frame_pixels(section, least, most, frames)
  section.min_video_pixels, section.max_video_pixels = frames * least, frames * most


FAMILY = family.ModelFamily(
  model_type=config_lib.MODEL_TYPE,
  make_config=config_lib.Qwen3VLConfig.from_dict,
  with_options=with_options,
  make_model=model.Qwen3VL,
  model_files=transformers_files.model_files,
  make_processor=make_processor,
  limit_pixels=limit_pixels,
  load_tokenizer=tokenizer.load_tokenizer,
  train_tokenizer=tokenizer.train_tokenizer,
  tokenizer_fields=tokenizer.config_fields,
  forward_flops=flops.forward,
  weights=hf_mapping.Qwen3Mapping(),
  parameter_groups={
    "vision": ("vision.patch", "vision.patch_bias", "vision.positions", "vision.blocks"),
    "connector": ("vision.merger", "vision.deepstack"),
    "text": ("text.embedding", "text.layers", "text.norm"),
    "head": ("text.head",),
  },
  lora_targets=lora.Targets(vision=("qkv", "out", "up", "down")),
  end_token=processor.Qwen3VLProcessor.end_of_turn,
  pad_token=processor.Qwen3VLProcessor.pad_name,
  processor_files=transformers_files.processor_files,
  template_words=("user\n", "assistant\n", "<0.5 seconds>"),
  patch_fields=transformers_files.patch_fields,
  presets=presets.RELEASES,
  organization=presets.ORGANIZATION,
  token_fields=presets.MEDIA_TOKENS,
  casts_matrices=True,
)
