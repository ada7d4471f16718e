"""Vision once: the tower runs alone, before all that reads the same prompts with the same tower.

The sampler, and whatever scores with the weights that sampled, take its features. So does everything else where the tower is
frozen; where it is trained, other weights run their own, and so does what is differentiated.
"""

import dataclasses
import functools

from flax import nnx
import jax
from jaxtyping import Array, PyTree

from vr_jax import records


def encode(graphdef: nnx.GraphDef, params: PyTree, prompt: records.Prompt) -> records.Prompt:
  """The prompts with the features of what they show in place of its patches; as they are where they have these already."""
  if prompt.media is not None:
    return prompt
  media = features(graphdef, params, prompt.vision)
  return dataclasses.replace(prompt, vision=None, media=media)


@functools.partial(jax.jit, static_argnames="graphdef")
def features(graphdef: nnx.GraphDef, params: PyTree, vision: PyTree) -> PyTree:
  """Those of the media tokens [prompts, media, …], in the model's dtype; of the parameters only the tower's are used.

  vision: what the tower reads, [prompts, frames, patches, …].
  Those of a prompt lie whole on the devices that hold it: its media tokens may stand anywhere in it.
  """
  model = nnx.merge(graphdef, params)

  def place(x: Array) -> Array:
    return model.layout.place(x, ("prompts", *[None] * (x.ndim - 1)))

  return jax.tree.map(place, model.encode_vision(vision))
