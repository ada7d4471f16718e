"""Times a whole GRPO step of the tiny recipe against TRL's trainer.

    python -m benchmarks.grpo_step

16 prompts, 8 replies of 72 tokens to each, float32, one update a batch, no KL, no stop token:
reading, vision, sampling, rewards from texts, advantages, gradients of all parameters, clipping and
AdamW. Two sides, on the same weights and the same clips:

- ours: a step of `train.rl_loop`, its update in the micro-batches of the recipe
- trl: `GRPOTrainer.train` on transformers' Qwen2.5-VL (sdpa attention), with all replies generated
  at once. It takes no video: its prompts have one image for each of our temporal patches, with the
  same number of tokens, from memory. Two tokens surround each image, where a video has two in all
  (`prompt_tokens`: of the longest prompt as each side pads it). It runs without micro-batches, and
  with as many as ours

A step of TRL is the time from the end of one step to the end of the next; ours run in between. The
reward is the same cheap function on both sides. All steps must have sampled the same number of
tokens, or the times are not used. Prints one JSON line: `over_trl` is the ratio to its faster form.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
import dataclasses
import json
from pathlib import Path
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks import measure
from vr_jax import main as vr_jax
from vr_jax import records
from vr_jax.envs import environment, moss_chatv
from vr_jax.train import experience, initialization, run_context
from vr_jax.train import learner as learner_lib
from vr_jax.train import step_timer as step_timer_lib

REPEATS = 5
VIDEOS = 40
GOALS = {"over_trl": 4.0}
SIDES = ("ours", "trl")
NO_STOP = (-1,)


def recipe(workdir: Path, **changes: Any) -> ml_collections.ConfigDict:
  """The tiny recipe with few videos; `changes` are config fields, with `__` for a dot."""
  fields = {"data__simulate__videos": VIDEOS, **changes}
  overrides = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
  argv = ["grpo_step", "--config=configs/moss_chatv.py:tiny", f"--workdir={workdir}", *overrides]
  return vr_jax.parse_flags(argv)[0]


def variety(reply: str) -> float:
  """The reward: the fraction of distinct characters in a reply."""
  return len(set(reply)) / max(len(reply), 1)


class Varied(moss_chatv.MossChatV):
  """The recipe's questions with `variety` as the reward."""

  def score(
    self, examples: Sequence[records.Example], replies: environment.Replies
  ) -> records.Scores:
    """`variety` of each reply."""
    total = np.array([[[variety(reply)] for reply in group] for group in replies.texts], np.float32)
    return records.Scores(
      rewards={"variety": total}, scored=np.ones(total.shape, bool), total=total
    )


def build(config: ml_collections.ConfigDict, workdir: Path) -> run_context.RunContext:
  """The recipe's run context on simulated data, with `variety` as reward and no stop token."""
  vr_jax.run(config, workdir, "data")
  context = run_context.make_run_context(config, workdir)
  return dataclasses.replace(
    context,
    environment=Varied(**config.env.to_dict()),
    allowed_tokens=context.allowed_tokens.at[jnp.array(context.stop_tokens)].set(False),
    stop_tokens=NO_STOP,
  )


class TrainerStep:
  """Our side: each call runs one step of the RL loop."""

  def __init__(self, context: run_context.RunContext):
    self.learner, self._number = (
      learner_lib.Learner.create(context, initialization.fresh_params(context)),
      0,
    )
    self._source = experience.Collector(
      context=context,
      batches=context.builder.read("train", context.config.rl.batch_size),
      cache=None,
      key=jax.random.key(context.config.seed),
      scoring_thread=futures.ThreadPoolExecutor(max_workers=1),
    )
    self.counts: list[int] = []  # tokens that each step sampled
    self.prompt_tokens = 0

  def __call__(self) -> dict[str, float]:
    """Runs one step and returns its metrics."""
    timer, self._number = step_timer_lib.StepTimer(), self._number + 1
    made = self._source.collect(self.learner.params, self._number, timer)
    values = self.learner.learn(made, timer, self._source.prefetch)
    self.counts.append(int(made.lengths.sum()))
    self.prompt_tokens = max(self.prompt_tokens, made.prompt.tokens.shape[1])
    return values


def check_counts(rl: ml_collections.ConfigDict, counts: dict[str, list[int]]) -> int:
  """Sampled tokens of a step. Raises ValueError where they differ between sides or steps."""
  wanted = rl.batch_size * rl.num_generations * rl.max_new_tokens
  for name, found in counts.items():
    if set(found) != {wanted}:
      raise ValueError(f"{name}: sampled {sorted(set(found))} tokens a step, not {wanted}")
  return wanted


def merge_seconds(found: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
  """Seconds of each side, from all rounds."""
  all_rounds: dict[str, list[float]] = {}
  for rounds in found:
    for name, seconds in rounds.items():
      all_rounds.setdefault(name, []).extend(seconds)
  return all_rounds


def compare(
  config: ml_collections.ConfigDict,
  workdir: Path,
  *,
  names: Sequence[str] = SIDES,
  repeats: int = REPEATS,
) -> dict[str, Any]:
  """All measurements in this process."""
  context = build(config, workdir)
  sides = ours = {"ours": TrainerStep(context)}
  paired = {}
  if "trl" in names:
    from benchmarks import trl_side

    for name, accumulated in (("trl", 1), ("trl_in_parts", context.config.rl.microbatches)):
      trl = trl_side.Trainer(context, workdir / name, variety, accumulated=accumulated)
      paired[name] = trl.in_turn(name, ours, repeats=repeats)
      sides = {**sides, name: trl}
  rounds = merge_seconds(paired.values()) or measure.in_turn(ours, repeats=repeats)
  tokens = check_counts(config.rl, {name: side.counts for name, side in sides.items()})
  seconds = measure.medians(rounds)
  ratios = [measure.ratio(found, name, "ours") for name, found in paired.items()]
  return {
    "seconds": seconds,
    "tokens_per_second": {name: round(tokens / taken, 1) for name, taken in seconds.items()},
    "ratio": {"over_trl": min(ratios)} if ratios else {},
    "sampled_tokens": tokens,
    "prompt_tokens": {name: side.prompt_tokens for name, side in sides.items()},
  }


def main() -> None:
  """Runs the comparison and prints its line."""
  about = measure.About("torch", "transformers", "trl")
  with tempfile.TemporaryDirectory() as directory:
    workdir = Path(directory) / "run"
    result = compare(recipe(workdir), workdir)
  print(json.dumps({"benchmark": "grpo_step", **result, "goal": GOALS, **about.fields()}))


if __name__ == "__main__":
  main()
