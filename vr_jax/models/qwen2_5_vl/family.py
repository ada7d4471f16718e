"""The model family of Qwen2.5-VL, for the registry."""

import dataclasses

import ml_collections
import tokenizers

from vr_jax import errors
from vr_jax.models import family
from vr_jax.models.common import lora
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import (
  flops,
  hf_mapping,
  model,
  presets,
  processor,
  tokenizer,
  transformers_files,
)


def with_options(
  config: config_lib.Qwen2_5_VLConfig, section: ml_collections.ConfigDict
) -> config_lib.Qwen2_5_VLConfig:
  """Applies the computation options of a recipe's section `model` to a config."""
  follows = section["rope_after_video"] or config.vision.rope_after_video
  vision = dataclasses.replace(config.vision, rope_after_video=follows)
  options = ("dtype", "remat", "attention", "decode_attention", "logit_chunk", "vision_chunk")
  fields = {name: section[name] for name in options}
  return dataclasses.replace(config, vision=vision, **fields)


def make_processor(
  config: config_lib.Qwen2_5_VLConfig,
  words: tokenizers.Tokenizer,
  section: ml_collections.ConfigDict,
) -> processor.Qwen2_5_VLProcessor:
  """Makes a processor with the options of a recipe's section `model`."""
  for name in ("min_video_pixels", "max_video_pixels"):
    if section[name]:
      raise errors.InputError(
        f"config.model.{name}={section[name]}: Qwen2.5-VL limits the pixels of each frame, not "
        "of a video; set 0, or take a size of another model"
      )
  return processor.Qwen2_5_VLProcessor(
    config,
    words,
    section["min_pixels"],
    section["max_pixels"],
    system=section["system"],
    library=section["resize_backend"],
  )


FAMILY = family.ModelFamily(
  model_type=config_lib.MODEL_TYPE,
  make_config=config_lib.Qwen2_5_VLConfig.from_dict,
  with_options=with_options,
  make_model=model.Qwen2_5_VL,
  model_files=transformers_files.model_files,
  make_processor=make_processor,
  load_tokenizer=tokenizer.load_tokenizer,
  train_tokenizer=tokenizer.train_tokenizer,
  tokenizer_fields=tokenizer.config_fields,
  forward_flops=flops.forward,
  weights=hf_mapping.Mapping(),
  parameter_groups={
    "vision": ("vision.patch", "vision.blocks"),
    "connector": ("vision.merger",),
    "text": ("text.embedding", "text.layers", "text.norm"),
    "head": ("text.head",),
  },
  lora_targets=lora.Targets(),
  end_token=processor.Qwen2_5_VLProcessor.end_of_turn,
  pad_token=processor.Qwen2_5_VLProcessor.pad_name,
  processor_files=transformers_files.processor_files,
  template_words=("user\n", "assistant\n"),
  patch_fields=transformers_files.patch_fields,
  presets=presets.RELEASES,
  organization=presets.ORGANIZATION,
  token_fields=presets.MEDIA_TOKENS,
  casts_matrices=True,
)
