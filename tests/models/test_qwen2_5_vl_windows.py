"""Attention windows of the tower of Qwen2.5-VL as rows, against masks that let windows through.

Both against transformers: test_family_parity.py, whose first case has rows.
"""

import dataclasses
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import model_builders as builders
import numpy as np
import pytest

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import attention, attention_windows, image_patches, prompts
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import vision, vision_inputs, windows
from vr_jax.parallel import mesh as mesh_lib

VISION = config_lib.VisionConfig(
  depth=4,
  hidden_size=32,
  intermediate_size=48,
  num_heads=2,
  out_hidden_size=16,
  patch_size=2,
  window_size=12,  # 3 x 3 media tokens of 2 x 2 patches
  fullatt_block_indexes=(1, 3),
)
# Rows and columns of media tokens: multiples of a window, cut off on one side or both, and thin.
GRIDS = [(3, 6), (4, 5), (7, 3), (1, 8), (5, 8), (2, 2), (6, 6)]
PATCHES, FRAMES = 4 * 40, 4


def _tower(layout, **fields):
  text = config_lib.TextConfig(
    vocab_size=8,
    hidden_size=16,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    mrope_section=(4, 2, 2),
  )
  ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
  config = config_lib.Qwen2_5_VLConfig(
    text=text, vision=VISION, initializer_range=0.2, **dict.fromkeys(ids, 0), **fields
  )
  return vision.VisionTower(config, layout, rngs=nnx.Rngs(0))


def _frame(height, width):
  rows = image_patches.patch_rows(2 * height, 2 * width, merge=2)
  window = windows.patch_windows(rows, VISION)
  return rows, window, windows.window_slots(window, VISION)


def _inputs(prompt_count):
  """Frames of several sizes, some of them padding, in another order for each prompt."""
  rng = np.random.default_rng(0)
  shape = (prompt_count, FRAMES, PATCHES)
  arrays = {
    "patches": rng.integers(0, 256, (*shape, VISION.patch_dim), np.uint8),
    "rows": np.zeros((*shape, 2), np.int32),
    "window": np.full(shape, -1, np.int32),
    "slot": np.full(shape, -1, np.int32),
  }
  grids = itertools.cycle(GRIDS)
  for prompt, frame in np.ndindex(prompt_count, FRAMES - 1):  # the last frame is padding
    for name, values in zip(("rows", "window", "slot"), _frame(*next(grids)), strict=True):
      arrays[name][prompt, frame, : len(values)] = values
  return vision_inputs.VisionInputs(**arrays)


def _features_and_gradients(layout, inputs, **fields):
  """Features of what is no padding, and gradients of a sum of them."""
  graphdef, params = nnx.split(_tower(layout, **fields))
  seen = np.asarray(inputs.window)[..., ::4].reshape(len(inputs.window), -1, 1) >= 0
  weight = np.random.default_rng(1).standard_normal((*seen.shape[:2], 16)).astype(np.float32)

  def loss(params):
    features = nnx.merge(graphdef, params)(jax.tree.map(jnp.asarray, inputs))
    features = jnp.where(seen, features, 0)
    return (features * weight).sum(), features

  return jax.tree.map(np.asarray, jax.jit(jax.grad(loss, has_aux=True))(params))


