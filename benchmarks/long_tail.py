"""Compares ways to decode replies of long-tailed length: slots that shrink, or are refilled.

    python -m benchmarks.long_tail

1. A simulation. 16 prompts with 8 replies each, of lognormal length (median 120, sigma 0.8, at most
   1,024). The seconds of a step with n slots are `fixed + per_slot * n`: measured here on the
   compiled sampler (`measured`), or those of the two extremes: time goes to the slots alone
   (`linear`), or a step always takes as long, as where reading weights takes the time (`flat`).
   Prefill, which is the same work for all, isn't counted. The arms:

   - shrink: all replies at once, in slots that shrink by `rl.decode_slot_fractions`' default
   - waves: as many prompts at a time as `slots` hold, each wave shrinking likewise
   - refill: `slots` slots, by the admissions of `rollout/refill_sampler.py`
   - carried: `slots` slots that are always full, as if replies were carried over the step's end: a
     bound, which no sampler here reaches

2. Both samplers, in turn in one process, on a small random network with replies of random length;
   their tokens must be the same.

Prints one JSON line. The goal: with the measured costs, refilled slots have at least 1.5 times the
simulated tokens a second of `shrink`. Exit code: 1 if it is missed, else 0.
"""

import dataclasses
import json
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks import measure, workload
from vr_jax import config_fields, records
from vr_jax.models import layout as layout_lib
from vr_jax.rollout import refill_queue, refill_sampler, sampler

BATCHES, PROMPTS, GROUP, BUDGET, SEED = 50, 16, 8, 1024, 5
SLOTS = (32, 64)
FRACTIONS = config_fields.RlSection.decode_slot_fractions
SIZES = dataclasses.replace(workload.ISSUE, prompts=PROMPTS, frames=2, time=192)
STOPS = tuple(range(100, 150))  # of about 2,000 tokens that are about equally likely
REPEATS = 3
GOAL = 1.5


def draw_lengths(rng: np.random.Generator) -> np.ndarray:
  """Lengths [prompts, group] of the replies of a step."""
  lengths = np.exp(rng.normal(np.log(120), 0.8, (PROMPTS, GROUP)))
  return np.clip(np.ceil(lengths), 1, BUDGET).astype(int)


def shrink(lengths: np.ndarray) -> dict[int, float]:
  """Steps with each number of slots, where slots shrink as replies end."""
  sizes = sorted(sampler.slot_sizes(lengths.size, FRACTIONS))
  steps: dict[int, float] = {}
  for step in range(lengths.max()):
    unfinished = int((lengths > step).sum())
    size = min(size for size in sizes if size >= unfinished)
    steps[size] = steps.get(size, 0) + 1
  return steps


def waves(lengths: np.ndarray, slots: int) -> dict[int, float]:
  """Steps with each number of slots, for as many prompts at a time as `slots` hold."""
  steps: dict[int, float] = {}
  count = slots // lengths.shape[1]
  for begin in range(0, len(lengths), count):
    for size, number in shrink(lengths[begin : begin + count]).items():
      steps[size] = steps.get(size, 0) + number
  return steps


def refill(lengths: np.ndarray, slots: int, longest: int = BUDGET) -> dict[int, float]:
  """Steps with `slots` slots, by the admissions of `refill_sampler` on one device."""
  prompts, group = lengths.shape
  places = refill_queue.RefillLayout.choose(layout_lib.OneDevice(), prompts, group, slots)
  queue, steps = refill_queue.BlockQueue(0, places, [np.zeros((prompts, group), bool)]), 0
  running: list[Any] = []  # replies, with the tokens that they still get
  while True:
    while True:
      while len(running) < places.slots and queue.is_next_resident():
        reply = queue.admit()
        running.append((reply, int(lengths[reply.row, reply.group_index])))
      has_free_slot = len(running) < places.slots
      if not queue.load(needed=has_free_slot and bool(queue.waiting))[1]:
        break
    if not running:
      return {places.slots: steps}
    stop = refill_queue.stop_at_unfinished(places.slots, len(running)) if queue.waiting else 0
    left = sorted((left for _, left in running), reverse=True)
    done = min(left[stop], refill_sampler.CHUNK, longest)
    steps += done
    for reply, left in running:
      if left <= done:
        queue.end(reply)
    running = [(reply, left - done) for reply, left in running if left > done]


