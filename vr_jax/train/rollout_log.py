"""Keeps what the policy wrote in training, to be read: rollouts/step-000001.jsonl, one file a step.

A line is a group, the replies to one prompt:

    {"step", "example", "video", "shown", "times", "problem_type", "question", "answer", "prompt",
     "replies": [{"text", "tokens", "rewards", "advantages"}, …]}

  shown: the example's span of the video, seconds.
  times: of the frames of the clip, seconds.
  prompt: as the model read it; of the placeholders of an image or video, one is kept.
  text: of the reply; with several turns, of the last one, and "turns" has all: {"text", "times"} of
    the frames shown before it.
  rewards: by name, and "total"; where replies have several segments or turns, "<segment>/<name>".
    null: not scored.
  advantages: by segment; the mean over its tokens where these differ (with a critic).

With several processes, each writes the groups that it scored: step-000001.0-of-2.jsonl. A run that
is resumed writes the files of its next steps again; after a kill they are the same, bit for bit.
"""

from collections.abc import Mapping, Sequence
import json
import math
from pathlib import Path
import re
from typing import Any
import unicodedata

import jax
from jaxtyping import Array, Int
import numpy as np

from vr_jax import atomic
from vr_jax.envs import environment as environment_lib
from vr_jax.models.common import prompts
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import processes
from vr_jax.train import (
  background,
  batching,
  console,
  experience,
  metrics,
  rollout_samples,
  run_context,
  scoring,
)

_NAME = re.compile(r"step-(\d+)(?:\.\d+-of-\d+)?\.jsonl")


class RolloutLog:
  """Writes the rollouts of the RL stage, and shows two replies of some steps.

  A thread does both, while the next step runs. If a file can't be written, the next call raises
  InputError.
  """

  def __init__(
    self,
    context: run_context.RunContext,
    workdir: Path,
    log: metrics.MetricsLog,
    *,
    first_step: int,
  ) -> None:
    """Removes the files of first_step and later ones, and of steps that are too old to be kept.

    All processes must call this together, before the first of them samples.

    log: the metrics of the stage, where texts and frames are shown as well.
    """
    self._context, self._log, self._config = context, log, context.config.log
    self._directory = workdir / "rollouts"
    self._shard = _shard(context.mesh)
    self._writer = background.BackgroundWriter("rollouts")
    if processes.is_first() and self._directory.is_dir():
      oldest = first_step - self._config.rollouts_kept * self._config.rollouts_every
      for path in self._directory.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and not oldest <= int(match[1]) < first_step:
          path.unlink()

  def write(self, step: int, collected: experience.Experience, advantages: Array | None) -> None:
    """Writes the rollouts of a step, and shows two of them, if it is time to.

    advantages: of the tokens, [prompts, group, time], as the update used them.
    """
    every, show_every = self._config.rollouts_every, self._config.completions_every
    kept = bool(every) and step % every == 0
    shown = bool(show_every) and (step == 1 or step % show_every == 0)
    if self._shard is not None and advantages is not None and (kept or shown):
      judged = collected.wait_for_scores()
      self._writer.submit(self._put, step, collected.items, judged, advantages, kept, shown)

  def wait(self) -> None:
    """Waits until all is written. Call it before saving a checkpoint of the same step."""
    self._writer.wait()

  def close(self) -> None:
    """Waits, then ends the thread."""
    self._writer.close()

  def _put(
    self,
    step: int,
    items: Sequence[batching.BatchItem],
    judged: scoring.ScoredReplies,
    advantages: Array,
    kept: bool,
    shown: bool,
  ) -> None:
    lines = group_lines(self._context, step, items, judged, advantages)
    path = self._directory / f"step-{step:06d}{self._shard}.jsonl"
    if kept:
      self._directory.mkdir(parents=True, exist_ok=True)
      atomic.write_bytes(path, (to_line(line) for line in lines))
      old = step - self._config.rollouts_kept * self._config.rollouts_every
      (self._directory / f"step-{old:06d}{self._shard}.jsonl").unlink(missing_ok=True)
    if shown and processes.is_first():
      pair = rollout_samples.choose(lines)
      where = str(path) if kept else "set config.log.rollouts_every to keep all"
      console.print_note(rollout_samples.terminal_text(pair, where))
      frames = self._frames(items[pair.row], judged.episodes[pair.row][pair.best])
      self._log.write_samples(step, pair, rollout_samples.strip(frames))

  def _frames(self, item: batching.BatchItem, episode: environment_lib.Episode) -> list[np.ndarray]:
    """The frames that each turn of an episode showed."""
    shown = _shown_frames(self._context.environment, item, episode)
    return [item.clip.read(indices) for indices in shown if indices]