def _assert_close(found, expected):
  for mine, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(mine, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def masked():
  """What masks give."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(attention_windows, "WORTHWHILE", 0)
    return _features_and_gradients(layout_lib.OneDevice(), _inputs(4))


def test_rows_of_windows_give_the_features_and_gradients_of_masks(masked):
  most = windows.most_rows(PATCHES // 4, VISION.window_tokens)
  assert most * VISION.window_patches**2 <= attention_windows.WORTHWHILE * PATCHES**2
  _assert_close(_features_and_gradients(layout_lib.OneDevice(), _inputs(4)), masked)


@pytest.mark.parametrize(
  ("shape", "fields"),
  [
    ((1, 2, 2, 2), {"remat": "full", "vision_chunk": 2 * PATCHES}),
    ((1, 1, 8, 1), {}),  # 4 frames are not split by 8, although their rows could be
  ],
  ids=str,
)
def test_rows_of_windows_give_on_a_mesh_what_masks_give_on_a_device(shape, fields, masked):
  layout = mesh_lib.MeshLayout(mesh_lib.make_mesh(shape))
  _assert_close(_features_and_gradients(layout, _inputs(4), **fields), masked)


def test_the_splash_kernel_masks_windows_in_whole_frames_with_the_same_result(masked):
  layout = layout_lib.OneDevice()
  _assert_close(_features_and_gradients(layout, _inputs(4), attention="splash"), masked)


@pytest.mark.parametrize(
  ("backend", "patches", "rows"),
  [
    ("splash", 127, True),  # less than a block: plain products
    ("splash", 128, False),
    ("splash_fused", 8192, False),
    ("splash", 8193, True),  # copying to rows costs less than all pairs
    ("xla", 1024, True),
    ("cudnn", 1024, True),
  ],
)
def test_middling_frames_have_no_rows_with_the_splash_kernel(backend, patches, rows):
  made = attention.Attention(layout_lib.OneDevice(), backend)
  slot = jnp.zeros((1, 1, patches), jnp.int32)
  assert (attention_windows.make(made, slot, slot, rows=4, size=4) is not None) == rows


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
def test_frames_of_every_shape_fit_the_rows_that_their_bucket_has(side):
  config = dataclasses.replace(VISION, window_size=4 * side)
  needed = np.zeros(65, int)  # by the tokens of a frame
  for height in range(1, 65):
    for width in range(1, 64 // height + 1):
      rows = image_patches.patch_rows(2 * height, 2 * width, merge=2)
      window = windows.patch_windows(rows, config)
      slot = windows.window_slots(window, config)
      assert len(np.unique(slot)) == len(slot)  # no two patches in one place
      pairs = np.unique(np.stack([window, slot // config.window_patches]), axis=1)
      assert pairs.shape[1] == window.max() + 1  # no window in two rows
      tokens = height * width
      needed[tokens] = max(needed[tokens], 1 + slot.max() // config.window_patches)
  most = [windows.most_rows(tokens, side) for tokens in range(1, 65)]
  assert most == np.maximum.accumulate(needed)[1:].tolist()


def test_layers_with_windows_compute_few_of_the_pairs_of_a_frame():
  config = dataclasses.replace(VISION, window_size=4, fullatt_block_indexes=())
  patches = 4 * 16**2

  def flops(worthwhile, monkeypatch):
    monkeypatch.setattr(attention_windows, "WORTHWHILE", worthwhile)
    slot = jax.ShapeDtypeStruct((1, 1, patches), jnp.int32)
    qkv = jax.ShapeDtypeStruct((1, 1, patches, 3, 2, 16), jnp.float32)
    tower = _tower(layout_lib.OneDevice())

    def attend(qkv, window, slot):
      rows = attention_windows.make(
        tower.attention, window, slot, rows=patches // 4, size=config.window_patches
      )
      if rows is None:
        return tower.attention.frames(*(qkv[..., i, :, :] for i in range(3)), window)
      query, key, value = (rows.split(qkv, (None,) * 3)[..., i, :, :] for i in range(3))
      return rows.join(tower.attention.frames(query, key, value, rows.segment), (None,) * 2)

    return jax.jit(attend).lower(qkv, slot, slot).compile().cost_analysis()["flops"]

  with pytest.MonkeyPatch.context() as monkeypatch:
    assert flops(0.5, monkeypatch) < 0.03 * flops(0, monkeypatch)


def test_the_case_that_is_compared_with_transformers_has_rows():
  config = builders.load(builders.FIRST_CASES["qwen2_5_vl"]).config
  prompt = builders.prompt(builders.FIRST_CASES["qwen2_5_vl"], config)
  vision, patches = config.vision, prompt.vision.window.shape[2]
  most = windows.most_rows(patches // vision.merge_unit, vision.window_tokens)
  assert most * vision.window_patches**2 <= attention_windows.WORTHWHILE * patches**2
  assert len(vision.fullatt_block_indexes) < vision.depth


def test_padding_has_no_slot():
  empty = prompts.nothing(3)
  config = builders.load(builders.FIRST_CASES["qwen2_5_vl"]).config
  sizes = prompts.PromptSizes(prefix=4, frames=2, patches=8)
  stacked = prompts.stack_frames([empty], config.vision_shapes, sizes)
  assert (stacked.slot == -1).all()
