"""Measures padding: the fraction of computed tokens without use, for replies with a long tail.

    python -m benchmarks.padding

The sampler runs on a network without layers, which ends each reply at a length drawn beforehand.
The update's shapes are chosen as the RL loop chooses them. Both count. A step has 16 prompts of
1,024 video tokens and some text, with 8 replies each, of lognormal length (median 120, sigma 0.8,
at most 1,024: a quarter of the replies has half of all tokens). Slot fractions, packing and buckets
are those of configs/moss_chatv.py:7b, which were chosen with other seeds. Prints one JSON object:

- the padding fraction over all batches, with and without these measures, and the number of program
  shapes
- the padding fraction of prompts alone, and the number of their buckets, in the order in which
  training reads them and in random order. Their clips are sampled at a rate (lognormal too, 4 to 56
  frames, median 20)
"""

import dataclasses
import json
from typing import Any, cast

from flax import nnx
import grain
import jax
import jax.numpy as jnp
import numpy as np

from vr_jax import recipe_config, records
from vr_jax.data import length_bucketing
from vr_jax.models import layout as layout_lib
from vr_jax.rollout import sampler
from vr_jax.train import experience, reply_shapes

BATCHES, PROMPTS, GROUP, BUDGET = 20, 16, 8, 1024
MEDIA, TEXT = 1024, 120  # tokens of a prompt; of its text the median
GOAL = 0.10
CLIPS, EPOCHS = 2000, 2  # of an epoch; read
PATCH = 128  # tokens of a temporal patch, which is two frames
SEED = 3
STOP = 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EmptyPrefix:
  """The prefix of the network without layers: first logits that do not end a reply."""

  hidden: jax.Array

  def placed(self, place):
    """The prefix on the one device that there is."""
    del place
    return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EmptyCache:
  """A cache without content."""

  def select_slots(self, layout, slots):
    """Returns the empty cache."""
    del layout, slots
    return self


class Scheduled(nnx.Module):
  """Reply `group_index` to prompt `prompt` has lengths[prompt, group_index] tokens, two or more."""

  def __init__(self, lengths):
    self.lengths = nnx.Param(jnp.asarray(lengths))
    self.layout, self.logit_chunk = layout_lib.OneDevice(), 2

  def prefill(self, prompt):
    """The prefix of a batch of prompts."""
    return EmptyPrefix(jax.nn.one_hot(jnp.zeros(len(prompt.tokens), int), 2))

  def decoding_params(self, *, int8_weights=False):
    """The parameters, unchanged."""
    del int8_weights
    return nnx.split(self)[1]

  def gather_for_slots(self, x, decode_slots):
    """For each slot, the row of its prompt."""
    return jnp.take(x, decode_slots.prompt, axis=0, mode="clip")

  def init_cache(self, prefix, slots, length):
    """An empty cache."""
    del prefix, slots, length
    return EmptyCache()

  def prepare_decode(self, prefix):
    """None: decoding needs nothing of the prompts."""
    del prefix

  def decode(self, constants, cache, tokens, index, decode_slots):
    """Logits that make the stop token certain at a reply's last token, and impossible before."""
    del constants, tokens
    ends = self.lengths[...][decode_slots.prompt, decode_slots.group_index] <= index + 2
    return jax.nn.one_hot(jnp.where(ends, STOP, 0), 2), cache

  def lm_head_weight(self):
    """Output weights that make one of the two tokens certain."""
    return jnp.array([[1e3, -1e3], [-1e3, 1e3]])

  def lm_head_bias(self):
    """None: there is no bias."""


def draw_batch(rng, *, rungs):
  """A random batch, with the decoded tokens that the sampler counts."""
  lengths = np.exp(rng.normal(np.log(120), 0.8, (PROMPTS, GROUP)))
  lengths = np.clip(np.ceil(lengths), 2, BUDGET).astype(np.int32)
  text = np.clip(np.exp(rng.normal(np.log(TEXT), 0.4, PROMPTS)), 20, 500).astype(int)
  graphdef, params = nnx.split(Scheduled(lengths))
  prompt = records.Prompt(
    tokens=np.zeros((PROMPTS, 1), np.int32),
    kind=np.full((PROMPTS, 1), int(records.Kind.TEXT), np.int32),
    positions=np.zeros((PROMPTS, 1, 1), np.int32),
    next_position=np.ones(PROMPTS, np.int32),
    media_index=np.full((PROMPTS, 1), -1, np.int32),
    vision=None,
  )
  decoding = sampler.Decoding(
    group=GROUP,
    max_new_tokens=BUDGET,
    temperature=1.0,
    top_p=1.0,
    stop_tokens=(STOP,),
    slot_fractions=rungs,
  )
  rollout, decoded = sampler.sample_counting(
    graphdef, params, prompt, jnp.ones(2, bool), jax.random.key(0), decoding=decoding
  )
  sampled = (np.asarray(rollout.kind) == records.Kind.MODEL).sum(axis=-1)
  assert (sampled == lengths).all()
  return rollout, lengths, decoded, MEDIA + text


