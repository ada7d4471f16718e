"""Times sampling from text prompts against Tunix's sampler, JAX on JAX.

    python -m venv .venv-peers && .venv-peers/bin/pip install -e '.[peers]'
    .venv-peers/bin/python -m benchmarks.text_rollout

Tunix needs an environment of its own, as its dependencies and those of TRL exclude each other. A
batch of 32 rows, prompts of 64 tokens, 128 new ones, float32 (bfloat16 on an accelerator),
temperature 1 from all tokens, no stop token. On the same weights:

- ours: 32 prompts with one reply each
- ours_shared: 4 prompts with 8 replies each
- tunix: `tunix.generate.sampler.Sampler` with its Qwen2 on 32 prompts
- tunix_shared: the same on 4 prompts, each 8 times, as its GRPO learner does

Before timing, the greedy replies of the sides are compared (`rollout.check_greedy`). Prints one
JSON line.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
from typing import Any

from jaxtyping import Int
import numpy as np

from benchmarks import measure, rollout, workload

REPEATS = 9
GOALS = {"over_tunix": 1.2, "shared_over_tunix": 2.0}
SIZES = dataclasses.replace(workload.ISSUE, frames=0, text=64, prompts=32, group=1)
SIDES = ("ours", "tunix")
GROUP = 8


def shared(sizes: workload.WorkloadSizes, group: int) -> workload.WorkloadSizes:
  """Sizes of the same number of rows, `group` to a prompt. Raises ValueError otherwise."""
  if sizes.prompts % group:
    raise ValueError(
      f"text_rollout: groups of {group} don't divide {sizes.prompts} rows; take a group that does"
    )
  return dataclasses.replace(sizes, prompts=sizes.prompts // group, group=group)


def tunix_side(work: workload.Work) -> Callable[[float], Int[np.ndarray, "prompts group time"]]:
  """Samples at a temperature; Tunix is imported only here."""
  from benchmarks import tunix_side

  sampler, sizes = tunix_side.Sampler(work), work.sizes

  def run(temperature: float) -> np.ndarray:
    return sampler(temperature).reshape(sizes.prompts, sizes.group, sizes.time)

  return run


def compare(
  sizes: workload.WorkloadSizes,
  *,
  names: Sequence[str] = SIDES,
  group: int = GROUP,
  repeats: int = REPEATS,
) -> dict[str, Any]:
  """The fields of the JSON line without machine and versions."""
  works = {"": workload.make(sizes), "_shared": workload.make(shared(sizes, group))}
  make = {"ours": rollout.our_side, "tunix": tunix_side}
  runs, agreement = {}, {}
  for end, work in works.items():
    sides = {name: make[name](work) for name in names}
    greedy = {name: side(0.0) for name, side in sides.items()}
    theirs = greedy.get("tunix", np.asarray(greedy["ours"].tokens))
    agreement[f"greedy{end}"] = rollout.check_greedy(work, greedy["ours"].tokens, theirs)
    runs |= {name + end: (lambda side=side: side(1.0)) for name, side in sides.items()}
  rounds = measure.in_turn(runs, repeats=repeats)
  seconds = measure.medians(rounds)
  tokens = sizes.prompts * sizes.group * sizes.time
  ratios = {}
  if "tunix" in names:
    ratios = {
      "over_tunix": measure.ratio(rounds, "tunix", "ours"),
      "shared_over_tunix": measure.ratio(rounds, "tunix_shared", "ours_shared"),
    }
  return {
    "seconds": seconds,
    "tokens_per_second": {name: round(tokens / taken, 1) for name, taken in seconds.items()},
    "ratio": ratios,
    **agreement,
    "dtype": works[""].config.dtype,
    "tolerance": {"gap_where_they_part": rollout.TOLERANCES[works[""].config.dtype]},
  }


def main() -> None:
  """Runs the comparison and prints its line."""
  about = measure.About("google-tunix", "flax")
  result = compare(SIZES)
  print(json.dumps({"benchmark": "text_rollout", **result, "goal": GOALS, **about.fields()}))


if __name__ == "__main__":
  main()
