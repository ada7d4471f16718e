"""Experience: what the update of a step learns from.

batch -> features (encoder) -> replies (sampler) -> texts -> rewards (environment)
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree
import numpy as np

from vr_jax import records
from vr_jax.data import feature_cache
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import processes
from vr_jax.rl import credit
from vr_jax.rollout import encoder, sampler
from vr_jax.train import clock as clock_lib
from vr_jax.train import features, steps
from vr_jax.train import parts as parts_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experience:
  """Replies to a batch, and what they earned.

  encoded: prompts with the features of the tower that sampled; prompt: as a pass that is to have a tower of its own takes them
  (with patches; where the tower is frozen, `encoded`). lengths: of the replies of all processes, in tokens. prompt_tokens:
  of a prompt, the mean. sampled: tokens of all replies that were drawn for it, those of groups that were then replaced too;
  decoded: those that sampling them computed. scores: of this process's rows; None where they are not judged yet. values:
  what is to be logged.
  """

  items: list[parts_lib.Item]
  prompt: records.Prompt
  encoded: records.Prompt
  rollout: records.Rollout
  lengths: Int[np.ndarray, "prompts group"]
  prompt_tokens: float
  sampled: int
  decoded: int
  scores: records.Scores | None = None
  values: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Where experience comes from: batches of prompts, read in turn, and the replies that a policy gives to them."""

  parts: parts_lib.Parts
  batches: Iterator[parts_lib.Batch]
  cache: feature_cache.FeatureCache | None
  key: Key[Array, ""]

  def draw(self, params: PyTree, step: int, clock: clock_lib.Clock) -> Experience:
    """That of a step; not yet judged, but where groups without signal are to be replaced."""
    key = jax.random.fold_in(self.key, step)
    if not self.parts.config.rl.resampling:
      return self._draw(params, key, clock)
    return self._with_signal(params, key, clock)

  def judged(self, drawn: Experience) -> Experience:
    """With the scores of its replies."""
    if drawn.scores is not None:
      return drawn
    replies = self.parts.texts(drawn.rollout)
    examples = [item.example for item in drawn.items]
    return dataclasses.replace(drawn, scores=self.parts.environment.score(examples, replies))

  def _draw(self, params: PyTree, key: Key[Array, ""], clock: clock_lib.Clock) -> Experience:
    batch = next(self.batches)
    prompt, encoded, values = self._prompts(params, batch)
    clock.lap("data", exposed=True)
    rollout, decoded = sampler.sample_counting(
      self.parts.graph,
      params,
      encoded,
      self.parts.allowed,
      key,
      decoding=self.parts.decoding(),
    )
    lengths = steps.reply_lengths(rollout, self.parts.mesh)
    clock.lap("rollout")
    return Experience(
      items=batch.items,
      prompt=prompt,
      encoded=encoded,
      rollout=rollout,
      lengths=lengths,
      prompt_tokens=_prompt_tokens(batch),
      sampled=int(lengths.sum()),
      decoded=decoded,
      values=values,
    )

  def _prompts(
    self, params: PyTree, batch: parts_lib.Batch
  ) -> tuple[records.Prompt, records.Prompt, dict[str, float]]:
    prompt, values = features.prompt(self.parts, params, batch, self.cache)
    encoded = encoder.encode(self.parts.graph, params, prompt)
    return (encoded if self.parts.tower_frozen else prompt), encoded, values

  def _with_signal(self, params: PyTree, key: Key[Array, ""], clock: clock_lib.Clock) -> Experience:
    """Draws batches until enough groups carry signal, `rl.resampling` times more at most, and puts these together.

    Groups whose replies all earn the same are left out; where there are too few others, the first of them fill up.
    Source: dynamic sampling of DAPO, arXiv 2503.14476, section 3.2.
    """
    _, shares = mesh_lib.row_share(self.parts.mesh)
    wanted = self.parts.config.rl.prompts // shares
    drawn, chosen, spare = [], [], []
    for attempt in range(1 + self.parts.config.rl.resampling):
      of_attempt = jax.random.fold_in(key, attempt) if attempt else key
      made = self.judged(self._draw(params, of_attempt, clock))
      clock.lap("reward", exposed=True)
      earned = jnp.asarray(made.scores.total), jnp.asarray(made.scores.valid)
      signal = np.asarray(credit.has_signal(*earned)).any(axis=-1)
      for row, carries in enumerate(signal):
        (chosen if carries else spare).append((len(drawn), row))
      drawn.append(made)
      if processes.least(len(chosen)) >= wanted:
        break
    values = {
      "resampling/batches": float(len(drawn)),
      "resampling/signal_share": len(chosen) / (len(chosen) + len(spare)),
    }
    if len(drawn) == 1:
      return dataclasses.replace(drawn[0], values=drawn[0].values | values)
    return self._together(params, drawn, (chosen + spare)[:wanted], values)

  def _together(
    self,
    params: PyTree,
    drawn: Sequence[Experience],
    chosen: Sequence[tuple[int, int]],
    values: dict[str, float],
  ) -> Experience:
    """One batch of rows (number of the experience, row in it) of several."""
    batch = self.parts.batch([drawn[number].items[row] for number, row in chosen])
    prompt, encoded, seen = self._prompts(params, batch)
    rollouts = [jax.tree.map(mesh_lib.local_rows, made.rollout) for made in drawn]
    rollout = mesh_lib.put_batch(_rows(rollouts, chosen), self.parts.mesh)
    return Experience(
      items=batch.items,
      prompt=prompt,
      encoded=encoded,
      rollout=rollout,
      lengths=steps.reply_lengths(rollout, self.parts.mesh),
      prompt_tokens=_prompt_tokens(batch),
      sampled=sum(made.sampled for made in drawn),
      decoded=sum(made.decoded for made in drawn),
      scores=_rows([made.scores for made in drawn], chosen),
      values=seen | values,
    )


def _prompt_tokens(batch: parts_lib.Batch) -> float:
  """Tokens of a prompt, the mean over all processes."""
  lengths = (np.asarray(batch.prompt.kind) != records.Kind.PAD).sum(axis=1)
  return float(processes.gathered(lengths).mean())


def _rows(trees: Sequence[Any], chosen: Sequence[tuple[int, int]]) -> Any:
  """The chosen rows (number of the tree, row in it) of host arrays, one after the other."""
  return jax.tree.map(
    lambda *arrays: np.stack([np.asarray(arrays[number])[row] for number, row in chosen]), *trees
  )
