"""The vision tower of Qwen2.5-VL with attention windows as rows, against a mask of all pairs.

Seconds are of the forward pass, of all cores together: other work changes them less than seconds on
the clock. FLOPs are XLA's own count of a program in which attention has all its logits at once,
since it counts a loop's body once; it isn't run.

  python -m benchmarks.vision_windows [--height=60] [--width=60] [--layers=8] [--repeats=3]
"""

import argparse
import dataclasses
import functools
import json
import statistics
import time

from flax import nnx
import jax
from jaxtyping import Array
import numpy as np

from benchmarks import measure
from vr_jax.models.common import attention_windows, attention_xla, image_patches
from vr_jax.models.layout import OneDevice
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import presets, vision, vision_inputs, windows

WORTHWHILE = {"rows": attention_windows.WORTHWHILE, "mask": 0.0}


def main() -> None:
  """Prints a JSON line."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--height", type=int, default=60, help="of a frame, in patches")
  parser.add_argument("--width", type=int, default=60)
  parser.add_argument("--layers", type=int, default=8, help="the last of each 8 has full attention")
  parser.add_argument("--repeats", type=int, default=3)
  given = parser.parse_args()
  about = measure.About()
  released = config_lib.Qwen2_5_VLConfig.from_dict(presets.RELEASES["Qwen2.5-VL-3B-Instruct"])
  config = dataclasses.replace(
    released, dtype="float32", vision=dataclasses.replace(released.vision, depth=given.layers)
  )
  inputs = one_frame(config.vision, given.height, given.width)
  graphdef, params = nnx.split(vision.VisionTower(config, OneDevice(), rngs=nnx.Rngs(0)))

  def tower(side: str, params: nnx.State, inputs: vision_inputs.VisionInputs) -> Array:
    attention_windows.WORTHWHILE = WORTHWHILE[side]  # read while it is traced
    return nnx.merge(graphdef, params)(inputs)

  sides = {side: jax.jit(functools.partial(tower, side)) for side in WORTHWHILE}
  features = {name: np.asarray(side(params, inputs)) for name, side in sides.items()}
  difference = np.abs(features["rows"] - features["mask"]).max() / np.abs(features["mask"]).max()
  rounds = {side: [] for side in sides}
  for _ in range(given.repeats):
    for name, side in sides.items():
      begun = time.process_time()
      side(params, inputs).block_until_ready()
      rounds[name].append(time.process_time() - begun)
  attention_xla.CACHED_LOGITS = 2**60
  flops = {
    side: jax.jit(functools.partial(tower, side)).lower(params, inputs).compile().cost_analysis()
    for side in WORTHWHILE
  }
  print(
    json.dumps(
      {
        "benchmark": "vision_windows",
        "patches": given.height * given.width,
        "layers": given.layers,
        "core_seconds": {name: round(statistics.median(some), 2) for name, some in rounds.items()},
        "mask_over_rows": measure.ratio(rounds, "mask", "rows"),
        "gflops": {side: round(counted["flops"] / 1e9, 1) for side, counted in flops.items()},
        "largest_difference": float(difference),
        **about.fields(),
      }
    )
  )


def one_frame(
  config: config_lib.VisionConfig, height: int, width: int
) -> vision_inputs.VisionInputs:
  """A frame of random patches without padding."""
  rows = image_patches.patch_rows(height, width, merge=config.spatial_merge_size)
  window = windows.patch_windows(rows, config)
  patches = np.random.default_rng(0).integers(0, 256, (len(rows), config.patch_dim), np.uint8)
  values = patches, rows, window, windows.window_slots(window, config)
  names = ("patches", "rows", "window", "slot")
  return vision_inputs.VisionInputs(
    **{name: value[None, None] for name, value in zip(names, values, strict=True)}
  )


if __name__ == "__main__":
  main()
