"""Models and prompts for the tests of families, made from the cases of their golden files."""

import dataclasses
import json
import pathlib
import tempfile
from typing import Any

from flax import nnx
from golden import qwen2_5_vl as golden
from golden import qwen3_vl as golden3
from golden import tinyllava as golden_tiny
from safetensors import numpy as safetensors

from vr_jax import records
from vr_jax.models import family as family_lib
from vr_jax.models import registry
from vr_jax.models.common import prompts
from vr_jax.models.qwen2_5_vl import processor, tokenizer
from vr_jax.models.qwen3_vl import processor as processor3
from vr_jax.models.tinyllava import processor as processor_tiny
from vr_jax.models.tinyllava import tokenizer as tokenizer_tiny

BYTES = tokenizer.train_tokenizer([], 256 + len(tokenizer.SPECIAL_TOKENS))
PHI_BYTES = tokenizer_tiny.train_tokenizer([], 256 + len(tokenizer_tiny.SPECIAL_TOKENS) + 1)
GOLDEN = {"qwen2_5_vl": golden, "qwen3_vl": golden3, "tinyllava": golden_tiny}
GROUPS = golden_tiny.CASES[0]  # the other kind of resampler than in the case below
# Of each family one with two prompts of different length, images and videos of several frames; of
# TinyLLaVA-Video with the resampler of its release.
FIRST_CASES = {name: golden_file.CASES[0] for name, golden_file in GOLDEN.items()}
FIRST_CASES["tinyllava"] = dataclasses.replace(
  GROUPS, name="naive", connector={**GROUPS.connector, "connector_type": "naiveresampler"}
)


def family_of(case: golden.ModelCase) -> family_lib.ModelFamily:
  return registry.family_of_fields(case.config())


def save(case: golden.ModelCase, directory: pathlib.Path, tensors: dict | None = None) -> None:
  """Writes the case as a release does: one file, the released names."""
  (directory / "config.json").write_text(json.dumps(case.config()))
  tensors = case.tensors() if tensors is None else tensors
  released = family_of(case).weights.released
  named = {released(name): value for name, value in tensors.items()}
  safetensors.save_file(named, directory / "model.safetensors")


def load(case: golden.ModelCase) -> Any:
  with tempfile.TemporaryDirectory() as directory:
    save(case, pathlib.Path(directory))
    config, state = registry.from_pretrained(directory)
  return nnx.merge(graphdef(config), state)


def graphdef(config: Any) -> nnx.GraphDef:
  """The static half of a config's network."""
  make = registry.family_of(config).make_model
  return nnx.graphdef(nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0))))


def make_processor(config: Any, **options) -> Any:
  if config.model_type == "qwen2_5_vl":
    return processor.Qwen2_5_VLProcessor(config, BYTES, 56 * 56, 28 * 28 * 16, **options)
  if config.model_type == "tinyllava":
    return processor_tiny.TinyLlavaProcessor(config, PHI_BYTES, **options)
  video = {"min_video_pixels": 2 * 32 * 32, "max_video_pixels": 128 * 32 * 32}
  return processor3.Qwen3VLProcessor(config, BYTES, 4 * 32 * 32, 16 * 32 * 32, **video, **options)


def encode(case: golden.ModelCase, config: Any, index: int) -> prompts.EncodedPrompt:
  """A prompt of the case through our positions and other places of patches."""
  tokens, media = case.prompt(index)
  grids = []
  for kind, count, height, width, seconds in (part for part, _ in media):
    kind = records.Kind.IMAGE if kind == "image" else records.Kind.VIDEO
    grids.append(prompts.Grid(kind=kind, frames=count, height=height, width=width, seconds=seconds))
  patches = [patches for _, patches in media]
  return make_processor(config).join(tokens, grids, patches, name=f"{case.name}.{index}")


def prompt(
  case: golden.ModelCase, config: Any, *, spare: tuple[int, int, int] = (0, 0, 0)
) -> records.Prompt:
  """All prompts of a case in one batch, with `spare` tokens, frames and media tokens of padding."""
  encoded = [encode(case, config, index) for index in range(len(case.prompts))]
  patches = max(one.patches for one in encoded)
  return make_processor(config).collate(
    encoded,
    prefix_buckets=(max(len(one.tokens) for one in encoded) + spare[0],),
    frame_buckets=(max(len(one.frames) for one in encoded) + spare[1],),
    patch_buckets=(patches + spare[2] * config.vision_shapes.patch_unit[0],),
  )
