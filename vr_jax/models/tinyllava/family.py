"""The model family of TinyLLaVA-Video, for the registry."""

import dataclasses

import ml_collections
import tokenizers

from vr_jax import errors
from vr_jax.models import family
from vr_jax.models.common import lora
from vr_jax.models.tinyllava import config as config_lib
from vr_jax.models.tinyllava import (
  flops,
  hf_mapping,
  model,
  presets,
  processor,
  released_files,
  template,
  tokenizer,
)


def with_options(
  config: config_lib.TinyLlavaConfig, section: ml_collections.ConfigDict
) -> config_lib.TinyLlavaConfig:
  """Applies the computation options of a recipe's section `model` to a config."""
  if section["rope_after_video"]:
    raise errors.InputError(
      f"config.model.rope_after_video={section['rope_after_video']}: TinyLLaVA-Video counts media "
      "tokens as text; leave it empty"
    )
  options = ("dtype", "remat", "attention", "decode_attention", "logit_chunk", "vision_chunk")
  fields = {name: section[name] for name in options}
  return dataclasses.replace(config, **fields)


def make_processor(
  config: config_lib.TinyLlavaConfig,
  words: tokenizers.Tokenizer,
  section: ml_collections.ConfigDict,
) -> processor.TinyLlavaProcessor:
  """Makes a processor with the options of a recipe's section `model`."""
  side = config.vision.image_size
  for name in ("min_pixels", "max_pixels", "min_video_pixels", "max_video_pixels"):
    if section[name] not in (0, side**2):
      raise errors.InputError(
        f"config.model.{name}={section[name]}: all images have the {side} x {side} pixels of the "
        f"vision tower; set {0 if 'video' in name else side**2}"
      )
  return processor.TinyLlavaProcessor(
    config, words, system=section["system"], library=section["resize_backend"]
  )


FAMILY = family.ModelFamily(
  model_type=config_lib.MODEL_TYPE,
  make_config=config_lib.TinyLlavaConfig.from_dict,
  with_options=with_options,
  make_model=model.TinyLlavaVideo,
  model_files=released_files.model_files,
  make_processor=make_processor,
  limit_pixels=lambda *_: None,  # all images have the tower's size
  load_tokenizer=tokenizer.load_tokenizer,
  train_tokenizer=tokenizer.train_tokenizer,
  tokenizer_fields=tokenizer.config_fields,
  forward_flops=flops.forward,
  weights=hf_mapping.TinyLlavaMapping(),
  parameter_groups={
    "vision": ("vision.patch", "vision.patch_bias", "vision.positions", "vision.blocks"),
    "connector": ("vision.connector",),
    "text": ("text.embedding", "text.layers", "text.norm", "text.norm_bias"),
    "head": ("text.head", "text.head_bias"),
  },
  lora_targets=lora.Targets(
    text=("query", "key", "value", "out", "up", "down"),
    vision=("query", "key", "value", "out", "up", "down"),
  ),
  end_token=template.END,
  pad_token=template.END,
  template_words=(template.USER, f" {template.ASSISTANT}"),
  patch_fields=released_files.patch_fields,
  presets=presets.RELEASES,
  organization=presets.ORGANIZATION,
  token_fields=presets.TOKENS,
  casts_matrices=True,
  cannot_shuffle=processor.CANNOT_SHUFFLE,
)
