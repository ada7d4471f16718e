"""Host seconds to make the splash kernel of a long causal prompt; tracing a program waits for it.

Two sides: only blocks with an edge are computed pair by pair, or all of them, as the library does
it with its own masks.

  python -m benchmarks.splash_masks [--tokens=67584] [--heads=28]
"""

import argparse
import json
import time

from jaxtyping import Bool
import numpy as np

from benchmarks import measure
from vr_jax.models.common import attention_splash


class EveryPair(attention_splash.RepliesMask):
  """The same mask, of which every part is computed pair by pair."""

  def __getitem__(self, where: tuple[slice, slice]) -> Bool[np.ndarray, "rows columns"]:
    """The part of a causal mask."""
    rows, columns = (
      np.arange(*part.indices(size)) for part, size in zip(where, self.shape, strict=True)
    )
    return columns <= rows[:, None]


def main() -> None:
  """Prints a JSON line."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--tokens", type=int, default=67_584, help="a multiple of 512")
  parser.add_argument("--heads", type=int, default=28)
  given = parser.parse_args()
  about = measure.About()
  sides = {"edges": attention_splash.RepliesMask, "pairs": EveryPair}
  seconds, sizes = {}, (given.heads, (512, 512))
  for name, kind in sides.items():
    mask, options = kind(group=1, time=given.tokens), attention_splash.Options(*sizes)
    start = time.perf_counter()
    attention_splash.make_kernel(mask, options)
    seconds[name] = round(time.perf_counter() - start, 2)
  print(
    json.dumps(
      {
        "benchmark": "splash_masks",
        "tokens": given.tokens,
        "seconds": seconds,
        "pairs_over_edges": round(seconds["pairs"] / seconds["edges"], 1),
        **about.fields(),
      }
    )
  )


if __name__ == "__main__":
  main()
