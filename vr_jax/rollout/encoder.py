"""Runs the vision tower once for all passes over the same prompts with the same tower.

The sampler, and every pass that scores with the sampler's weights, use these features. If the tower
is frozen, all other passes use them too. If it is trained, passes with other weights, and the pass
that is differentiated, run the tower themselves.
"""

import dataclasses
import functools

from flax import nnx
import jax
from jaxtyping import Array, PyTree

from vr_jax import records
from vr_jax.parallel import same_programs


def encode(graphdef: nnx.GraphDef, params: PyTree, prompt: records.Prompt) -> records.Prompt:
  """Replaces the prompts' vision inputs by features, unless they have features already."""
  if prompt.media is not None:
    return prompt
  media = features(graphdef, params, prompt.vision)
  return dataclasses.replace(prompt, vision=None, media=media)


@same_programs.compared
@functools.partial(jax.jit, static_argnames="graphdef")
def features(graphdef: nnx.GraphDef, params: PyTree, vision: PyTree) -> PyTree:
  """The features of the media tokens, [prompts, media, …], in the model's dtype.

  Every device that holds a prompt gets all features of it, because a prompt's media tokens may
  stand anywhere in it.

  params: only those of the vision tower are used.
  vision: inputs of the tower, [prompts, frames, patches, …].
  """
  model = nnx.merge(graphdef, params)

  def place(x: Array) -> Array:
    return model.layout.place(x, ("prompts", *[None] * (x.ndim - 1)))

  return jax.tree.map(place, model.encode_vision(vision))