def shares(seed, *, rungs, rl, buckets):
  """Padding fractions of decoding, updates and whole steps, and the number of update shapes."""
  rng, layout = np.random.default_rng(seed), layout_lib.OneDevice()
  totals, shapes = np.zeros(3), set()
  for _ in range(BATCHES):
    rollout, lengths, decoded, prompts = draw_batch(rng, rungs=rungs)
    fit = reply_shapes.choose_reply_shapes(rl, layout, lengths, budget=rl.max_new_tokens)
    prefix = min(size for size in buckets if size >= prompts.max())
    encoded = dataclasses.replace(_PROMPT, tokens=np.zeros((PROMPTS, prefix), np.int32))
    sampled = experience.Experience(
      items=[],
      prompt=encoded,
      prompt_with_features=encoded,
      media_index=np.zeros((PROMPTS, 0), np.int32),
      rollout=rollout,
      lengths=lengths,
      prompt_tokens=float(prompts.mean()),
      computed_tokens=decoded + encoded.tokens.size,
      useful_tokens=float(lengths.sum() + prompts.sum()),
      scores_future=cast(Any, None),  # nothing waits for scores
      iterator_state={},
    )
    updated = (fit.packed_length or lengths.size * fit.time // rl.microbatches) * rl.microbatches
    totals += [
      1 - lengths.sum() / decoded,
      1 - lengths.sum() / updated,
      reply_shapes.padding_fraction(
        rl, layout, sampled, fit, scorers=(rl.kl_weight > 0) + (rl.num_iterations > 1)
      ),
    ]
    shapes.add((prefix, fit))
  decode, update, whole = (totals / BATCHES).round(3).tolist()
  return {"decode": decode, "update": update, "whole_step": whole, "shapes": len(shapes)}


def prompt_shares(seed, buckets, *, by_length):
  """The padding fraction of prompts in batches of `PROMPTS`, and the number of their buckets."""
  rng = np.random.default_rng(seed)
  patches = np.clip(np.exp(rng.normal(np.log(10), 0.8, CLIPS)), 2, 28).astype(int)
  text = np.clip(np.exp(rng.normal(np.log(TEXT), 0.4, CLIPS)), 20, 500).astype(int)
  stream = grain.MapDataset.range(CLIPS).shuffle(seed=seed).repeat(EPOCHS)
  if by_length:
    stream = length_bucketing.LengthBucketedOrder(
      stream, epoch=CLIPS, batch=PROMPTS, length=lambda clip: int(patches[clip]), seed=seed
    )
  read = np.array([stream[index] for index in range(CLIPS * EPOCHS)]).reshape(-1, PROMPTS)
  lengths = (PATCH * patches + text)[read]
  padded = [min(size for size in buckets if size >= longest) for longest in lengths.max(axis=1)]
  return {
    "padding": round(1 - float(lengths.sum()) / (PROMPTS * sum(padded)), 3),
    "buckets": len(set(padded)),
  }


_PROMPT = records.Prompt(
  **dict.fromkeys(
    ("tokens", "kind", "positions", "next_position", "media_index", "vision"), cast(Any, None)
  )
)


def main() -> None:
  """Prints the JSON object."""
  config = recipe_config.load("moss_chatv:7b")
  config.rl.max_new_tokens = BUDGET
  ours = shares(
    SEED, rungs=config.rl.decode_slot_fractions, rl=config.rl, buckets=config.model.prefix_buckets
  )
  config.rl.token_bucket_ratio = 0.0
  coarse = (1024, 2048, 4096)
  without = shares(SEED, rungs=(), rl=config.rl, buckets=coarse)
  prompts = {
    name: prompt_shares(SEED, config.model.prefix_buckets, by_length=by_length)
    for name, by_length in (("ours", True), ("random", False))
  }
  found = {"ours": ours, "padded": without, "prompts": prompts, "goal_whole_step": GOAL}
  print(json.dumps(found, indent=1))


if __name__ == "__main__":
  main()
