"""Rematerialisation policies: what of a layer is kept for the backward pass.

none       keeps everything; as dots, where frozen matrices of many layers are widened one at a time
full       keeps only the layer's input: one more forward pass of every layer
attention  like full, but the attention kernel is not run again (splash; other backends rerun it)
dots       like attention, and keeps the results of matrix products
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, PyTree

from vr_jax import errors
from vr_jax.models.common import attention_splash, layers, stored_weights

REPEATING = ("full", "attention")  # policies that compute matrix products a second time
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
  """Scans `x` through stacked layers under the rematerialisation policy of this name.

  Under "none" a few layers are unrolled, so that residuals are not copied to a stack and back.
  Other policies always scan: XLA for CPU would merge the recomputation of unrolled layers with
  their forward pass, and keep the residuals.

  Matrices that are widened a layer at a time (`StoredMatrices`) are widened again for the backward
  pass of many layers: to keep everything would keep a wide copy of them all, so "none" is "dots"
  there.

  Raises InputError if there is no such policy.
  """
  leaves = jax.tree.leaves(inputs, is_leaf=stored_weights.is_stored)
  few = len(leaves[0]) <= layers.UNROLLED
  if policy == "none" and (few or not any(map(stored_weights.is_stored, leaves))):
    return stored_weights.scan(layer, x, inputs, unroll=few)
  policy = "dots" if policy == "none" else policy
  if policy not in POLICIES:
    raise errors.InputError(f"config.model.remat={policy}: one of none, {', '.join(POLICIES)}")
  return stored_weights.scan(layer, x, inputs, checkpoint=POLICIES[policy])
