"""What of a layer is kept for the backward pass, and what is computed again: policies by name.

none       everything is kept
full       nothing but the layer's input: one more forward of every layer
attention  as full, but the attention kernel is not run again (splash; the others recompute it)
dots       as attention, and the results of matrix products are kept: what is cheap is computed again
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, PyTree

from vr_jax import errors
from vr_jax.models.common import attention_splash, layers

_KERNEL = jax.checkpoint_policies.save_only_these_names(attention_splash.KEPT)
POLICIES = {
  "full": jax.checkpoint_policies.nothing_saveable,
  "attention": _KERNEL,
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _KERNEL
  ),
}


def scan(
  layer: Callable[[Array, Any], tuple[Array, Any]],
  x: Float[Array, "..."],
  inputs: PyTree,
  *,
  policy: str,
) -> tuple[Float[Array, "..."], Any]:
  """`lax.scan` of `x` through stacked layers, of which the policy of this name says what is kept.

  Few are unrolled where everything is: what the backward pass reads of each is then not copied to a stack and back. Where a
  part is computed again they are not, since the compiler for CPUs would find that it is there already, and keep it.
  Raises InputError where there is no such policy.
  """
  if policy == "none":
    depth = jax.tree.leaves(inputs)[0].shape[0]
    return jax.lax.scan(layer, x, inputs, unroll=depth <= layers.UNROLLED)
  if policy not in POLICIES:
    raise errors.InputError(f"config.model.remat={policy}: one of none, {', '.join(POLICIES)}")
  return jax.lax.scan(jax.checkpoint(layer, policy=POLICIES[policy]), x, inputs)
