"""Times sampling groups of replies, against transformers' `generate` on repeated prompts.

    python -m benchmarks.rollout [--family=qwen3_vl|tinyllava]

4 prompts of 1,024 video tokens, 8 replies of 128 tokens to each, float32 (bfloat16 on an
accelerator): vision, prefill and decoding, without a stop token, so that both sides compute all
tokens. Two sides, on the same weights and prompts:

- ours: `rollout.sampler.sample`, with one prefill a prompt
- torch: `generate` (sdpa attention, its dynamic cache) on a batch that has each prompt 8 times, as
  in TRL, Video-R1 and EasyR1

Times are of sampling at temperature 1 from all tokens, as in training. Before timing, the greedy
replies of the sides are compared: they must be the same tokens, and where they first differ, ours
must give both tokens the same log-prob (a tie). Prints one JSON line.
"""

from collections.abc import Callable, Sequence
import dataclasses
import itertools
import json
from pathlib import Path
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from benchmarks import measure, workload
from vr_jax import records
from vr_jax.rollout import sampler
from vr_jax.train import train_step

REPEATS = 5
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}  # nats
GOALS = {"over_torch": 4.0}
SIZES = dataclasses.replace(workload.ISSUE, prompts=4)
NO_STOP = (-1,)
SIDES = ("ours", "torch")


def decoding_of(sizes: workload.WorkloadSizes, temperature: float) -> sampler.Decoding:
  """Decoding options: all tokens, no stop token."""
  return sampler.Decoding(
    group=sizes.group,
    max_new_tokens=sizes.time,
    temperature=temperature,
    top_p=1.0,
    stop_tokens=NO_STOP,
  )


def our_side(work: workload.Work) -> Callable[[float], records.Rollout]:
  """Samples at a temperature, with another key at each call."""
  numbers = itertools.count()

  def run(temperature: float) -> records.Rollout:
    key = jax.random.fold_in(jax.random.key(0), next(numbers))
    decoding = decoding_of(work.sizes, temperature)
    return sampler.sample(
      work.graphdef, work.params, work.prompt, work.allowed_tokens, key, decoding=decoding
    )

  return run


def torch_side(
  work: workload.Work, directory: Path
) -> Callable[[float], Int[np.ndarray, "prompts group time"]]:
  """The same with PyTorch, which is imported only here."""
  from benchmarks import torch_side

  work.save(directory)
  sizes, model = work.sizes, torch_side.load(directory)
  batch = torch_side.inputs(work, None, sizes.group)

  def run(temperature: float) -> np.ndarray:
    tokens = torch_side.generate(
      model, batch, sizes.time, temperature=temperature, suppressed=work.forbidden
    )
    return tokens.reshape(sizes.prompts, sizes.group, sizes.time)

  return run


def check_greedy(
  work: workload.Work,
  ours: Int[Array | np.ndarray, "prompts group time"],
  theirs: Int[np.ndarray, "prompts group time"],
) -> dict[str, float]:
  """The fraction of equal greedy tokens, and the largest difference of log-probs at a tie.

  Replies are compared up to their first difference; after it their contexts differ.
  Raises ValueError where the difference is no tie.
  """
  ours = np.asarray(ours)
  mine, other = (greedy_log_probs(work, tokens) for tokens in (ours, theirs))
  same = np.cumprod(ours == theirs, axis=-1).astype(bool)
  first = ~same & np.concatenate([np.ones_like(same[..., :1]), same[..., :-1]], axis=-1)
  gap = float(np.abs(np.where(first, mine - other, 0)).max())
  if gap > TOLERANCES[work.config.dtype]:
    raise ValueError(f"greedy replies part where log-probs differ by {gap:.1e} nats")
  return {"same_tokens": round(float(same.mean()), 4), "gap_where_they_part": gap}


def greedy_log_probs(
  work: workload.Work, tokens: Int[np.ndarray, "prompts group time"]
) -> Float[np.ndarray, "prompts group time"]:
  """Log-probs of tokens under our forward pass, at temperature 1."""
  rollout = dataclasses.replace(workload.replies(work), tokens=jnp.asarray(tokens, jnp.int32))
  score = train_step.make_logprob_fn(work.graphdef, work.allowed_tokens, temperature=1.0)
  return np.asarray(score(work.params, work.prompt, rollout))


def compare(
  sizes: workload.WorkloadSizes, *, names: Sequence[str] = SIDES, repeats: int = REPEATS
) -> dict[str, Any]:
  """The fields of the JSON line without machine and versions."""
  work = workload.make(sizes)
  with tempfile.TemporaryDirectory() as directory:
    make = {
      "ours": lambda: our_side(work),
      "torch": lambda: torch_side(work, Path(directory) / "model"),
    }
    sides = {name: make[name]() for name in names}
    greedy = {name: side(0.0) for name, side in sides.items()}
    theirs = greedy["torch"] if "torch" in names else np.asarray(greedy["ours"].tokens)
    agreement = check_greedy(work, greedy["ours"].tokens, theirs)
    runs = {name: (lambda side=side: side(1.0)) for name, side in sides.items()}
    rounds = measure.in_turn(runs, repeats=repeats)
  tokens = sizes.prompts * sizes.group * sizes.time
  seconds = measure.medians(rounds)
  return {
    "seconds": seconds,
    "tokens_per_second": {name: round(tokens / taken, 1) for name, taken in seconds.items()},
    "ratio": {f"over_{n}": measure.ratio(rounds, n, "ours") for n in names if n != "ours"},
    "greedy": agreement,
    "dtype": work.config.dtype,
    "tolerance": {"gap_where_they_part": TOLERANCES[work.config.dtype]},
  }


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints its line."""
  about = measure.About("torch", "transformers")
  sizes, names = workload.of_family(SIZES, argv, SIDES)
  result = compare(sizes, names=names)
  print(json.dumps({"benchmark": "rollout", **result, "goal": GOALS, **about.fields()}))


if __name__ == "__main__":
  main(sys.argv[1:])
