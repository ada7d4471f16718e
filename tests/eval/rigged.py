"""A policy whose replies a test chooses."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax import records
from vr_jax.rollout import sampler
from vr_jax.train import batching


def rig(
  monkeypatch: pytest.MonkeyPatch, reply_to: Callable[..., Sequence[int]]
) -> list[list[batching.BatchItem]]:
  """Makes the sampler reply with the tokens `reply_to(item, call=, member=, group=)`.

  Returns the rows of each batch so far.

  call: number of the batch, from 1. member: of the `group` replies to one prompt.
  """
  read, seen = batching.BatchBuilder.prompt, []

  def remember(context, batch):
    seen.append(batch.padded_items)
    return read(context, batch)

  def sample(graphdef, params, prompt, allowed_tokens, key, *, decoding):
    tokens = np.zeros((len(seen[-1]), decoding.group, decoding.max_new_tokens), np.int32)
    kind = np.zeros_like(tokens)
    for row, group_index in np.ndindex(tokens.shape[:2]):
      ids = reply_to(seen[-1][row], call=len(seen), group_index=group_index, group=decoding.group)
      tokens[row, group_index, : len(ids)], kind[row, group_index, : len(ids)] = (
        ids,
        records.Kind.MODEL,
      )
    rollout = records.Rollout(
      tokens=jnp.asarray(tokens),
      log_probs=jnp.zeros(tokens.shape),
      kind=jnp.asarray(kind),
      turn=jnp.zeros_like(tokens),
    )
    return rollout, 0

  monkeypatch.setattr(batching.BatchBuilder, "prompt", remember)
  monkeypatch.setattr(sampler, "sample_counting", sample)
  return seen
