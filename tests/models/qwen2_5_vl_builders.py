"""Models and prompts for the tests of Qwen2.5-VL, made from the cases of the golden file."""

import json
import pathlib
import tempfile

from flax import nnx
from golden import qwen2_5_vl as golden
from safetensors import numpy as safetensors

from vr_jax import records
from vr_jax.models import qwen2_5_vl
from vr_jax.models.common import prompts
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import model, processor, tokenizer

BYTES = tokenizer.train_tokenizer([], 256 + len(tokenizer.SPECIAL_TOKENS))


def save(case: golden.ModelCase, directory: pathlib.Path, tensors: dict | None = None) -> None:
  """Writes the case as a release does: one file, the flat names."""
  (directory / "config.json").write_text(json.dumps(case.config()))
  tensors = case.tensors() if tensors is None else tensors
  named = {released_name(name): value for name, value in tensors.items()}
  safetensors.save_file(named, directory / "model.safetensors")


def released_name(name: str) -> str:
  return name if name.startswith(("visual.", "lm_head.")) else f"model.{name}"


def load(case: golden.ModelCase) -> model.Qwen2_5_VL:
  with tempfile.TemporaryDirectory() as directory:
    save(case, pathlib.Path(directory))
    config, state = qwen2_5_vl.from_pretrained(directory)
  abstract = nnx.eval_shape(lambda: model.Qwen2_5_VL(config, rngs=nnx.Rngs(0)))
  return nnx.merge(nnx.graphdef(abstract), state)


def make_processor(config: config_lib.Qwen2_5_VLConfig, **options) -> processor.Qwen2_5_VLProcessor:
  return processor.Qwen2_5_VLProcessor(config, BYTES, 56 * 56, 28 * 28 * 16, **options)


def encode(
  case: golden.ModelCase, config: config_lib.Qwen2_5_VLConfig, index: int
) -> prompts.EncodedPrompt:
  """A prompt of the case through our positions, rows and windows."""
  tokens, media = case.prompt(index)
  grids = []
  for kind, count, height, width, seconds in (part for part, _ in media):
    kind = records.Kind.IMAGE if kind == "image" else records.Kind.VIDEO
    grids.append(prompts.Grid(kind=kind, frames=count, height=height, width=width, seconds=seconds))
  patches = [patches for _, patches in media]
  return make_processor(config).join(tokens, grids, patches, name=f"{case.name}.{index}")


def prompt(
  case: golden.ModelCase,
  config: config_lib.Qwen2_5_VLConfig,
  *,
  spare: tuple[int, int, int] = (0, 0, 0),
) -> records.Prompt:
  """All prompts of a case in one batch, with `spare` tokens, frames and media tokens of padding."""
  encoded = [encode(case, config, index) for index in range(len(case.prompts))]
  patches = max(one.patches for one in encoded)
  return make_processor(config).collate(
    encoded,
    prefix_buckets=(max(len(one.tokens) for one in encoded) + spare[0],),
    frame_buckets=(max(len(one.frames) for one in encoded) + spare[1],),
    patch_buckets=(patches + spare[2] * config.vision.merge_unit,),
  )
