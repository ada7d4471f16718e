"""Times the process reward from texts: `vr_jax.rewards.process` against rouge-score and a DTW loop.

    python -m benchmarks.process_reward

256 replies of 12 steps, 32 references of 8 steps (groups of 8 replies share one, as in training),
24 random words a step out of 2,000, with inflections for the stemmer. Each run gets replies that
neither side has seen, so only the vocabulary can be cached.

- ours: `process_reward(replies, references)`, with all host work: split into steps, words, stems,
  ROUGE, DTW.
- reference: `rouge_score` with stems on each pair of steps, and the jump alignment of each reply in
  NumPy, vectorised over the generated steps. Splitting the trace into steps is not counted against
  it. It is timed on a few replies of the same batch, and its time scaled to all: every reply is the
  same amount of work to it.

Sides run in turn. Prints one JSON line: seconds for the batch (medians) and their ratio. The goal
is 20.
"""

import json
import random
import statistics
import time

import numpy as np
from rouge_score import rouge_scorer

from vr_jax.rewards import process

REPLIES, GROUP, STEPS, REFERENCE_STEPS, WORDS, VOCABULARY = 256, 8, 12, 8, 24, 2000
TIMED_REPLIES = 8  # of the reference
ROUNDS = 9
GOAL = 20.0


def vocabulary(rng: random.Random) -> list[str]:
  """Made-up words, many with an ending that has a stemming rule."""
  ends = ("", "", "s", "ed", "ing", "ly", "ation", "ness")
  roots = (
    "".join(rng.choices("abcdefghijklmnoprstuvwy", k=rng.randint(2, 7))) for _ in range(VOCABULARY)
  )
  return [root + rng.choice(ends) for root in roots]


def trace(rng: random.Random, words: list[str], steps: int) -> list[str]:
  """Steps of random words, each a sentence."""
  return [" ".join(rng.choices(words, k=WORDS)) + "." for _ in range(steps)]


def reference_reward(
  scorer: rouge_scorer.RougeScorer, reference: list[str], steps: list[str]
) -> float:
  """The process reward of one reply, computed by rouge-score and NumPy."""
  cost = np.empty((len(reference), len(steps)))
  for i, wanted in enumerate(reference):
    for j, step in enumerate(steps):
      scores = scorer.score(wanted, step).values()
      cost[i, j] = 1 - sum(score.fmeasure for score in scores) / 3
  total = cost[0]
  for row in cost[1:]:
    one = np.concatenate([[np.inf], total[:-1]])
    two = np.concatenate([[np.inf, np.inf], total[:-2]])
    total = row + np.minimum(one, two)
  return float(np.exp(-total.min() / len(reference)))


def main() -> None:
  """Times both sides on fresh replies, checks that they agree, prints the JSON line."""
  rng = random.Random(0)
  words = vocabulary(rng)
  scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
  references = [trace(rng, words, REFERENCE_STEPS) for _ in range(REPLIES // GROUP)]
  owners = [reference for reference in references for _ in range(GROUP)]
  seconds = {"ours": [], "reference": []}
  for number in range(ROUNDS + 1):
    traces = [trace(rng, words, STEPS) for _ in range(REPLIES)]
    replies = [f"<think>{chr(10).join(steps)}</think>\n<answer>B</answer>" for steps in traces]
    begun = time.perf_counter()
    rewards = process.process_reward(replies, owners).reward
    middle = time.perf_counter()
    expected = [
      reference_reward(scorer, owners[index], traces[index]) for index in range(TIMED_REPLIES)
    ]
    ended = time.perf_counter()
    np.testing.assert_allclose(rewards[:TIMED_REPLIES], expected, rtol=1e-5)
    if number:  # the first round compiles
      seconds["ours"].append(middle - begun)
      seconds["reference"].append((ended - middle) * REPLIES / TIMED_REPLIES)
  medians = {name: statistics.median(values) for name, values in seconds.items()}
  ratio = medians["reference"] / medians["ours"]
  result = {
    "benchmark": "process_reward",
    "seconds": {name: round(value, 3) for name, value in medians.items()},
    "ratio": round(ratio, 1),
    "goal": GOAL,
    "met": ratio >= GOAL,
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