def group_lines(
  context: run_context.RunContext,
  step: int,
  items: Sequence[batching.BatchItem],
  judged: scoring.ScoredReplies,
  advantages: Array,
) -> list[dict[str, Any]]:
  """The lines of a step's file, one for each item.

  advantages: [prompts, group, time], of all processes.
  """
  local = mesh_lib.local_rows(advantages)
  if len(local) > len(items):  # every process has all rows
    share = mesh_lib.process_shard(context.mesh)[0]
    local = local[share * len(items) : (share + 1) * len(items)]
  return [
    {
      "step": step,
      "example": item.example.id,
      "video": item.example.video,
      "shown": [item.example.shown.start, item.example.shown.end],
      "times": _rounded(item.clip.timestamps),
      "problem_type": item.example.problem_type,
      "question": "\n".join((item.example.question, *item.example.options)),
      "answer": item.example.answer,
      "prompt": _prompt_text(context, item.encoded),
      "replies": [
        _reply(context.environment, item, judged, (row, index), local[row, index])
        for index in range(local.shape[1])
      ],
      **_shuffled(judged, row),
    }
    for row, item in enumerate(items)
  ]


def _shuffled(judged: scoring.ScoredReplies, row: int) -> dict[str, list[dict[str, str]]]:
  """The replies to the prompt's frames in random order, where some were sampled."""
  if judged.shuffled is None:
    return {}
  return {"shuffled_replies": [{"text": text} for text in judged.shuffled[row]]}


def _reply(
  environment: environment_lib.Environment,
  item: batching.BatchItem,
  judged: scoring.ScoredReplies,
  place: tuple[int, int],
  advantages: np.ndarray,
) -> dict[str, Any]:
  """One reply. place: (row, index in the group). advantages: [time]."""
  episode = judged.episodes[place[0]][place[1]]
  segment = judged.segment[place]
  tokens = {name: (segment == number).sum() for number, name in enumerate(environment.segments)}
  reply: dict[str, Any] = {"text": episode.replies[-1], "tokens": int((segment >= 0).sum())}
  if environment.turns > 1:
    shown = _shown_frames(environment, item, episode)
    reply["turns"] = [
      {"text": text, "times": _rounded(item.clip.timestamps[list(indices)])}
      for text, indices in zip(episode.replies, shown, strict=True)
    ]
  rewards = {**judged.scores.rewards, "total": judged.scores.total}
  reply["rewards"] = {
    name if len(tokens) == 1 else f"{segment_name}/{name}": _finite(value[place][number])
    if judged.scores.scored[place][number]
    else None
    for number, segment_name in enumerate(tokens)
    for name, value in rewards.items()
    if tokens[segment_name] or judged.scores.scored[place][number]
  }
  used = segment[: len(advantages)]
  reply["advantages"] = {
    name: _finite(np.float32(advantages[used == number].mean(dtype=np.float64)))
    for number, name in enumerate(tokens)
    if tokens[name]
  }
  return reply


def _shown_frames(
  environment: environment_lib.Environment,
  item: batching.BatchItem,
  episode: environment_lib.Episode,
) -> list[list[int]]:
  """For each turn of an episode, the indices in the clip of the frames that it showed."""
  shown = []
  for number in range(len(episode.replies)):
    turn = environment.observe(item.example, len(item.clip), episode.replies[:number])
    assert turn is not None, "there is a reply to this turn"
    shown.append(list(range(len(item.clip))) if turn.shows_clip else list(turn.frames))
  return shown


def _prompt_text(context: run_context.RunContext, encoded: prompts.EncodedPrompt) -> str:
  """The prompt as text, special tokens included; equal media tokens in a row become one."""
  tokens: Int[np.ndarray, "prefix"] = np.asarray(encoded.tokens)
  again = np.isin(tokens, context.processor.media_tokens) & (np.roll(tokens, 1) == tokens)
  again[:1] = False
  return context.processor.tokenizer.decode(tokens[~again].tolist(), skip_special_tokens=False)


def _rounded(times: np.ndarray) -> list[float]:
  return [round(float(time), 3) for time in times]


def _finite(value: Any) -> float | None:
  return float(value) if math.isfinite(value) else None


def to_line(value: Mapping[str, Any]) -> bytes:
  """A JSON object as a line of UTF-8, in which letters of all scripts stand as they are.

  Characters that would steer a terminal, or that some readers take for the end of a line, are
  escaped as JSON allows.
  """
  text = json.dumps(value, ensure_ascii=False)
  if not text.isascii():
    text = "".join(json.dumps(c)[1:-1] if _is_unseen(c) else c for c in text)
  return text.replace("\x7f", "\\u007f").encode() + b"\n"


def _is_unseen(character: str) -> bool:
  """Whether a character is no letter, sign or space: of the categories C, Zl and Zp."""
  category = unicodedata.category(character)
  return category.startswith("C") or category in ("Zl", "Zp")


def _shard(mesh: jax.sharding.Mesh) -> str | None:
  """What this process adds to the names of its files; None if another writes the same rows."""
  share, count = mesh_lib.process_shard(mesh)
  if mesh_lib.readers(mesh)[0] != jax.process_index():
    return None
  return f".{share}-of-{count}" if count > 1 else ""
