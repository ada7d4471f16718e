"""Rewards of an episode that chooses a key frame of a video, then boxes an object in it.

With S(t) the area of the object's true box in frame t of those shown, 0 where it is not visible,
k the chosen frame, B the box given in it, and g(k) the true one:

    format    fraction of the checks that the replies pass
    temporal  1{S(k) > 0} (S(k) - min S) / (max S - min S)     if the key frame was read, else 0
    spatial   1{IoU(B, g(k)) > 0.5}                            if the box was read too, else 0

Source: ReVSeg, arXiv 2512.02835, section 3.3, eq. 7 and 8. `Reconstruction:` the paper counts
degrees of compliance as format and does not say which; here they are four checks of equal weight:
the tags and the JSON of each reply. It leaves open what a frame earns where all boxes are equally
large; here 1, if the object is visible in it.
"""

import dataclasses
import functools
import typing
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from vr_jax import schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxRule:
  """What an episode earns in its parts (docs/revseg.md)."""

  format: float = schema.field(1.0, "Weight of the format.", "[0, inf)")
  temporal: float = schema.field(1.0, "Weight of the choice of the key frame.", "[0, inf)")
  spatial: float = schema.field(1.0, "Weight of the box.", "[0, inf)")
  temporal_kind: Literal["soft", "visible", "none"] = schema.field(
    "soft",
    "What a key frame earns: more, the larger the object's box in it; 1 if the object is visible; "
    "or nothing.",
  )
  spatial_kind: Literal["hard", "soft"] = schema.field(
    "hard", "What a box earns: 1 above spatial_threshold, or its IoU."
  )
  spatial_threshold: float = schema.field(
    0.5, "IoU that a box has to exceed.", "[0, 1)", only_with="spatial_kind=hard"
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with leaves that are no arrays
class GroundedEpisodes:
  """A batch of episodes, padded to the same number of frames. Boxes are (left, top, right, bottom).

  checks: fraction of the four format checks that each reply passes; 0 for a reply that is missing.
  key_frame: index of the chosen frame among those shown; anything where none was read.
  has_key_frame: whether a key frame was read.
  box: in pixels of the video; anything where none was read.
  has_box: whether a box was read.
  truth: true box in each frame, in pixels of the video; NaN where the object is not visible.
  shown: which frames are shown; False for padding.
  """

  checks: Float[Array | np.ndarray, "prompts group turns"]
  key_frame: Int[Array | np.ndarray, "prompts group"]
  has_key_frame: Bool[Array | np.ndarray, "prompts group"]
  box: Float[Array | np.ndarray, "prompts group 4"]
  has_box: Bool[Array | np.ndarray, "prompts group"]
  truth: Float[Array | np.ndarray, "prompts frames 4"]
  shown: Bool[Array | np.ndarray, "prompts frames"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class BoxRewards:
  """The rewards of each episode before their weights, and what they are computed from.

  format: of each reply; their sum is that of the episode.
  visible: whether the object is visible in the key frame.
  iou: of the box with the true one of the key frame; 0 without one of the two.
  """

  format: Float[Array | np.ndarray, "prompts group turns"]
  temporal: Float[Array | np.ndarray, "prompts group"]
  spatial: Float[Array | np.ndarray, "prompts group"]
  visible: Bool[Array | np.ndarray, "prompts group"]
  iou: Float[Array | np.ndarray, "prompts group"]


@functools.partial(jax.jit, static_argnames="rule")
def rewards(episodes: GroundedEpisodes, rule: BoxRule) -> BoxRewards:
  """Computes the rewards of a batch of episodes."""
  areas = jnp.where(episodes.shown, area(episodes.truth), 0)
  chosen = jnp.clip(episodes.key_frame, 0, areas.shape[1] - 1)
  true_box = jnp.take_along_axis(episodes.truth, chosen[..., None], axis=1)
  visible = episodes.has_key_frame & (jnp.take_along_axis(areas, chosen, axis=1) > 0)
  iou = jnp.where(visible & episodes.has_box, box_iou(episodes.box, true_box), 0)
  soft = jnp.take_along_axis(frame_values(areas, episodes.shown), chosen, axis=1)
  temporal = {"soft": soft, "visible": jnp.ones_like(soft), "none": jnp.zeros_like(soft)}
  hard = (iou > rule.spatial_threshold).astype(jnp.float32)
  return BoxRewards(
    format=episodes.checks,
    temporal=jnp.where(visible, temporal[rule.temporal_kind], 0),
    spatial=hard if rule.spatial_kind == "hard" else iou,
    visible=visible,
    iou=iou,
  )


def area(boxes: Float[Array | np.ndarray, "*batch 4"]) -> Float[Array | np.ndarray, "*batch"]:
  """The areas of boxes; 0 where a box is NaN, or has no extent."""
  width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
  return jnp.where((width > 0) & (height > 0), width * height, 0)


def frame_values(
  areas: Float[Array | np.ndarray, "prompts frames"],
  shown: Bool[Array | np.ndarray, "prompts frames"],
) -> Float[Array | np.ndarray, "prompts frames"]:
  """The soft temporal reward of each frame: 0 for the smallest box, 1 for the largest.

  1 where all boxes are equally large, and 0 where the object is not visible. Padding gets 0.
  """
  least = jnp.where(shown, areas, jnp.inf).min(axis=1, keepdims=True)
  spread = areas.max(axis=1, keepdims=True, where=shown, initial=0) - least
  values = jnp.where(spread > 0, (areas - least) / jnp.where(spread > 0, spread, 1), 1)
  return jnp.where(shown & (areas > 0), values, 0)


def box_iou(
  one: Float[Array | np.ndarray, "*batch 4"], other: Float[Array | np.ndarray, "*batch 4"]
) -> Float[Array | np.ndarray, "*batch"]:
  """Intersection over union of pairs of boxes; 0 where one of them has no area or is NaN."""
  corners = (jnp.maximum(one[..., :2], other[..., :2]), jnp.minimum(one[..., 2:], other[..., 2:]))
  shared = area(jnp.concatenate(corners, axis=-1))
  union = area(one) + area(other) - shared
  return jnp.where(shared > 0, shared / jnp.where(union > 0, union, 1), 0)
