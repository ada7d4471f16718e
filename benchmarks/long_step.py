"""Trains steps on long videos at a small width, and checks that memory grows with their length.

    python -m benchmarks.long_step [MINUTES]

A whole GRPO step of the tiny recipe, as `benchmarks.grpo_step` times it: two prompts, 4 replies of
72 tokens to each, gradients of all parameters, tower included. Of a video, one frame a second is
shown, 8 media tokens each: of 10 minutes 600 frames, 19,200 patches and 4,800 tokens. The tower
reads 2,048 patches at a time, and layers are computed again in the backward pass.

Each length runs in a process of its own:

- tokens: of the prompt, padding included
- seconds: of the second step; the first one compiles
- update_megabytes: temporaries of the update on a device, as the compiler plans them
- peak_megabytes: the largest resident memory of the process, beyond what it had before the steps

Prints one JSON line. `growth` is how many times more update_megabytes a further minute costs from 5
to 10 minutes than from 2.5 to 5: 1 if memory is linear, 2 if it is quadratic. The goal is at most
1.2. Exit code: 1 if it is missed, else 0.
"""

from collections.abc import Sequence
import json
from pathlib import Path
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

from benchmarks import grpo_step, measure

MINUTES = (2.5, 5.0, 10.0)
GOAL = 1.2
SPARE = 128  # tokens of a prompt beside its media


def fields(minutes: float) -> dict[str, Any]:
  """Config fields of a step on videos of this length."""
  frames = round(60 * minutes)
  patches = 64  # of a temporal patch, two frames of 112 x 112 pixels
  return {
    "data__simulate__videos": 6,
    "data__simulate__world__fps": 2,
    "data__simulate__world__dwell": 15 * minutes,  # as many events as in the recipe's 10 seconds
    "data__simulate__world__shown": 60 * minutes,
    "data__simulate__world__seconds": 75 * minutes,
    "data__frames": frames,
    "model__max_pixels": 112 * 112,
    "model__patch_buckets": (patches,),
    "model__frame_buckets": (frames // 2,),
    "model__prefix_buckets": (frames // 2 * patches // 4 + SPARE,),
    "model__architecture__text_config__max_position_embeddings": 2**15,
    "model__remat": "full",
    "model__vision_chunk": 2048,
    "sft__max_reply_tokens": 128,  # references name moments with more digits
    "rl__batch_size": 2,
    "rl__num_generations": 4,
    "rl__microbatches": 1,
  }


def measure_length(minutes: float, workdir: Path, **changes: Any) -> dict[str, float]:
  """Runs two steps. changes: further config fields."""
  config = grpo_step.recipe(workdir, **{**fields(minutes), **changes})
  step = grpo_step.TrainerStep(grpo_step.build(config, workdir))
  update, shapes = step.learner.update, []

  def record(*arguments: Any, **options: Any) -> Any:
    shapes.append(jax.tree.map(_shape, (arguments, options)))
    return update(*arguments, **options)

  step.learner.update = record
  before = _resident()
  step()
  begun = time.perf_counter()
  step()
  seconds = time.perf_counter() - begun
  peak = measure.peak_bytes()
  arguments, options = shapes[-1]
  stats = update.lower(*arguments, **options).compile().memory_analysis()
  return {
    "tokens": step.prompt_tokens,
    "seconds": round(seconds, 2),
    "update_megabytes": round(stats.temp_size_in_bytes / 1e6, 1),
    "peak_megabytes": round((peak - before) / 1e6, 1),
  }


def growth(minutes: Sequence[float], megabytes: Sequence[float]) -> float:
  """How many times more a further minute costs between the last two lengths than before them."""
  slopes = [(megabytes[i + 1] - megabytes[i]) / (minutes[i + 1] - minutes[i]) for i in range(2)]
  return round(slopes[1] / slopes[0], 3)


def _shape(x: Any) -> Any:
  is_array = isinstance(x, jax.Array)
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if is_array else x


def _resident() -> int:
  """Bytes of resident memory now."""
  pages = int(Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize()


def main(argv: Sequence[str]) -> int:
  """Runs all lengths, or only the one that is given, and prints a line. Returns the exit code."""
  if argv:
    with tempfile.TemporaryDirectory() as directory:
      print(json.dumps(measure_length(float(argv[0]), Path(directory) / "run")))
    return 0
  about, found = measure.About(), {}
  for minutes in MINUTES:
    command = [sys.executable, "-m", "benchmarks.long_step", str(minutes)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found[minutes] = json.loads(lines.splitlines()[-1])
  grown = growth(MINUTES, [found[minutes]["update_megabytes"] for minutes in MINUTES])
  met = grown <= GOAL
  line = {"minutes": found, "growth": grown, "goal": GOAL, "met": met, **about.fields()}
  print(json.dumps({"benchmark": "long_step", **line}))
  return 0 if met else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
