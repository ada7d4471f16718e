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
   - carried: the same, and the end of a step begins the next one's replies (`rl.carry_over`), also
     with a slot for each reply of a step
   - bound: `slots` slots that are always full

   Carrying prefills some prompts twice: `prefilled` of a step's prompts, mean.
   `--step_seconds=SLOTS:SECONDS,…` adds a column with the seconds of a step of the numbers of slots
   given, say by plan for a TPU (the rollout of launch/plan.py with other rl.num_generations);
   between them they are interpolated.

2. Both samplers, in turn in one process, on a small random network with replies of random length;
   their tokens must be the same.

3. The same network, four steps in a row without updates between them.

Prints one JSON line. The goal: slots that are refilled, or carry over, have at least 1.5 times the
simulated tokens a second of `shrink`, with the seconds that are given, else with those measured.
Exit code: 1 if it is missed, else 0.
"""

from collections.abc import Callable, Mapping
import dataclasses
import itertools
import json
import sys
import time
from typing import Any

from absl import flags
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
STEPS = 4
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


@dataclasses.dataclass(frozen=True)
class Refilled:
  """What the admissions of `refill_sampler` on one device take.

  steps: with each number of slots.
  written: tokens of the next batch's replies, [prompts, group].
  """

  steps: dict[int, float]
  prefilled: int
  written: np.ndarray


def refill(
  lengths: np.ndarray,
  slots: int,
  longest: int = BUDGET,
  *,
  written: np.ndarray | None = None,
  following: np.ndarray | None = None,
  fractions: tuple[float, ...] = FRACTIONS,
) -> Refilled:
  """Samples replies of these lengths in `slots` slots.

  written: tokens that they have already; None: none.
  following: lengths of the replies that follow in free slots; None: none follow.
  fractions: `rl.decode_slot_fractions`.
  """
  prompts, group = lengths.shape
  batches = [lengths] if following is None else [lengths, following]
  done = [np.zeros_like(lengths) if written is None else written.copy(), np.zeros_like(lengths)]
  places = refill_queue.RefillLayout.choose(layout_lib.OneDevice(), prompts, group, slots)
  ended = [of_batch == length for of_batch, length in zip(done, batches, strict=False)]
  queue, prefilled = refill_queue.BlockQueue(0, places, ended), 0
  steps: dict[int, float] = {}
  sizes = sampler.slot_sizes(places.slots, fractions)
  running: list[refill_queue.SlotReply] = []

  def left_of(reply: refill_queue.SlotReply) -> int:
    place = reply.row, reply.group_index
    return int(batches[reply.batch][place] - done[reply.batch][place])

  while not queue.is_done:
    while True:
      while len(running) < places.slots and queue.is_next_resident():
        running.append(queue.admit())
      has_free_slot = len(running) < places.slots
      loaded = queue.load(
        needed=has_free_slot and bool(queue.waiting) and not queue.is_next_resident()
      )[1]
      prefilled += len(loaded)
      if not loaded:
        break
    stop = refill_queue.stop_at_unfinished(places.slots, len(running)) if queue.waiting else 0
    taken = min(sorted(map(left_of, running), reverse=True)[stop], refill_sampler.CHUNK, longest)
    size = min(size for size in sizes if size >= len(running))
    steps[size] = steps.get(size, 0) + taken
    for reply in running:
      done[reply.batch][reply.row, reply.group_index] += min(taken, left_of(reply))
      if not left_of(reply):
        queue.end(reply)
    running = [reply for reply in running if left_of(reply)]
  return Refilled(steps, prefilled, done[1])


Cost = Callable[[int], float]  # seconds of a step with so many slots


def simulate(seconds_of: Mapping[str, Cost]) -> dict[str, Any]:
  """Tokens a second of each arm over those of `shrink`, by cost; and prompts prefilled a step."""
  rng = np.random.default_rng(SEED)
  batches = [draw_lengths(rng) for _ in range(BATCHES)]
  steps: dict[str, dict[int, float]] = {}
  prefilled: dict[str, float] = {}

  def add(arm: str, more: Mapping[int, float]) -> None:
    for size, number in more.items():
      arms = steps.setdefault(arm, {})
      arms[size] = arms.get(size, 0) + number

  for lengths in batches:
    add("shrink", shrink(lengths))
    add("bound_128", {128: lengths.sum() / 128})
    for slots in SLOTS:
      add(f"waves_{slots}", waves(lengths, slots))
      add(f"refill_{slots}", refill(lengths, slots).steps)
      add(f"bound_{slots}", {slots: lengths.sum() / slots})
  for slots in (*SLOTS, PROMPTS * GROUP):
    written = None
    for lengths, following in itertools.zip_longest(batches, batches[1:]):
      found = refill(lengths, slots, written=written, following=following)
      add(f"carried_{slots}", found.steps)
      written = found.written
      prefilled[f"carried_{slots}"] = prefilled.get(f"carried_{slots}", 0) + found.prefilled
  taken = {
    cost: {arm: sum(n * of(size) for size, n in found.items()) for arm, found in steps.items()}
    for cost, of in seconds_of.items()
  }
  return {
    "simulated_tokens_per_second_over_shrink": {
      cost: {arm: round(float(arms["shrink"] / time), 3) for arm, time in arms.items()}
      for cost, arms in taken.items()
    },
    "prefilled": {arm: round(n / BATCHES, 1) for arm, n in prefilled.items()},
  }


def read_step_seconds(text: str) -> Cost:
  """The cost that --step_seconds gives."""
  pairs = sorted((int(n), float(s)) for n, s in (pair.split(":") for pair in text.split(",")))
  slots, seconds = zip(*pairs, strict=True)
  return lambda n: float(np.interp(n, slots, seconds))


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
    steps = refill(lengths, slots, SIZES.time, fractions=()).steps
    if computed[f"refill_{slots}"] != sum(size * number for size, number in steps.items()):
      raise ValueError(f"the simulation of {slots} slots takes other steps than the sampler")
  rounds = measure.in_turn(runs, repeats=REPEATS)
  return {
    "mean_length": round(float(lengths.mean()), 1),
    "longest": int(lengths.max()),
    "computed_tokens": computed,
    "seconds": measure.medians(rounds),
    "speed_over_shrink_half": {n: measure.ratio(rounds, "shrink_half", n) for n in runs},
  }


def compare_steps(work: workload.Work, slots: int) -> dict[str, Any]:
  """Seconds of several steps, with slots that shrink, are refilled, or begin the next step's.

  slots: of the last two.

  Rounding may move a draw to the next of 2,000 tokens, after which a reply goes on differently.
  Raises ValueError if more than a hundredth of the replies do.
  """
  keys = [jax.random.key(number) for number in range(STEPS)]
  network = work.graphdef, work.params, work.prompt, work.allowed_tokens

  def shrunk() -> list[Any]:
    decoding = decoding_of(slot_fractions=(0.5,))
    return [sampler.sample(*network, key, decoding=decoding).tokens for key in keys]

  def refilled(*, carries: bool) -> list[Any]:
    made, begun = [], None
    for key, next_key in itertools.zip_longest(keys, keys[1:]):
      next_batch = None
      if carries and next_key is not None:
        next_batch = refill_sampler.NextBatch(prompt=lambda: work.prompt, key=next_key)
      sampled = refill_sampler.sample(
        *network, key, decoding=decoding_of(slots=slots), begun=begun, next_batch=next_batch
      )
      begun = sampled.begun
      made.append(sampled.rollout.tokens)
    return made

  arms = {
    "shrink_half": shrunk,
    "refill": lambda: refilled(carries=False),
    "carried": lambda: refilled(carries=True),
  }
  expected, others = np.asarray(shrunk()), {}
  for name, arm in arms.items():
    others[name] = int((np.asarray(arm()) != expected).any(axis=-1).sum())
    if others[name] > expected[..., 0].size // 100:
      raise ValueError(f"{name} draws other tokens than slots that shrink")
  rounds = measure.in_turn(arms, repeats=REPEATS)
  return {
    "steps": STEPS,
    "other_replies": others,
    "seconds": measure.medians(rounds),
    "speed_over_shrink_half": {n: measure.ratio(rounds, "shrink_half", n) for n in arms},
  }


def is_met(simulated: Mapping[str, float]) -> bool:
  """Whether an arm that is built reaches the goal. simulated: tokens a second of each arm."""
  built = [speed for arm, speed in simulated.items() if arm.startswith(("refill", "carried"))]
  return max(built) >= GOAL


def main(argv: list[str]) -> int:
  """Prints the JSON line. Returns the exit code."""
  values = flags.FlagValues()
  step_seconds_flag = flags.DEFINE_string(
    "step_seconds", "", "SLOTS:SECONDS,… of a decoding step.", flag_values=values
  )
  values(argv)
  about = measure.About()
  work = workload.make(SIZES)
  fixed, per_slot = step_seconds(work)
  costs: dict[str, Cost] = {
    "measured": lambda slots: fixed + per_slot * slots,
    "linear": float,
    "flat": lambda _: 1.0,
  }
  if step_seconds_flag.value:
    costs["given"] = read_step_seconds(step_seconds_flag.value)
  simulated = simulate(costs)
  by_cost = simulated["simulated_tokens_per_second_over_shrink"]
  met = is_met(by_cost["given" if "given" in costs else "measured"])
  found = {
    "benchmark": "long_tail",
    "step_milliseconds": {"fixed": round(1e3 * fixed, 3), "per_slot": round(1e3 * per_slot, 4)},
    **simulated,
    "both_samplers": compare(work),
    "steps_in_a_row": {n: compare_steps(work, n) for n in (SLOTS[-1], PROMPTS * GROUP)},
    "goal": GOAL,
    "met": met,
  }
  print(json.dumps({**found, **about.fields()}))
  return 0 if met else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv))
