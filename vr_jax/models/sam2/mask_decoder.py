"""From the features of a frame and a prompt to masks, their quality, and whether the object shows.

Source: Segment Anything, arXiv 2304.02643, appendix A; SAM 2, arXiv 2408.00714, appendix C.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models.common import layers as common
from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import image_encoder, layers, prompt_encoder

EPSILON = 1e-5
STABLE, MARGIN = 0.98, 0.05  # of a mask's area between two thresholds, in logits
ABSENT = -1024.0  # logits of the mask of an object out of sight


class Decoded(NamedTuple):
  """All that the decoder says of some objects on a frame.

  masks: logits; the first is the answer to a clear prompt, the others to an ambiguous one.
  qualities: predicted IoU of each mask, 0 to 1.
  tokens: of each mask.
  score: logit that the object is in sight.
  """

  masks: Float[Array, "objects 4 mask_side mask_side"]
  qualities: Float[Array, "objects 4"]
  tokens: Float[Array, "objects 4 width"]
  score: Float[Array, "objects"]


class Chosen(NamedTuple):
  """One mask for each object. logits: ABSENT everywhere if it is out of sight. pointer: of it."""

  logits: Float[Array, "objects mask_side mask_side"]
  pointer: Float[Array, "objects width"]
  score: Float[Array, "objects"]


def decode(
  weights: layers.Weights,
  config: config_lib.Sam2Config,
  coarse: Float[Array, "objects positions width"],
  features: image_encoder.Features,
  prompt: prompt_encoder.Embedded,
  position: Float[Array, "positions width"],
) -> Decoded:
  """Predicts four masks for each object.

  coarse: features that know the memories, or that there are none.
  features: of the objects' frames; the first axis is that of videos, whose objects are in a row.
  position: of `prompt_encoder.image_positions`.
  """
  part = weights / "mask_decoder"
  own = [part[f"{name}.weight"] for name in ("obj_score_token", "iou_token", "mask_tokens")]
  fixed = jnp.concatenate(own)
  objects = len(coarse)
  first = jnp.broadcast_to(fixed, (objects, *fixed.shape)).astype(prompt.tokens.dtype)
  tokens = jnp.concatenate([first, prompt.tokens], axis=1)
  valid = jnp.concatenate([jnp.ones(first.shape[:2], bool), prompt.valid], axis=1)
  image = (coarse + prompt.dense).astype(fixed.dtype)
  tokens, image = _transform(part / "transformer", config, tokens, valid, image, position)
  score = layers.mlp(part / "pred_obj_score_head", tokens[:, 0], between=1)[:, 0]
  qualities = jax.nn.sigmoid(layers.mlp(part / "iou_prediction_head", tokens[:, 1], between=1))
  kernels = [
    layers.mlp(part / "output_hypernetworks_mlps" / mask, tokens[:, 2 + mask], between=1)
    for mask in range(4)
  ]
  fine = _upscale(part, config, image, features)
  masks = jnp.einsum(
    "omc,ohwc->omhw",
    jnp.stack(kernels, axis=1),
    fine,
    precision=common.precision(fine.dtype),
    preferred_element_type=jnp.float32,
  )
  return Decoded(
    masks=masks,
    qualities=qualities.astype(jnp.float32),
    tokens=tokens[:, 2:6],
    score=score.astype(jnp.float32),
  )


def _upscale(
  part: layers.Weights,
  config: config_lib.Sam2Config,
  image: Float[Array, "objects positions width"],
  features: image_encoder.Features,
) -> layers.Image:
  """Coarse features to the resolution of masks, with the finer ones of the frame added."""
  objects, side = len(image), config.side

  def repeat(x: Array) -> Array:
    return jnp.repeat(x, objects // len(x), axis=0)

  x = layers.upscale(part / "upscale_conv1", image.reshape(objects, side, side, -1))
  x = layers.layer_norm(part / "upscale_layer_norm", x + repeat(features.middle), 1e-6)
  x = layers.upscale(part / "upscale_conv2", layers.gelu(x))
  return layers.gelu(x + repeat(features.fine))


def _transform(
  weights: layers.Weights,
  config: config_lib.Sam2Config,
  tokens: Float[Array, "objects tokens width"],
  valid: Bool[Array, "objects tokens"],
  image: Float[Array, "objects positions width"],
  position: Float[Array, "positions width"],
) -> tuple[Float[Array, "objects tokens width"], Float[Array, "objects positions width"]]:
  """Two layers in which tokens and image attend to each other, and one look of the tokens."""
  heads, place = config.decoder_heads, position.astype(image.dtype)
  x = tokens

  def attend(part, query, key, value, keys=None):
    def project(name, x):
      projected = layers.linear(part / name, x)
      return projected.reshape(*x.shape[:2], heads, -1)

    mixed = layers.attend(
      project("q_proj", query), project("k_proj", key), project("v_proj", value), keys
    )
    return layers.linear(part / "o_proj", mixed.reshape(*query.shape[:2], -1))

  def norm(part, name, x):
    return layers.layer_norm(part / name, x, EPSILON)

  for layer in range(2):
    part = weights / "layers" / layer
    query = x + tokens if layer else x
    mixed = attend(part / "self_attn", query, query, x, valid)
    x = norm(part, "layer_norm1", x + mixed if layer else mixed)
    mixed = attend(part / "cross_attn_token_to_image", x + tokens, image + place, image)
    x = norm(part, "layer_norm2", x + mixed)
    x = norm(part, "layer_norm3", x + layers.mlp(part / "mlp", x))
    mixed = attend(part / "cross_attn_image_to_token", image + place, x + tokens, x, valid)
    image = norm(part, "layer_norm4", image + mixed)
  mixed = attend(weights / "final_attn_token_to_image", x + tokens, image + place, image)
  return norm(weights, "layer_norm_final_attn", x + mixed), image


def choose(
  weights: layers.Weights, decoded: Decoded, clear: Bool[Array, "objects"] | None
) -> Chosen:
  """Chooses a mask and its pointer.

  clear: prompts of at least two points, or a box, have one answer; None: no object has such.
  """
  best = 1 + jnp.argmax(decoded.qualities[:, 1:], axis=1)
  if clear is None:
    mask = pointer = best
  else:
    mask = jnp.where(clear & _is_stable(decoded.masks[:, 0]), 0, best)
    # Where the answer is not stable, the reference takes another mask, but not its pointer.
    pointer = jnp.where(clear, 0, best)
  there = decoded.score > 0
  logits = jnp.where(there[:, None, None], _pick(decoded.masks, mask), ABSENT)
  return Chosen(
    logits=logits,
    pointer=point(weights, _pick(decoded.tokens, pointer), there),
    score=decoded.score,
  )


def point(
  weights: layers.Weights, token: Float[Array, "objects width"], there: Bool[Array, "objects"]
) -> Float[Array, "objects width"]:
  """The pointer of an object whose mask has this token, or the pointer to none."""
  pointer = layers.mlp(weights / "object_pointer_proj", token, between=1)
  return jnp.where(there[:, None], pointer, weights["no_object_pointer"].astype(pointer.dtype))


def _pick(x: Float[Array, "objects 4 *rest"], index: Int[Array, "objects"]):
  return jnp.take_along_axis(x, index.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)[:, 0]


def _is_stable(logits: Float[Array, "objects height width"]) -> Bool[Array, "objects"]:
  """Whether a mask hardly changes with the threshold."""
  inner = jnp.sum(logits > MARGIN, axis=(1, 2))
  outer = jnp.sum(logits > -MARGIN, axis=(1, 2))
  return jnp.where(outer > 0, inner / jnp.maximum(outer, 1), 1.0) >= STABLE
