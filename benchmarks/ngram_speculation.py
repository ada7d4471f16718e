"""Finds whether speculative decoding with a group's own n-grams would make sampling faster.

    python -m benchmarks.ngram_speculation [WORKDIR] [--tokenizer=FILE] [--every=20]

Nothing of it is built. A pass would verify k proposed tokens of each reply at once, and each reply
goes on by those that are accepted and one more. The proposals are those that followed most often
after the longest suffix, of 1 to 4 tokens, that the prompt and the group's replies have so far.

1. `recorded`: the replies of a run (WORKDIR/rollouts, one step in `every`), replayed. All replies
   to a step's prompts advance together, and proposals see what the others of the group have `so
   far`. `none`: they don't; `whole`: the others have ended, a bound. A sampler draws x from p,
   accepts a proposal if it is x, with probability p(x), and keeps x in any case. So what it keeps
   has the distribution p whatever is proposed, and with the same key it is today's token. A
   recorded token was drawn from p, so it decides about proposals as a run would.
2. `break_even`: steps that take as long as a pass, so as many tokens it has to bring; and the
   probability of acceptance that this takes, if all proposals have the same.
3. `long_tail`: lengths of `benchmarks.long_tail`; proposals are accepted with one probability.

A pass speculates once slots have shrunk (by the default of `rl.decode_slot_fractions`) to
`at_most_slots`; `best` is the fastest. Proposing takes no time here. Two costs of a pass:

- plan: the roofline of 7B on v5p-16 (`StepCosts`). Weights and keys are read once a pass; FLOPs,
  all else in memory and bytes between chips are those of k + 1 times as many rows.
- schedule: of matrix products alone, as XLA schedules them: a tile of weights takes 128 cycles to
  load, and then a cycle a row (docs/performance.md, Limits).

Prints one JSON line. The goal: 1.2 times the tokens a second of a whole step, by plan, for the
recorded replies, or else for half of all proposals accepted. Exit code: 1 if it is missed, else 0.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import json
from pathlib import Path
import statistics
import sys
from typing import Any

import numpy as np
import tokenizers

from benchmarks import long_tail, measure
from vr_jax import errors
from vr_jax.models.common import tokenizer as tokenizer_lib
from vr_jax.rollout import sampler

LONGEST = 4  # tokens of an n-gram's suffix
PROPOSALS, SLOTS = (1, 2, 4, 8), (128, 64, 32, 16, 8)
OTHERS = ("so far", "none", "whole")
ACCEPTANCES = (0.3, 0.5, 0.7, 0.9)
STEPS, SEED = 8, 5  # of the simulated long tail
GOAL, GOAL_ACCEPTANCE = 1.2, 0.5
STOP = -1  # ends a reply


@dataclasses.dataclass(frozen=True)
class StepCosts:
  """Milliseconds of a decoding step of 7B on v5p-16 by plan: 16 prompts of 1,280 tokens.

  Lines through 32, 64 and 128 slots, by `launch/plan.py --quick --json
  --config=configs/moss_chatv.py:7b --topology=v5p-16 --programs=rollout
  --config.rl.num_generations=2` (4, 8), 2026-11-30, with replies of 768 tokens.

  keys_slot: reading a reply's keys: 768 x 28 layers x 1,024 bfloat16 over 8 chips at 2.765 TB/s.
  …_row: of a token, beside what memory and links take whatever their number.
  """

  compute_row: float = 0.004075
  memory: float = 0.768
  keys_slot: float = 0.00199
  memory_row: float = 0.00369
  network: float = 0.304
  network_row: float = 0.00242

  def plan(self, slots: int, proposals: int) -> float:
    """Milliseconds of a pass."""
    rows = slots * (proposals + 1)
    memory = self.memory + self.keys_slot * slots + self.memory_row * rows
    return max(self.compute_row * rows, memory, self.network + self.network_row * rows)


Group = tuple[Sequence[int], Sequence[Sequence[int]]]  # a prompt and its replies, as tokens
Cost = Callable[[int, int], float]  # of a pass, by slots and proposals
COSTS: Mapping[str, Cost] = {
  "plan": StepCosts().plan,
  "schedule": lambda slots, proposals: 128 + slots * (proposals + 1),
}


class NgramTable:
  """Which tokens followed n-grams, and how often."""

  def __init__(self) -> None:
    self._followers: dict[tuple[int, ...], Counter[int]] = {}

  def add(self, tokens: Sequence[int], begin: int) -> None:
    """Counts tokens[begin:], each with the n-grams before it."""
    for end in range(begin, len(tokens)):
      for n in range(1, min(LONGEST, end) + 1):
        self._followers.setdefault(tuple(tokens[end - n : end]), Counter())[tokens[end]] += 1

  def propose(self, tokens: Sequence[int], count: int) -> list[int]:
    """Up to `count` tokens, each the most frequent after the longest known suffix."""
    suffix, proposed = list(tokens[-LONGEST:]), []
    while len(proposed) < count:
      known = (self._followers.get(tuple(suffix[n:])) for n in range(len(suffix)))
      followers = next(filter(None, known), None)
      if followers is None:
        break
      proposed.append(followers.most_common(1)[0][0])
      suffix = [*suffix, proposed[-1]][-LONGEST:]
    return proposed


class RecordedReplies:
  """The replies of a step, as they would be written again.

  others: what proposals to a reply see of the others of its group: one of OTHERS.
  """

  def __init__(self, groups: Sequence[Group], others: str = "so far") -> None:
    self._texts, self._begins, self._tables = [], [], []
    for prompt, replies in groups:
      tables = [NgramTable() for _ in replies]
      if others == "so far":
        tables = [tables[0]] * len(replies)
      self._texts += [[*prompt, *reply] for reply in replies]
      self._begins += [len(prompt)] * len(replies)
      self._tables += tables
      for number, table in enumerate(tables[:1] if others == "so far" else tables):
        table.add(prompt, 0)
        for other in (*replies[:number], *replies[number + 1 :]) if others == "whole" else ():
          table.add([*prompt, *other], len(prompt))
    self.lengths = np.array([len(t) - b for t, b in zip(self._texts, self._begins, strict=True)])

  def accepted(self, reply: int, written: int, proposals: int) -> int:
    """How many proposals to a reply that has `written` tokens are what comes next."""
    text, at = self._texts[reply], self._begins[reply] + written
    proposed = self._tables[reply].propose(text[max(0, at - LONGEST) : at], proposals)
    pairs = zip(proposed, text[at:], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

  def write(self, reply: int, begin: int, end: int) -> None:
    """Shows the group tokens begin … end - 1 of a reply."""
    before = self._begins[reply]
    self._tables[reply].add(self._texts[reply][: before + end], before + begin)


class RandomReplies:
  """Replies of given lengths, to which each proposal is accepted with the same probability."""

  def __init__(self, lengths: np.ndarray, acceptance: float, seed: int) -> None:
    self.lengths, self._acceptance, self._rng = lengths, acceptance, np.random.default_rng(seed)

  def accepted(self, _reply: int, _written: int, proposals: int) -> int:
    """As `RecordedReplies.accepted`."""
    return int((self._rng.random(proposals) < self._acceptance).cumprod().sum())

  def write(self, *_: int) -> None:
    """Does nothing: what is written makes no difference."""


Passes = Counter[tuple[int, int]]  # how many, by slots and proposals


def replay(
  replies: RecordedReplies | RandomReplies, proposals: int, at_most_slots: int
) -> tuple[Passes, list[int]]:
  """Writes all replies, with proposals while there are at most so many slots.

  Also returns the tokens that each reply got in each pass with proposals.
  """
  lengths = replies.lengths
  sizes = sampler.slot_sizes(len(lengths), long_tail.FRACTIONS)
  written, passes, advanced = np.zeros(len(lengths), int), Passes(), []
  while (unfinished := np.flatnonzero(written < lengths)).size:
    slots = min(size for size in sizes if size >= len(unfinished))
    count = proposals if slots <= at_most_slots else 0
    passes[slots, count] += 1
    before = written.copy()
    for one in unfinished.tolist():
      accepted = replies.accepted(one, int(written[one]), count) if count else 0
      written[one] = min(written[one] + accepted + 1, lengths[one])
    for one in unfinished.tolist():
      replies.write(one, int(before[one]), int(written[one]))
    advanced += (written - before)[unfinished].tolist() if count else []
  return passes, advanced


def compare(make: Callable[[], Iterator[RecordedReplies | RandomReplies]]) -> dict[str, Any]:
  """How many times the tokens a second of decoding step by step, over all steps that `make` yields.

  It is called anew for each number of proposals and slots.
  """

  def total(proposals: int, at_most_slots: int) -> tuple[dict[str, float], list[int]]:
    passes, tokens = Passes(), []
    for replies in make():
      taken, advanced = replay(replies, proposals, at_most_slots)
      passes, tokens = passes + taken, tokens + advanced
    return {name: sum(n * f(*at) for at, n in passes.items()) for name, f in COSTS.items()}, tokens

  plain, table, tokens = total(0, 0)[0], {}, {}
  for proposals, at_most in itertools.product(PROPOSALS, SLOTS):
    times, advanced = total(proposals, at_most)
    table[proposals, at_most] = {name: round(plain[name] / times[name], 3) for name in COSTS}
    if at_most == SLOTS[0]:
      tokens[proposals] = round(statistics.mean(advanced), 2)
  best = {name: max(table, key=lambda arm, name=name: table[arm][name]) for name in COSTS}
  return {
    "tokens_a_pass": tokens,
    "in_all_slots": {k: table[k, SLOTS[0]] for k in PROPOSALS},
    "best": {
      name: {"proposals": at[0], "at_most_slots": at[1], "speed": table[at][name]}
      for name, at in best.items()
    },
  }


def break_even(cost: Cost, slots: int, proposals: int) -> tuple[float, float | None]:
  """Tokens a pass that cost no more than in steps; the probability of acceptance that it takes.

  None: even if all proposals are accepted, they take longer.
  """
  needed = cost(slots, proposals) / cost(slots, 0)
  share = np.linspace(0, 1, 10_001)
  enough = (share[:, None] ** np.arange(proposals + 1)).sum(axis=1) >= needed
  return round(needed, 3), round(float(share[enough.argmax()]), 3) if enough.any() else None


def read_steps(workdir: Path, tokenizer: tokenizers.Tokenizer, every: int) -> list[list[Group]]:
  """The groups of one step in `every` of a run. Turns of an episode follow one another.

  Raises InputError if there are none, or a file is damaged.
  """
  files = sorted((workdir / "rollouts").glob("step-*.jsonl"))[::every]
  if not files:
    raise errors.InputError(f"{workdir}/rollouts: no step-*.jsonl; give the workdir of an RL run")

  def encode(text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids

  def encode_group(group: Mapping[str, Any]) -> Group:
    episodes = [reply.get("turns", [reply]) for reply in group["replies"]]
    texts = [[(*encode(turn["text"]), STOP) for turn in turns] for turns in episodes]
    return encode(group["prompt"]), [[*itertools.chain(*turns)] for turns in texts]

  steps = []
  for path in files:
    try:
      steps.append([encode_group(json.loads(line)) for line in path.read_bytes().splitlines()])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      raise errors.InputError(f"{path}: not the rollouts of a step ({error!r})") from error
  return steps


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the JSON line. Returns the exit code."""
  parser = argparse.ArgumentParser(prog="benchmarks.ngram_speculation", allow_abbrev=False)
  parser.add_argument("workdir", nargs="?", type=Path, help="of an RL run")
  parser.add_argument("--tokenizer", type=Path, help="default: data/tokenizer-*.json of the run")
  parser.add_argument("--every", type=int, default=20, help="one step in so many is read")
  options = parser.parse_args(argv)
  if options.every < 1:
    parser.error("--every: give 1 or more")
  about, found = measure.About("tokenizers"), {}
  if options.workdir:
    trained = sorted((options.workdir / "data").glob("tokenizer-*.json"))
    path = options.tokenizer or (trained or [options.workdir / "data"])[0]
    tokenizer = tokenizer_lib.load_tokenizer(path, needed=(), owner="the run")
    steps = read_steps(options.workdir, tokenizer, options.every)
    found["recorded"] = {
      o: compare(lambda o=o: (RecordedReplies(step, o) for step in steps)) for o in OTHERS
    }
  found["break_even"] = {
    name: {f"{s} slots, {k}": break_even(cost, s, k) for s in SLOTS for k in PROPOSALS}
    for name, cost in COSTS.items()
  }
  rng = np.random.default_rng(SEED)
  lengths = [long_tail.draw_lengths(rng).ravel() for _ in range(STEPS)]
  found["long_tail"] = {
    a: compare(lambda a=a: (RandomReplies(drawn, a, n) for n, drawn in enumerate(lengths)))
    for a in ACCEPTANCES
  }
  judged = found["recorded"][OTHERS[0]] if options.workdir else found["long_tail"][GOAL_ACCEPTANCE]
  met = judged["best"]["plan"]["speed"] >= GOAL
  line = {"benchmark": "ngram_speculation", **found, "goal": GOAL, "met": met, **about.fields()}
  print(json.dumps(line))
  return 0 if met else 1


if __name__ == "__main__":
  try:
    sys.exit(main())
  except errors.InputError as error:
    print(f"ngram_speculation: {error}", file=sys.stderr)
    sys.exit(2)
