"""The attention kernel of TPUs, compiled by their compiler for a slice that is not at hand."""

import re
from typing import Any, cast

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from launch import topology
from tests import tpu_compiler
from vr_jax import records
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import model as model_lib
from vr_jax.models.qwen2_5_vl import vision_inputs
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import forward

PROMPTS, PREFIX, GROUP, TIME, PATCHES = 2, 640, 2, 128, 384
# Heads of the sizes that releases have: 128 features in the text model, 80 in the vision tower.
CONFIG = config_lib.Qwen2_5_VLConfig(
  text=config_lib.TextConfig(
    vocab_size=2048,
    hidden_size=512,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
  ),
  vision=config_lib.VisionConfig(
    depth=2,
    hidden_size=160,
    intermediate_size=160,
    num_heads=2,
    out_hidden_size=512,
    fullatt_block_indexes=(1,),
  ),
  image_token_id=1,
  video_token_id=2,
  vision_start_token_id=3,
  vision_end_token_id=4,
  dtype="bfloat16",
  remat="full",
  logit_chunk=512,
)


@pytest.fixture(scope="module")
def compiled():
  """The text of the gradient of replies' log-probs on a mesh that splits sequence and tensor."""
  with tpu_compiler.compiling_only():
    jax.config.update("jax_exec_time_optimization_effort", -1.0)  # half the time to compile
    return _compile()


def _compile():
  mesh = mesh_lib.make_mesh((1, 1, 2, 2), topology.find("v5e:2x2").devices)
  layout = mesh_lib.MeshLayout(mesh)
  make = lambda: model_lib.Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0), layout=layout)  # noqa: E731
  graphdef, params = nnx.split(nnx.eval_shape(make))
  params = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    params,
    mesh_lib.param_shardings(params, mesh),
  )

  def ints(*shape):
    struct = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=mesh_lib.replicated(mesh))
    return cast(Any, struct)  # records of shapes, as of arrays

  patches = jax.ShapeDtypeStruct(
    (PROMPTS, 4, PATCHES, CONFIG.vision.patch_dim), jnp.uint8, sharding=mesh_lib.replicated(mesh)
  )
  prompt = records.Prompt(
    tokens=ints(PROMPTS, PREFIX),
    kind=ints(PROMPTS, PREFIX),
    positions=ints(PROMPTS, PREFIX, 3),
    next_position=ints(PROMPTS),
    media_index=ints(PROMPTS, PREFIX),
    vision=vision_inputs.VisionInputs(
      patches=patches,
      rows=ints(PROMPTS, 4, PATCHES, 2),
      window=ints(PROMPTS, 4, PATCHES),
      slot=ints(PROMPTS, 4, PATCHES),
    ),
  )

  def loss(params, prompt, tokens):
    allowed_tokens = jnp.ones(CONFIG.text.vocab_size, bool)
    model = nnx.merge(graphdef, params)
    return forward.reply_log_probs(model, prompt, tokens, tokens > 0, allowed_tokens)[0].sum()

  program = jax.jit(jax.grad(loss)).lower(params, prompt, ints(PROMPTS, GROUP, TIME)).compile()
  return program.as_text()


def test_the_splash_kernel_is_compiled_forward_and_backward(compiled):
  kernels = re.findall(r"custom-call\(.*tpu_custom_call", compiled)
  # Vision, prompts and replies: forward, forward again and two backward kernels; prompts once for
  # each shard.
  assert len(kernels) >= 3 * 4


def test_no_program_for_tpu_holds_the_logits_of_attention_or_of_the_whole_vocabulary(compiled):
  shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", compiled)}
  squares = {shape for shape in shapes if shape[-2:] in ((PREFIX, PREFIX), (PATCHES, PATCHES))}
  assert not squares
  whole = (
    CONFIG.text.vocab_size,
    CONFIG.text.vocab_size // 2,
  )  # on one device, or split over tensor
  assert not {shape for shape in shapes if shape[-1] in whole}
