"""Exports the models of the golden files of generation, and lets our sampler reply."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

from golden import qwen2_5_vl_generate as golden
import jax
import jax.numpy as jnp
import numpy as np

from vr_jax import records
from vr_jax.models import registry
from vr_jax.models.common import lora, prompts, weight_mapping
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import sampler
from vr_jax.train import export_stage, run_context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
  """A run's context, its parameters, and the directory that was exported from them."""

  context: run_context.RunContext
  params: Any
  path: pathlib.Path


def read(case: golden.GenerateCase, directory: pathlib.Path) -> Exported:
  """Makes a case's context and parameters; nothing is exported yet."""
  case.write_source(directory)
  context = run_context.make_run_context(
    case.config(directory), directory, judged=False, read=False
  )
  mesh = mesh_lib.make_mesh((1, 1, 1, 1), jax.devices()[:1])
  context = dataclasses.replace(context, mesh=mesh)
  _, params = registry.from_pretrained(directory)
  if context.adapters:
    params = _with_adapters(params, context)
  return Exported(context=context, params=params, path=directory / "export")


def _with_adapters(base: Any, context: run_context.RunContext) -> Any:
  """Adds adapters with random weights, which change every reply."""
  rng, flat = np.random.default_rng(0), weight_mapping.flat(base)
  for name, variable in weight_mapping.flat(context.abstract_params).items():
    if lora.is_adapter(name):
      value = 0.2 * rng.standard_normal(variable.shape, np.float32)
      flat[name] = variable.replace(jnp.asarray(value))
  return weight_mapping.unflat(flat)


def export(case: golden.GenerateCase, directory: pathlib.Path) -> Exported:
  """Exports a case, as `--mode=export` does it."""
  made = read(case, directory)
  export_stage.write_model(made.params, made.path, made.context, directory)
  return made


def encode(made: Exported, case: golden.GenerateCase) -> prompts.EncodedPrompt:
  """Encodes a case's question with our processor."""
  first = made.context.config.model.question_first
  return made.context.processor.encode_conversation([case.question(question_first=first)])


def replies(made: Exported, encoded: Sequence[prompts.EncodedPrompt]) -> list[list[int]]:
  """Tokens of our greedy replies to a batch."""
  context = made.context
  prompt = context.processor.collate(
    encoded,
    prefix_buckets=(max(len(one.tokens) for one in encoded),),
    frame_buckets=(max(len(one.frames) for one in encoded),),
    patch_buckets=(max(one.patches for one in encoded),),
  )
  rollout = sampler.sample(
    context.graphdef,
    made.params,
    prompt,
    context.allowed_tokens,
    jax.random.key(0),
    decoding=context.decoding(group=1, temperature=0.0, slot_fractions=()),
  )
  pairs = zip(np.asarray(rollout.tokens), np.asarray(rollout.kind), strict=True)
  return [tokens[0][kind[0] == records.Kind.MODEL].tolist() for tokens, kind in pairs]