def simulate(fixed: float, per_slot: float) -> dict[str, float]:
  """Tokens a second of each arm, over those of `shrink`."""
  rng = np.random.default_rng(SEED)
  seconds: dict[str, float] = {}
  for _ in range(BATCHES):
    lengths = draw_lengths(rng)
    arms: dict[str, dict[int, float]] = {
      "shrink": shrink(lengths),
      "carried_128": {128: lengths.sum() / 128},
    }
    for slots in SLOTS:
      arms[f"waves_{slots}"] = waves(lengths, slots)
      arms[f"refill_{slots}"] = refill(lengths, slots)
      arms[f"carried_{slots}"] = {slots: lengths.sum() / slots}
    for name, steps in arms.items():
      taken = sum(number * (fixed + per_slot * size) for size, number in steps.items())
      seconds[name] = seconds.get(name, 0.0) + taken
  return {name: round(float(seconds["shrink"] / taken), 3) for name, taken in seconds.items()}


def decoding_of(**changes: Any) -> sampler.Decoding:
  """Decoding options of the measured runs."""
  fields = {"group": GROUP, "max_new_tokens": SIZES.time, "stop_tokens": STOPS}
  return sampler.Decoding(**{**fields, **changes}, temperature=1.0, top_p=1.0)


def step_seconds(work: workload.Work) -> tuple[float, float]:
  """(fixed, per slot) seconds of a compiled step of `sampler`, fitted to three sizes."""
  arguments = (work.graphdef, work.params, work.prompt, work.allowed_tokens, jax.random.key(0))
  sizes, seconds = [], []
  for group in (2, 4, 8):
    taken = []
    for steps in (16, 144):
      decoding = decoding_of(group=group, max_new_tokens=steps, stop_tokens=(-1,))
      runs = []
      for _ in range(3):
        begun = time.perf_counter()
        jax.block_until_ready(sampler.sample(*arguments, decoding=decoding))
        runs.append(time.perf_counter() - begun)
      taken.append(min(runs))
    sizes.append(group * PROMPTS)
    seconds.append((taken[1] - taken[0]) / 128)
  per_slot, fixed = np.polyfit(sizes, seconds, 1)
  return max(float(fixed), 0.0), float(per_slot)


def compare(work: workload.Work) -> dict[str, Any]:
  """Seconds of both samplers on the same draws. Raises ValueError if their tokens differ."""
  arguments = (work.graphdef, work.params, work.prompt, work.allowed_tokens, jax.random.key(0))
  arms = {
    "whole": (sampler, decoding_of()),
    "shrink_half": (sampler, decoding_of(slot_fractions=(0.5,))),
    **{f"refill_{slots}": (refill_sampler, decoding_of(slots=slots)) for slots in SLOTS},
  }
  expected = sampler.sample(*arguments, decoding=decoding_of())
  computed = {}
  for name, (module, decoding) in arms.items():
    rollout, computed[name] = module.sample_counting(*arguments, decoding=decoding)
    if not np.array_equal(rollout.tokens, expected.tokens):
      raise ValueError(f"{name} draws other tokens than a slot for each reply")
  runs = {
    name: lambda module=module, decoding=decoding: module.sample_counting(
      *arguments, decoding=decoding
    )[0]
    for name, (module, decoding) in arms.items()
  }
  lengths = (np.asarray(expected.kind) == records.Kind.MODEL).sum(-1)
  for slots in SLOTS:
    (steps,) = refill(lengths, slots, SIZES.time).values()
    if computed[f"refill_{slots}"] != steps * slots:
      raise ValueError(f"the simulation of {slots} slots takes other steps than the sampler")
  rounds = measure.in_turn(runs, repeats=REPEATS)
  return {
    "mean_length": round(float(lengths.mean()), 1),
    "longest": int(lengths.max()),
    "computed_tokens": computed,
    "seconds": measure.medians(rounds),
    "speed_over_shrink_half": {n: measure.ratio(rounds, "shrink_half", n) for n in runs},
  }


def is_met(simulated: dict[str, float]) -> bool:
  """Whether refilled slots reach the goal. simulated: of `simulate`, with the measured costs."""
  return max(simulated[f"refill_{slots}"] for slots in SLOTS) >= GOAL


def main() -> int:
  """Prints the JSON line. Returns the exit code."""
  about = measure.About()
  work = workload.make(SIZES)
  fixed, per_slot = step_seconds(work)
  costs = {"measured": (fixed, per_slot), "linear": (0.0, 1.0), "flat": (1.0, 0.0)}
  simulated = {name: simulate(*cost) for name, cost in costs.items()}
  met = is_met(simulated["measured"])
  found = {
    "benchmark": "long_tail",
    "step_milliseconds": {"fixed": round(1e3 * fixed, 3), "per_slot": round(1e3 * per_slot, 4)},
    "simulated_tokens_per_second_over_shrink": simulated,
    "both_samplers": compare(work),
    "goal": GOAL,
    "met": met,
  }
  print(json.dumps({**found, **about.fields()}))
  return 0 if met else 1


if __name__ == "__main__":
  sys.exit(main())
