"""What of a layer is kept for the backward pass, and what is computed again: policies by name.

none       everything is kept
full       nothing but the layer's input: one more forward of every layer
attention  as full, but the attention kernel is not run again (splash; the others recompute it)
dots       as attention, and the results of matrix products are kept: what is cheap is computed again
"""

from collections.abc import Callable
from typing import Any

import jax

from vr_jax import errors
from vr_jax.models.qwen2_5_vl import attention_splash

_KERNEL = jax.checkpoint_policies.save_only_these_names(attention_splash.KEPT)
POLICIES = {
  "full": jax.checkpoint_policies.nothing_saveable,
  "attention": _KERNEL,
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _KERNEL
  ),
}


def wrap(layer: Callable[..., Any], name: str) -> Callable[..., Any]:
  """A layer under the policy of this name. Raises InputError where there is none."""
  if name == "none":
    return layer
  if name not in POLICIES:
    raise errors.InputError(f"config.model.remat={name}: one of none, {', '.join(POLICIES)}")
  return jax.checkpoint(layer, policy=POLICIES[name])
