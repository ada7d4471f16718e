"""The losses that SAM2 is trained with, over clips whose first frame is prompted.

Source: SAM 2, arXiv 2408.00714, appendix D.2: focal and dice loss on masks, L1 on predicted IoU,
cross entropy on object scores, 20 : 1 : 1 : 1. Of three answers to an ambiguous prompt, the mask of
the best one is trained, and the predicted IoU of all.
"""

import functools
from typing import NamedTuple, cast

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8
import optax

from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import (
  image_encoder,
  layers,
  mask_decoder,
  memory,
  parameters,
  prompt_encoder,
  tracker,
)

FOCAL, DICE, QUALITY, SCORE = 20.0, 1.0, 1.0, 1.0
FOCUS, BALANCE = 2.0, 0.25  # of the focal loss


class PromptedClip(NamedTuple):
  """Clips to train on, as many objects in each. `videos x objects` are in a row.

  points, labels: the prompt of each object on its clip's first frame, as in prompts.py.
  masks: true ones, at the model's resolution; empty where the object is out of sight.
  """

  pixels: UInt8[Array, "videos frames image_size image_size 3"]
  points: Float[Array, "objects points 2"]
  labels: Int[Array, "objects points"]
  masks: Bool[Array, "objects frames image_size image_size"]


class Losses(NamedTuple):
  """Means over objects and frames, without weights."""

  focal: Float[Array, ""]
  dice: Float[Array, ""]
  quality: Float[Array, ""]
  score: Float[Array, ""]

  @property
  def total(self) -> Float[Array, ""]:
    """The weighted sum."""
    return FOCAL * self.focal + DICE * self.dice + QUALITY * self.quality + SCORE * self.score


def track_clip(
  params: tracker.Params, config: config_lib.Sam2Config, clip: PromptedClip
) -> mask_decoder.Decoded:
  """All that the decoder says on each frame, as tracking would go. A leading axis of frames."""
  weights = parameters.Weights(params)
  constants = tracker.make_constants(params, config)
  videos, frames = clip.pixels.shape[:2]
  objects = len(clip.points)
  flat = image_encoder.normalise(clip.pixels.reshape(videos * frames, *clip.pixels.shape[2:]))
  found = image_encoder.encode(weights, config, flat, constants.patches)
  features = jax.tree.map(lambda x: x.reshape(videos, frames, *x.shape[1:]).swapaxes(0, 1), found)
  first, rest = jax.tree.map(lambda x: x[0], features), jax.tree.map(lambda x: x[1:], features)
  coarse = first.coarse.reshape(videos, -1, config.width) + weights["no_memory_embedding"]
  prompt = prompt_encoder.embed_points(weights, config, clip.points, clip.labels)
  clear = jnp.sum(prompt.valid, axis=1) > 2
  decoded = mask_decoder.decode(
    weights,
    config,
    jnp.repeat(coarse, objects // videos, axis=0),
    first,
    prompt,
    constants.positions,
  )
  if frames == 1:
    return jax.tree.map(lambda x: x[None], decoded)
  chosen = mask_decoder.choose(weights, decoded, clear)
  start = tracker.remember(params, config, first, chosen, binary=True)
  prompted = tracker.Prompted(*(x[:, None] for x in start))
  one = memory.passes(0, frames, fresh_reverse=False)[0]
  plan = memory.plan(one, [(0,)] * objects, frames, config, most_prompted=1)
  ring = tracker.empty_ring(config, objects, prompted.pointer.dtype)

  def step(ring, inputs):
    features, own = inputs
    bank = tracker.join_banks(prompted, ring)
    decoded = tracker.look(params, config, constants, features, bank, tracker.choice_of(own))
    chosen = mask_decoder.choose(weights, decoded, None)
    found = tracker.remember(params, config, features, chosen, binary=False)
    return tracker.write(ring, found, own), decoded

  _, later = lax.scan(step, ring, (rest, memory.slice_plan(plan, 1, frames)))
  return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), decoded, later)


