"""`python -m tests.faults.witness …`: vr_jax.main for tiny runs whose every step can be compared.

Rewards of an untrained network are 0, so training would change nothing; here each reply also earns
what depends on its text and on the number of earlier replies, which is a state to resume. And each
process notes, in <workdir>/seen/<process>.jsonl, which examples every step has learned from.
"""

import collections
from collections.abc import Mapping, Sequence
import json
import os
from pathlib import Path
import sys
import time
from typing import Any
import zlib

import jax
import numpy as np

from vr_jax import main, records
from vr_jax.envs import environment, registry
from vr_jax.train import metrics, rollout_log, sft_loop

DIRECTORY = "seen"
# Seconds that this process takes longer to read a batch, as a host with a slow disk would.
SLOW = "VR_JAX_FAULT_SLOW_READS"
# Seconds by which the clock of this process jumps.
CLOCK = "VR_JAX_FAULT_CLOCK"
# The reward depends on the text alone, so that runs of other numbers of processes have the same.
TEXT_ALONE = "VR_JAX_FAULT_TEXT_ALONE"
_now = time.time
_steps: list[int] = []  # that were logged


class Luck:
  """Mixed into an environment: adds a reward that always differs, and the state that it needs."""

  _replies_before = 0

  def finish_batch(
    self,
    examples: Sequence[records.Example],
    replies: environment.Replies,
    scores: records.Scores,
    **options: Any,
  ) -> tuple[records.Scores, Mapping[str, float]]:
    """Adds `luck` to each segment that has a score."""
    scores, counts = super().finish_batch(examples, replies, scores, **options)  # pyright: ignore[reportAttributeAccessIssue] of the environment
    texts = [" ".join(each.replies) for group in replies.episodes for each in group]
    scored = np.asarray(scores.scored)
    before, step = (0, 0) if TEXT_ALONE in os.environ else (self._replies_before, 1)
    hashes = [
      [zlib.crc32(f"{before + step * i} {segment} {text}".encode()) % 1000]
      for i, text in enumerate(texts)
      for segment in range(scored.shape[-1])
    ]
    self._replies_before += len(texts)
    luck = (np.array(hashes) / 1000).astype(np.float32).reshape(scored.shape) * scored
    rewards = {**scores.rewards, "luck": luck}
    total = np.asarray(scores.total) + luck
    return records.Scores(rewards=rewards, scored=scores.scored, total=total), counts

  def state(self) -> Mapping[str, Any]:
    """The environment's own state, and the number of earlier replies."""
    own = super().state()  # pyright: ignore[reportAttributeAccessIssue] of the environment
    return {"own": own, "replies_before": self._replies_before}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes back to a state that `state` gave."""
    self._replies_before = state["replies_before"]
    super().set_state(state["own"])  # pyright: ignore[reportAttributeAccessIssue] of the environment


def note_examples(workdir: Path) -> None:
  """Makes both loops note the examples of each step when it is logged."""
  batches: collections.deque[list[str]] = collections.deque()  # of sft, read but not learned from
  prepare, write, roll = (
    sft_loop.prepare_batch,
    metrics.MetricsLog.write,
    rollout_log.RolloutLog.write,
  )

  def note(stage: str, step: int, examples: Sequence[str]) -> None:
    _steps.append(step)
    path = workdir / DIRECTORY / f"{jax.process_index()}.jsonl"
    path.parent.mkdir(exist_ok=True)
    line = {"stage": stage, "step": step, "examples": list(examples), "pid": os.getpid()}
    line["time"] = _now()
    with path.open("a") as file:
      file.write(json.dumps(line) + "\n")

  def prepared(context: Any, params: Any, batch: Any, *others: Any) -> sft_loop.SftBatch:
    time.sleep(float(os.environ.get(SLOW, "0")))
    batches.append([item.example.id for item in batch.items])
    return prepare(context, params, batch, *others)

  def written(self: metrics.MetricsLog, step: int, values: Mapping[str, float]) -> None:
    write(self, step, values)
    if batches:
      note("sft", step, batches.popleft())

  def rolled(self: rollout_log.RolloutLog, step: int, collected: Any, advantages: Any) -> None:
    roll(self, step, collected, advantages)
    note("rl", step, [item.example.id for item in collected.items])

  sft_loop.prepare_batch = prepared
  metrics.MetricsLog.write = written
  rollout_log.RolloutLog.write = rolled


def let_clock_jump(seconds: float) -> None:
  """Makes the clock (not the monotonic one) jump ahead, or back again, at every second step."""
  time.time = lambda: _now() + seconds * (next(reversed(_steps), 0) // 2 % 2)


if __name__ == "__main__":
  for name, cls in list(registry.ENVIRONMENTS.items()):
    registry.ENVIRONMENTS[name] = type(f"Lucky{cls.__name__}", (Luck, cls), {})
  if CLOCK in os.environ:
    let_clock_jump(float(os.environ[CLOCK]))
  place = next(word for word in sys.argv if word.startswith("--workdir="))
  note_examples(Path(place.removeprefix("--workdir=")))
  sys.exit(main.cli())
