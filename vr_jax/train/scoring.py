"""Scores the replies of a batch on another thread, while the training loop goes on.

    replies -> texts (decode_replies) -> environment.score -> environment.finish_batch

Of processes that have the same rows only the first calls `score`, which may ask a judge; the others
get what it found. Decoding and `score` run on the thread as soon as the replies are sampled, so an
environment may be slow. `finish_batch` runs on the loop's thread when a step asks for its scores:
it uses collective operations, which all processes must start in the same order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
import json
from typing import Any

import jax
from jaxtyping import Int
import ml_collections
import numpy as np

from vr_jax import records
from vr_jax.envs import environment as environment_lib
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import processes
from vr_jax.rl import overlong
from vr_jax.rollout import decode_replies
from vr_jax.rollout import dialogue as dialogue_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredReplies:
  """The replies to this process's prompts: texts, scores, and the segment of each token.

  episodes: [prompts][group].
  reward_state: state of the environment after this batch, as JSON.
  counts: metrics of the environment.
  shuffled: replies to the frames in random order, [prompts][any number]; None if none were sampled.
  """

  episodes: Sequence[Sequence[environment_lib.Episode]]
  scores: records.Scores
  segment: Int[np.ndarray, "prompts group time"]
  reward_state: Mapping[str, Any]
  counts: Mapping[str, float]
  shuffled: Sequence[Sequence[str]] | None = None


class PendingScores:
  """The scores of a training batch, which another thread is computing."""

  def __init__(
    self,
    thread: futures.Executor,
    dialogue: dialogue_lib.Dialogue,
    rollout: records.Rollout,
    shuffled: records.Rollout | None,
    *,
    mesh: jax.sharding.Mesh,
    rl: ml_collections.ConfigDict,
  ):
    """Starts scoring. rl: the section `rl` of the config."""
    self._environment, self._mesh, self._rl = dialogue.environment, mesh, rl
    self._examples = [scene.example for scene in dialogue.scenes]
    self._scored = thread.submit(self._score, dialogue, rollout, shuffled)

  def _score(
    self,
    dialogue: dialogue_lib.Dialogue,
    rollout: records.Rollout,
    shuffled: records.Rollout | None,
  ) -> tuple[environment_lib.Replies, records.Scores | None, Mapping[str, float]]:
    replies, scores = decode_replies.decode_replies(dialogue, rollout, shuffled), None
    if mesh_lib.readers(self._mesh)[0] == jax.process_index():
      scores = self._environment.score(self._examples, replies)
    return replies, scores, self._environment.counts()

  def wait(self) -> ScoredReplies:
    """Waits for the scores.

    All processes must make the first call together, and in the order of steps.
    """
    return self._finished

  @functools.cached_property
  def _finished(self) -> ScoredReplies:
    scores = scored_once(lambda: self._scored.result()[1], self._mesh)
    replies, _, counts = self._scored.result()
    _, process_count = mesh_lib.process_shard(self._mesh)
    summed = functools.partial(processes.all_sum, copies=jax.process_count() // process_count)
    scores, counted = self._environment.finish_batch(
      self._examples, replies, scores, sum_processes=summed
    )
    scores = overlong.add_overlong_penalty(
      scores, replies.segment, self._rl, multi_turn=self._environment.turns > 1
    )
    return ScoredReplies(
      episodes=replies.episodes,
      scores=scores,
      segment=replies.segment,
      reward_state=self._environment.state(),
      counts={**counts, **counted},
      shuffled=replies.shuffled,
    )


def scored_once(score: Callable[[], Any], mesh: jax.sharding.Mesh) -> records.Scores:
  """The scores of this process's rows, from the first of the processes that have these rows.

  These call it on their main threads, in the same order.

  score: returns `Scores` of host arrays; called in the first process alone, so that a judge is
    asked once, and its verdicts are the same everywhere.
  """
  if mesh_lib.process_shard(mesh)[1] == jax.process_count():
    return score()
  text = processes.hand_over(lambda: _to_json(score()), mesh_lib.readers(mesh))
  found = json.loads(text)
  return records.Scores(
    rewards={name: _array(*parts) for name, parts in found["rewards"].items()},
    scored=_array(*found["scored"]),
    total=_array(*found["total"]),
  )


def _to_json(scores: records.Scores) -> str:
  def parts(array: Any) -> tuple[str, tuple[int, ...], list[Any]]:
    x = np.asarray(array)
    return x.dtype.str, x.shape, x.reshape(-1).tolist()

  rewards = {name: parts(x) for name, x in scores.rewards.items()}
  return json.dumps(
    {"rewards": rewards, "scored": parts(scores.scored), "total": parts(scores.total)}
  )


def _array(dtype: str, shape: Sequence[int], values: Sequence[float]) -> np.ndarray:
  return np.array(values, dtype).reshape(shape)


@dataclasses.dataclass(frozen=True)
class KnownScores:
  """Scores that are known already; has the interface of `PendingScores`."""

  judged: ScoredReplies

  def wait(self) -> ScoredReplies:
    """The scores."""
    return self.judged


@contextlib.contextmanager
def scoring_thread() -> Iterator[futures.ThreadPoolExecutor]:
  """Runs the thread that scores replies; if the loop ends early, waiting batches are dropped."""
  thread = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge")
  try:
    yield thread
  finally:
    thread.shutdown(wait=False, cancel_futures=True)
