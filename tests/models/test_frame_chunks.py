"""Vision towers in chunks of frames: the same features and gradients, in bounded memory.

Reference: the tower of the same weights on all frames at once, float32. Tolerance: 1e-5 of the
largest. Memory is what XLA says of the compiled program.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import model_builders as builders
import numpy as np
import pytest

from vr_jax.models import layout as layout_lib
from vr_jax.models import registry
from vr_jax.parallel import mesh as mesh_lib

FAMILIES = pytest.mark.parametrize("family", builders.GOLDEN)
PATCHES = 16  # of a frame; of an image of TinyLLaVA-Video's


def network(family, *, frames, layout=None):
  """(graph, parameters) of a tower that reads at most `frames` frames of two prompts at once."""
  loaded = builders.load(builders.FIRST_CASES[family])
  config = dataclasses.replace(loaded.config, vision_chunk=2 * frames * PATCHES)
  make, layout = registry.family_of(config).make_model, layout or layout_lib.OneDevice()
  graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0), layout=layout)))
  return graphdef, nnx.state(loaded)


def random_vision(family, images):
  """Inputs of two prompts of so many frames, or of one video of so many images each."""
  config = builders.load(builders.FIRST_CASES[family]).config
  rng, shapes = np.random.default_rng(0), config.vision_shapes
  size = (1, images * PATCHES) if shapes.patches_per_image else (images, PATCHES)

  def draw(x):
    if x.dtype == np.float32:
      return rng.random(x.shape, np.float32)
    return rng.integers(0, 256 if x.dtype == np.uint8 else 2, x.shape).astype(x.dtype)

  return jax.tree.map(draw, shapes.abstract_vision(2, *size))


def loss(graphdef, params, vision):
  features = nnx.merge(graphdef, params).encode_vision(vision)
  return sum(jnp.square(x).mean() for x in jax.tree.leaves(features)), features


def run(graphdef, params, vision):
  gradient = jax.jit(jax.grad(lambda p, v: loss(graphdef, p, v), has_aux=True))
  return [np.asarray(x) for x in jax.tree.leaves(gradient(params, vision))]


def assert_same(found, expected):
  for mine, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * max(np.abs(theirs).max(), 1e-3))


@FAMILIES
def test_chunks_of_frames_give_the_features_and_gradients_of_the_whole(family):
  vision = random_vision(family, 7)
  whole = run(*network(family, frames=7), vision)
  assert_same(run(*network(family, frames=3), vision), whole)  # chunks of 3, 3 and 1


@pytest.mark.parametrize("family", ["qwen3_vl", "tinyllava"])
def test_each_device_reads_its_own_frames_in_chunks(family):
  vision = random_vision(family, 20)
  whole = run(*network(family, frames=20), vision)
  mesh = mesh_lib.make_mesh((1, 2, 4, 1), jax.devices()[:8])
  graphdef, params = network(family, frames=1, layout=mesh_lib.MeshLayout(mesh))
  params = jax.device_put(params, mesh_lib.param_shardings(params, mesh))
  # A device has five frames of one prompt: two and two, and one with a frame of padding.
  assert_same(run(graphdef, params, vision), whole)


@FAMILIES
def test_a_trained_tower_takes_the_memory_of_a_chunk_not_of_the_video(family):
  vision = random_vision(family, 96)

  def temporary(frames):
    graphdef, params = network(family, frames=frames)

    def loss_of_tower(params, vision):
      if family != "tinyllava":
        return loss(graphdef, params, vision)[0]
      # Its connector reads a whole video, which keeps keys and values of all images.
      return jnp.square(nnx.merge(graphdef, params).vision.read_images(vision)[0]).mean()

    compiled = jax.jit(jax.grad(loss_of_tower)).lower(params, vision).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(4) < temporary(96) / 6