def compute_losses(
  decoded: mask_decoder.Decoded,
  masks: Bool[Array, "objects frames image_size image_size"],
  clear: Bool[Array, "objects"],
) -> Losses:
  """The losses of `track_clip`'s result.

  clear: whether an object's prompt has one answer, which is the first mask of the first frame.
  """
  frames, objects, _, small, _ = decoded.masks.shape
  truth = masks.swapaxes(0, 1).reshape(frames * objects, *masks.shape[2:])
  size = 2 * small  # fine enough for the masks, and four times less work than the image's pixels
  truth = layers.resize(truth, size, size, smooth=True) >= 0.5
  logits = decoded.masks.reshape(frames * objects, 4, small, small)
  qualities = decoded.qualities.reshape(frames * objects, 4)
  single = jnp.zeros((frames, objects), bool).at[0].set(clear).reshape(-1)
  logits = layers.resize(logits, size, size)
  target = truth[:, None].astype(jnp.float32)
  focal, dice = focal_loss(logits, target), dice_loss(logits, target)
  there = masks.swapaxes(0, 1).any(axis=(2, 3)).reshape(-1)
  offered = jnp.where(single[:, None], jnp.arange(4) == 0, jnp.arange(4) > 0)
  cost = jnp.where(offered, FOCAL * focal + DICE * dice, jnp.inf)
  best = jnp.argmin(cost, axis=1)[:, None]

  def mean(x: Array, weights: Array) -> Array:
    return jnp.sum(x * weights) / jnp.maximum(jnp.sum(weights), 1)

  def of_best(x: Array) -> Array:
    return mean(jnp.take_along_axis(x, best, axis=1)[:, 0], there)

  overlap = iou(lax.stop_gradient(logits) > 0, truth[:, None])
  score = optax.sigmoid_binary_cross_entropy(decoded.score.reshape(-1), there.astype(jnp.float32))
  return Losses(
    focal=of_best(focal),
    dice=of_best(dice),
    quality=mean(jnp.abs(qualities - overlap), offered & there[:, None]),
    score=score.mean(),
  )


def focal_loss(
  logits: Float[Array, "*batch height width"], target: Float[Array, "*#batch height width"]
) -> Float[Array, "*batch"]:
  """Cross entropy of pixels, less of those that are right already; a mean over pixels.

  Source: arXiv 1708.02002, eq. 5.
  """
  each = optax.sigmoid_focal_loss(logits, target, alpha=BALANCE, gamma=FOCUS)
  return each.mean(axis=(-2, -1))


def dice_loss(
  logits: Float[Array, "*batch height width"], target: Float[Array, "*#batch height width"]
) -> Float[Array, "*batch"]:
  """One minus twice the overlap over the sum of areas, with 1 added to both."""
  soft = jax.nn.sigmoid(logits)
  overlap = jnp.sum(soft * target, axis=(-2, -1))
  areas = jnp.sum(soft, axis=(-2, -1)) + jnp.sum(target, axis=(-2, -1))
  return 1 - (2 * overlap + 1) / (areas + 1)


def iou(
  masks: Bool[Array, "*batch height width"], truth: Bool[Array, "*#batch height width"]
) -> Float[Array, "*batch"]:
  """Intersection over union; 0 where both are empty."""
  both = jnp.sum(masks & truth, axis=(-2, -1))
  return both / jnp.maximum(jnp.sum(masks | truth, axis=(-2, -1)), 1)


@functools.partial(jax.jit, static_argnames=("config", "optimizer"), donate_argnums=(0, 1))
def train_step(
  params: tracker.Params,
  state: optax.OptState,
  clip: PromptedClip,
  *,
  config: config_lib.Sam2Config,
  optimizer: optax.GradientTransformation,
) -> tuple[tracker.Params, optax.OptState, Losses, Float[Array, ""]]:
  """One update.

  Returns parameters, optimizer state, losses, and the mean IoU of the frames behind the prompted
  ones; that of the prompted ones where there are no others.
  """

  def loss(params):
    decoded = track_clip(params, config, clip)
    clear = jnp.sum(clip.labels >= 0, axis=1) > 1
    losses = compute_losses(decoded, clip.masks, clear)
    return losses.total, (losses, _mean_iou(decoded, clip.masks, clear))

  (_, (losses, overlap)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
  updates, state = optimizer.update(gradient, state, params)
  params = cast(tracker.Params, optax.apply_updates(params, updates))
  return params, state, losses, overlap


def _mean_iou(
  decoded: mask_decoder.Decoded,
  masks: Bool[Array, "objects frames image_size image_size"],
  clear: Bool[Array, "objects"],
) -> Float[Array, ""]:
  """Mean IoU of the masks that tracking gives, where the object shows; see `train_step`."""
  size, truth = masks.shape[-1], masks.swapaxes(0, 1)
  best = 1 + jnp.argmax(decoded.qualities[:, :, 1:], axis=2)
  best = best.at[0].set(jnp.where(clear, 0, best[0]))
  logits = jnp.take_along_axis(decoded.masks, best[:, :, None, None, None], axis=2)[:, :, 0]
  shown = (layers.resize(logits, size, size) > 0) & (decoded.score[..., None, None] > 0)
  there = truth.any(axis=(-2, -1))
  if len(truth) > 1:
    shown, truth, there = shown[1:], truth[1:], there[1:]
  return jnp.sum(iou(shown, truth) * there) / jnp.maximum(there.sum(), 1)
