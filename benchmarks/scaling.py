"""Measures how time and memory of one update grow with the number of frames.

    python -m benchmarks.scaling

One prompt of 8 to 256 frames (2 a temporal patch, 64 tokens each), 8 replies of 128 tokens, the
step of `group_update`, layers rematerialised as for long videos (remat `full`). FLOPs are those of
all matrix products, recomputation included (models/qwen2_5_vl/flops.py). Tokens are those of the
text layers, prompt and replies. Growth is from the smallest to the largest size, and from each size
to the next. Time may grow 1.15 times as fast as FLOPs, memory 1.15 times as fast as tokens.

Sizes run in turn. Prints one JSON line.
"""

from collections.abc import Sequence
import dataclasses
import itertools
import json
from typing import Any

from benchmarks import group_update, measure, workload
from vr_jax.models.common import flops

FRAMES = (8, 16, 32, 64, 128, 256)
REPEATS = 3
GOALS = {"time_over_flops": 1.15, "memory_over_tokens": 1.15}


def slot_sizes(base: workload.WorkloadSizes, frames: int) -> workload.WorkloadSizes:
  """The same sizes with videos of `frames` frames."""
  return dataclasses.replace(base, frames=frames // 2)


def counted(sizes: workload.WorkloadSizes) -> dict[str, float]:
  """FLOPs of an update and tokens of its text layers."""
  one = workload.forward_flops(sizes)
  return {
    "gigaflops": flops.training(one, vision_frozen=False, rematerialised=True) / 1e9,
    "tokens": sizes.prefix + sizes.group * sizes.time,
  }


def compare(
  base: workload.WorkloadSizes, frames: Sequence[int] = FRAMES, *, repeats: int = REPEATS
) -> dict[str, Any]:
  """The fields of the JSON line without machine and versions."""
  updates, table = {}, []
  for count in frames:
    work = workload.make(slot_sizes(base, count), remat="full")
    updates[count] = group_update.GroupUpdate(work, workload.replies(work), replicate=False)
  rounds = measure.in_turn(updates, repeats=repeats)
  seconds = measure.medians(rounds)
  for count, update in updates.items():
    row = {"frames": count, "seconds": seconds[count], "megabytes": update.peak_megabytes()}
    table.append({**row, **counted(slot_sizes(base, count))})
  ends = _growth(table[0], table[-1])
  each = [_growth(*pair) for pair in itertools.pairwise(table)]
  return {
    "sizes": table,
    "dtype": workload.platform_dtype(),
    "ratio": ends,
    "largest_step": {name: max(step[name] for step in each) for name in ends},
  }


def _growth(small: dict[str, float], large: dict[str, float]) -> dict[str, float]:
  def grown(name: str) -> float:
    return large[name] / small[name]

  return {
    "time_over_flops": round(grown("seconds") / grown("gigaflops"), 3),
    "memory_over_tokens": round(grown("megabytes") / grown("tokens"), 3),
  }


def main() -> None:
  """Runs the sizes and prints the line."""
  about = measure.About()
  result = compare(workload.ISSUE)
  print(json.dumps({"benchmark": "scaling", **result, "goal": GOALS, **about.fields()}))


if __name__ == "__main__":
  main()
