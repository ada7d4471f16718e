"""Random and adversarial replies through the parser and the environment of Video-MTR.

    python -m benchmarks.fuzz_video_mtr --replies=100000

Half of the replies are correct ones with a few edits, half are fragments of tags, numbers, white
space and odd characters. Environments of all kinds (turns, budget, variant, pool, problem type)
get them turn by turn until each episode ends. Prints one JSON line: how replies were parsed, the
minimum and maximum of each reward, and violations: a frame outside the pool, more frames than the
budget allows, an answer with a tag in it, a reward outside its range. Exit code 1 after a
violation.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import json
import random
import sys
import time
from typing import Any, Literal, cast

from absl import flags
import numpy as np

from vr_jax import records
from vr_jax.envs import environment, retrieval_actions, video_mtr
from vr_jax.rewards import exploration, relevance

_TAGS = [
  f"<{slash}{name}>" for name in ("think", "answer", "retrieve", "retrive") for slash in ("", "/")
]
_READ = _TAGS[:6]  # the others are misspelt
_NUMBERS = [
  "0",
  "7",
  "007",
  "-1",
  "1.5",
  "1e9",
  "127",
  "128",
  "9" * 30,
  "9" * 5000,
  "٣",
  "²",
  "nan",
  "1_0",
]
_ODD = [
  "",
  " ",
  "\n",
  "\t\x00",
  "\u2028",
  "\ud800",
  "\U0001f600",
  "<",
  ">",
  "A",
  "b",
  "B.",
  ",",
  "<image>",
]
_PIECES = [*_TAGS, *_TAGS, *_NUMBERS, *_ODD, ",", " " * 200]
_ROUNDING = 1e-6  # of float32
_PROMPTS, _GROUP = 4, 4


def _retrieval(rng: random.Random, pool: int) -> str:
  start, end = rng.randint(-1, pool + 1), rng.randint(0, pool + 1)
  return f"<think>look</think>\n<retrieve>{start},{max(start, end)}</retrieve>"


def _answer(rng: random.Random) -> str:
  answer = rng.choice(["A", "b", " B ", "3", "2.5", "red", "x" * 60])
  return f"<think>so</think><answer>{answer}</answer>"


def _edited(rng: random.Random, reply: str) -> str:
  for _ in range(rng.choice([0, 0, 1, 2, 5])):
    start = rng.randrange(len(reply) + 1)
    stop = min(len(reply), start + rng.choice([0, 0, 1, 4, 12]))
    reply = reply[:start] + rng.choice([*_PIECES, reply[start:stop] * 2]) + reply[stop:]
  return reply


def draw_reply(rng: random.Random, pool: int) -> str:
  """Draws one reply."""
  if rng.random() < 0.5:
    return "".join(rng.choice(_PIECES) for _ in range(rng.randrange(12)))
  return _edited(rng, _retrieval(rng, pool) if rng.random() < 0.7 else _answer(rng))


def _task(rng: random.Random) -> video_mtr.VideoMTR:
  variants: list[Literal["paper", "code"]] = ["paper", "code"]
  variant, count = rng.choice(variants), rng.randint(1, 5)
  return video_mtr.VideoMTR(
    instruction="Look or answer.",
    last_instruction="Answer.",
    turns=count,
    history_turns=count - rng.randint(0, 1),
    frame_budget=rng.randint(4, 80),
    on_invalid_action=rng.choice(["rethink", "explain"]),
    relevance=relevance.RelevanceRule(
      variant=variant,
      gate=rng.random() < 0.7,
      slope=rng.choice([0.0, 1.0, 9.0]),
    ),
    exploration=exploration.ExplorationRule(
      variant=variant,
      patience=rng.randint(1, 3),
      stages=rng.choice([(), exploration.ExplorationRule.stages]),
    ),
  )


def _example(rng: random.Random, number: int) -> records.Example:
  problem_type = rng.choice(records.PROBLEM_TYPES)
  choice = problem_type == "multiple choice"
  return records.Example(
    id=str(number),
    video="v.mp4",
    question="What?",
    options=("A. red", "B. green") if choice else (),
    answer="B" if choice else rng.choice(["3", "2.5", "red"]),
    problem_type=problem_type,
    shown=records.Span(start=0.0, end=100.0),
  )


@dataclasses.dataclass(kw_only=True)
class FuzzCounts:
  """Counts of all replies so far."""

  outcomes: Counter = dataclasses.field(default_factory=Counter)
  extremes: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  broken: Counter = dataclasses.field(default_factory=Counter)


def _play_episodes(
  task: video_mtr.VideoMTR,
  example: records.Example,
  pool: int,
  relevant: tuple[int, ...],
  rng: random.Random,
  found: FuzzCounts,
) -> environment.Episode:
  """Plays one episode to its end."""
  replies: list[str] = []
  while (seen := task.observe(example, pool, replies)) is not None:
    allowed_tokens = task.frame_budget // (4 if replies else 1 if task.turns == 1 else 2)
    found.broken["frame outside the pool"] += not all(0 <= frame < pool for frame in seen.frames)
    found.broken["more frames than the budget"] += len(seen.frames) > allowed_tokens
    found.broken["more turns than allowed"] += len(replies) >= task.turns
    replies.append(draw_reply(rng, pool))
    action = retrieval_actions.parse(replies[-1], pool, example.problem_type, example.options)
    found.broken["an answer that holds a tag"] += any(tag in action.answer for tag in _READ)
    found.outcomes[f"{action.kind} {action.problem}".strip()] += 1
  return environment.Episode(pool=pool, relevant=relevant, replies=tuple(replies))


def _check(task: video_mtr.VideoMTR, scores: records.Scores, found: FuzzCounts) -> None:
  bonus = task.exploration.highest
  ranges = {**task.relevance.ranges(), "exploration": (0.0, bonus)}
  ranges["total"] = (ranges["total"][0], ranges["total"][1] + bonus)
  for name, (low, high) in ranges.items():
    reward = scores.total if name == "total" else scores.rewards[name]
    least, most = float(reward.min()), float(reward.max())
    # Written so that nan is outside too.
    inside = low - _ROUNDING <= least and most <= high + _ROUNDING
    found.broken[f"{name} outside its range"] += not inside
    before = found.extremes.get(name, (least, most))
    found.extremes[name] = (min(before[0], least), max(before[1], most))


def _finish(
  task: video_mtr.VideoMTR,
  examples: Sequence[records.Example],
  episodes: Sequence[Sequence[environment.Episode]],
) -> records.Scores:
  """Scores replies as a training batch."""
  segment = np.zeros((len(episodes), len(episodes[0]), 1), np.int32)
  replies = environment.Replies(episodes=episodes, segment=segment)
  return task.finish_batch(examples, replies, task.score(examples, replies))[0]


def run(replies: int, seed: int = 0) -> dict[str, Any]:
  """Draws at least `replies` replies and returns the fields of the JSON line."""
  rng, found, begun = random.Random(seed), FuzzCounts(), time.perf_counter()
  while found.outcomes.total() < replies:
    task, examples, episodes = _task(rng), [], []
    for number in range(_PROMPTS):
      pool = rng.choice([1, 2, 7, 64, 128, 1000])
      relevant = tuple(rng.sample(range(-1, pool + 2), rng.randint(0, 3)))
      examples.append(_example(rng, number))
      episodes.append(
        [_play_episodes(task, examples[-1], pool, relevant, rng, found) for _ in range(_GROUP)]
      )
    _check(task, _finish(task, examples, episodes), found)
  return {
    "replies": found.outcomes.total(),
    "read_as": dict(found.outcomes),
    "extremes": {name: [round(x, 4) for x in ends] for name, ends in found.extremes.items()},
    "broken": {name: count for name, count in found.broken.items() if count},
    "seconds": round(time.perf_counter() - begun, 2),
  }


def main(argv: Sequence[str]) -> int:
  """Runs the replies and prints the JSON line."""
  values = flags.FlagValues()
  replies = flags.DEFINE_integer("replies", 100_000, "Replies to draw.", flag_values=values)
  seed = flags.DEFINE_integer("seed", 0, "Seed of the replies.", flag_values=values)
  values(argv)
  outcome = run(cast(int, replies.value), cast(int, seed.value))
  print(json.dumps(outcome))
  return 1 if outcome["broken"] else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
