"""Drawing tokens under top-p: this sampler's search for the edge against a sort of the vocabulary.

Both sides draw from the same logits with the same random numbers. How many draws differ is part of
the result: sums in another order are rounded otherwise, so a token at the very edge can be kept by
one side alone.

  python -m benchmarks.top_p [--slots=128] [--vocab=152064] [--top_p=0.95] [--repeats=3]
"""

import argparse
import json

import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from benchmarks import measure
from vr_jax.rollout import inverse_cdf, likely_tokens


def main() -> None:
  """Prints a JSON line."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--slots", type=int, default=128)
  parser.add_argument("--vocab", type=int, default=152_064)
  parser.add_argument("--top_p", type=float, default=0.95)
  parser.add_argument("--repeats", type=int, default=3)
  given = parser.parse_args()
  about, rng = measure.About(), np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(0, 3, (given.slots, given.vocab)), jnp.float32)
  fraction = jnp.asarray(rng.random(given.slots), jnp.float32)

  @jax.jit
  def search(logits: Array, fraction: Array) -> Array:
    weights = jnp.exp(jax.nn.log_softmax(logits))
    kept = likely_tokens.keep_likely(weights, top_p=given.top_p)
    return inverse_cdf.sample(kept, fraction)

  @jax.jit
  def sort(logits: Array, fraction: Array) -> Array:
    log_probs = jax.nn.log_softmax(logits)
    ordered = jnp.sort(log_probs, axis=-1, descending=True)
    before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
    edge = jnp.where((before < given.top_p) | (before <= 0), ordered, jnp.inf)
    kept = jnp.where(log_probs >= edge.min(axis=-1, keepdims=True), jnp.exp(log_probs), 0)
    return inverse_cdf.sample(kept, fraction)

  @jax.jit
  def whole(logits: Array, fraction: Array) -> Array:
    return inverse_cdf.sample(jnp.exp(jax.nn.log_softmax(logits)), fraction)

  sides = {"search": search, "sort": sort, "whole": whole}
  drawn = {name: np.asarray(side(logits, fraction)) for name, side in sides.items()}
  rounds = measure.in_turn(
    {name: (lambda side=side: side(logits, fraction)) for name, side in sides.items()},
    repeats=given.repeats,
  )
  print(
    json.dumps(
      {
        "benchmark": "top_p",
        "slots": given.slots,
        "vocab": given.vocab,
        "top_p": given.top_p,
        "seconds": measure.medians(rounds),
        "sort_over_search": measure.ratio(rounds, "sort", "search"),
        "different_draws": int((drawn["search"] != drawn["sort"]).sum()),
        **about.fields(),
      }
    )
  )


if __name__ == "__main__":
  main()
