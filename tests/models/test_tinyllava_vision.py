"""SigLIP's hidden states and the features of both resamplers, for videos of any length.

Reference: SiglipVisionModel of transformers 5.24 and tests/golden/tinyllava_reference.py in float32
on CPU, where they are installed. Tolerance: 1e-4 of the largest; 1e-5 between kernels.
"""

import dataclasses
import importlib.util

from flax import nnx
from golden import tinyllava as golden
import jax.numpy as jnp
import model_builders as builders
import numpy as np
import pytest

from vr_jax.models.tinyllava import vision_inputs

HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))
CASES = pytest.mark.parametrize("case", golden.CASES[:3], ids=lambda case: case.name)


def videos(case, lengths) -> tuple[np.ndarray, vision_inputs.VideoPatches]:
  """Pixels of the longest video, and the patches of its beginnings, padded to its length."""
  patch, most = case.vision["patch_size"], max(lengths)
  side = case.vision["image_size"] // patch
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (most, 3, side * patch, side * patch), np.uint8)
  grid = pixels.reshape(most, 3, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
  patches = np.stack([grid.reshape(most * side**2, -1)] * len(lengths))
  there = np.arange(most * side**2) < np.array(lengths)[:, None] * side**2
  noise = rng.integers(0, 256, patches.shape, np.uint8)
  return pixels, vision_inputs.VideoPatches(
    patches=np.where(there[..., None], patches, noise)[:, None],
    segment=np.where(there, 0, -1).astype(np.int32)[:, None],
  )


@pytest.mark.skipif(not HAS_REFERENCE, reason="torch and transformers not installed")
@CASES
def test_hidden_states_and_features_are_those_of_the_reference(case):
  import torch

  lengths = (1, 2, 3, 7)
  pixels, inputs = videos(case, lengths)
  network, reference = builders.load(case), golden.reference_model(case)
  tower, config = network.vision, network.config
  with torch.no_grad():
    normalised = torch.from_numpy(golden.normalised(pixels.transpose(0, 2, 3, 1)))
    states = reference.tower_states(normalised.permute(0, 3, 1, 2))[reference.layer]
    features = [
      reference.connector._connector(states[:length, reference.first :].flatten(0, 1)).numpy()
      for length in lengths
    ]
  patches = inputs.patches[-1:].reshape(1, max(lengths), config.vision.patches, -1)
  segment = jnp.zeros(patches.shape[:3], jnp.int32)
  found = tower._run_blocks(tower._embed(jnp.asarray(patches)), segment)[0]
  scale = float(states.abs().max())
  np.testing.assert_allclose(found, states, rtol=0, atol=1e-4 * scale)
  media = nnx.jit(type(network).encode_vision)(network, inputs)
  for one, expected in zip(media, features, strict=True):
    np.testing.assert_allclose(one, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("case", golden.CASES[:2], ids=lambda case: case.name)
def test_the_kernel_of_tpus_reads_a_video_as_plain_products_do(case):
  _, inputs = videos(case, (2, 3))
  plain = builders.load(case)
  config = dataclasses.replace(plain.config, attention="splash")
  kernel = nnx.merge(builders.graphdef(config), nnx.state(plain))
  found, expected = (one.encode_vision(inputs) for one in (kernel, plain))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
