"""Encoded prompts, and their padding and stacking into the batches that a model reads.

The vision inputs of a frame are a pytree of arrays that a family defines; this module only knows
that their leading axis is patches (`VisionShapes`). Features are a pytree as well, whose leading
axis is media tokens.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
from jaxtyping import Bool, Int, PyTree, Shaped
import numpy as np

from vr_jax import errors, records
from vr_jax.models.common import conversation


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionShapes:
  """The shapes of a family's vision inputs and features.

  A frame (temporal patch) is what the vision tower reads at a time: an image, or `images_per_frame`
  frames of a video. It has patches, and becomes media tokens.

  patch: one patch of padding, a pytree of arrays with the shape and dtype of every patch.
  feature: shapes and dtypes of the features of one media token, a pytree of `jax.ShapeDtypeStruct`.
  patches_per_token: patches that become one media token.
  images_per_frame: 0: all images of a video.
  pixels_per_patch: height x width of a patch.
  tokens_per_frame: media tokens of every frame, where their number does not depend on its patches.
  patches_per_image: where all images have one size.
  """

  patch: PyTree
  feature: PyTree
  patches_per_token: int = 1
  images_per_frame: int = 1
  pixels_per_patch: int = 1
  tokens_per_frame: int = 0
  patches_per_image: int = 0

  @property
  def patch_unit(self) -> tuple[int, str]:
    """A number that divides the patches of every frame, and what has so many."""
    if self.patches_per_image:
      return self.patches_per_image, "an image"
    return self.patches_per_token, "a media token"

  @property
  def dtype(self) -> np.dtype:
    """Dtype of the features."""
    return jax.tree.leaves(self.feature)[0].dtype

  def media_tokens(self, patches: int) -> int:
    """Number of media tokens of a frame with this many patches."""
    return self.tokens_per_frame or patches // self.patches_per_token

  def count_frames(self, images: int) -> int:
    """Number of frames of a video of this many images."""
    return -(-images // self.images_per_frame) if self.images_per_frame else min(images, 1)

  def most_patches(self, images: int, pixels: int) -> int:
    """The most patches of a frame of a video of this many images of at most `pixels` pixels."""
    if self.patches_per_image:
      return (self.images_per_frame or images) * self.patches_per_image
    return pixels // self.pixels_per_patch

  def abstract_vision(self, rows: int, frames: int, patches: int) -> PyTree:
    """Shapes of the vision inputs of `rows` prompts: [rows, frames, patches, …]."""
    shape = (rows, frames, patches)
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((*shape, *np.shape(x)), np.asarray(x).dtype), self.patch
    )

  def abstract_features(self, rows: int, frames: int, patches: int) -> PyTree:
    """Shapes of the features of such vision inputs: [rows, media, …]."""
    return self.features(jax.ShapeDtypeStruct, rows, frames * self.media_tokens(patches))

  def features(self, make: Any, *leading: int) -> PyTree:
    """Calls `make(shape, dtype)`, say `np.zeros`, for each feature array with leading axes."""
    return jax.tree.map(lambda x: make((*leading, *x.shape), x.dtype), self.feature)

  @property
  def feature_width(self) -> int:
    """How many numbers the features of one media token have in all."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(self.feature))

  def pack_features(self, features: PyTree) -> Shaped[np.ndarray, "media width"]:
    """Concatenates features [media, …] into one array with a row for each token."""
    rows = [x.reshape(len(x), -1) for x in jax.tree.leaves(features)]
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)

  def unpack_features(self, rows: Shaped[np.ndarray, "media width"]) -> PyTree:
    """Inverts `pack_features`."""
    leaves, structure = jax.tree.flatten(self.feature)
    ends = np.cumsum([math.prod(x.shape) for x in leaves])
    parts = np.split(rows, ends[:-1], axis=1)
    return jax.tree.unflatten(
      structure, [x.reshape(len(rows), *leaf.shape) for x, leaf in zip(parts, leaves, strict=True)]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """Patches of one image or video: frames (temporal patches) and their rows and columns.

  times: of each frame, seconds, if the prompt's text tells them.
  """

  kind: records.Kind  # IMAGE or VIDEO
  frames: int
  height: int
  width: int
  seconds: float = 1.0  # between two frames of a video
  times: tuple[float, ...] = ()

  @property
  def patches(self) -> int:
    """Patches of each frame."""
    return self.height * self.width


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaRun:
  """Media tokens of one image or video that stand together. text: tells what they are, before them.

  A chat template opens and closes each run with at most one token.
  """

  tokens: int
  text: str = ""

  @property
  def most_tokens(self) -> int:
    """An upper bound of the tokens of the run, its text, and what opens and closes it."""
    return self.tokens + conversation.most_tokens(self.text) + 2


def check_media_tokens(
  kind: Int[np.ndarray, "prefix"],
  grids: Sequence[Grid],
  runs: Sequence[Sequence[MediaRun]],
  name: str,
) -> None:
  """Raises InputError if the media tokens are not the runs of each grid."""
  places = np.flatnonzero(kind != records.Kind.TEXT)
  numbered = [(number, run.tokens) for number, each in enumerate(runs) for run in each]
  total = sum(tokens for _, tokens in numbered)
  if len(places) != total:
    raise errors.InputError(
      f"{name}: {len(places)} media tokens for {total} media features; they must be as many"
    )
  for number, tokens in numbered:
    run, places = places[:tokens], places[tokens:]
    if np.any(kind[run] != grids[number].kind) or run[-1] - run[0] >= len(run):
      raise errors.InputError(
        f"{name}: medium {number} is a run of {len(run)} {grids[number].kind.name} tokens, "
        "but its tokens are not"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemporalPatch:
  """One temporal patch. vision: arrays [patches, …]; None if its features are given."""

  vision: PyTree | None
  patches: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
  """One encoded conversation, not yet padded. Its media tokens are those of `frames`, in order.

  loss_mask: tokens that the assistant wrote, with the ends of its turns, for supervised training.
  features: of all media tokens, a pytree of arrays [media, …], if the vision tower has already run;
    the frames have no vision inputs then.
  """

  name: str
  tokens: Int[np.ndarray, "prefix"]
  kind: Int[np.ndarray, "prefix"]
  positions: Int[np.ndarray, "prefix axes"]
  next_position: int
  loss_mask: Bool[np.ndarray, "prefix"]
  grids: tuple[Grid, ...]
  frames: tuple[TemporalPatch, ...]
  features: PyTree | None = None

  @property
  def patches(self) -> int:
    """Patches of the largest frame; 0 without frames."""
    return max((frame.patches for frame in self.frames), default=0)


def nothing(axes: int) -> EncodedPrompt:
  """An encoded conversation without tokens. axes: of positions."""
  return EncodedPrompt(
    name="nothing",
    tokens=np.zeros(0, np.int32),
    kind=np.zeros(0, np.int32),
    positions=np.zeros((0, axes), np.int32),
    next_position=0,
    loss_mask=np.zeros(0, bool),
    grids=(),
    frames=(),
  )


def join(parts: Sequence[EncodedPrompt], *, name: str) -> EncodedPrompt:
  """Joins parts without features into one; positions of each part follow the one before."""
  starts = np.cumsum([0, *(part.next_position for part in parts)])
  places = [part.positions + start for part, start in zip(parts, starts, strict=False)]
  return EncodedPrompt(
    name=name,
    tokens=np.concatenate([part.tokens for part in parts]),
    kind=np.concatenate([part.kind for part in parts]),
    positions=np.concatenate(places).astype(np.int32),
    next_position=int(starts[-1]),
    loss_mask=np.concatenate([part.loss_mask for part in parts]),
    grids=tuple(grid for part in parts for grid in part.grids),
    frames=tuple(frame for part in parts for frame in part.frames),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSizes:
  """Sizes to which prompts are padded: tokens, frames, and patches of a frame."""

  prefix: int
  frames: int
  patches: int


def smallest_bucket(sizes: Sequence[tuple[str, int]], buckets: Sequence[int], what: str) -> int:
  """Finds the smallest bucket that holds all `sizes` (name, size).

  Raises InputError naming the largest one if no bucket holds it.
  """
  name, size = max(sizes, key=lambda entry: entry[1])
  fitting = [bucket for bucket in buckets if bucket >= size]
  if not fitting:
    raise errors.InputError(
      f"{name}: {size} {what}, but the largest bucket has {max(buckets)}; "
      "shorten it or add a bucket"
    )
  return min(fitting)


def pad(
  encoded: Sequence[EncodedPrompt], shapes: VisionShapes, sizes: PromptSizes, *, pad_token: int
) -> records.Prompt:
  """Stacks prompts, padded to these sizes.

  The batch has vision inputs, or, if any prompt has features, features: zeros for the others.
  """
  count = len(encoded)
  tokens = np.full((count, sizes.prefix), pad_token, np.int32)
  kind = np.full((count, sizes.prefix), records.Kind.PAD, np.int32)
  axes = encoded[0].positions.shape[1]
  places = np.zeros((count, sizes.prefix, axes), np.int32)
  media_index = np.full((count, sizes.prefix), -1, np.int32)
  for i, one in enumerate(encoded):
    length = len(one.tokens)
    tokens[i, :length] = one.tokens
    kind[i, :length] = one.kind
    places[i, :length] = one.positions
    media_index[i, :length] = _media_index(one, sizes.patches, shapes)
  known = any(one.features is not None for one in encoded)
  return records.Prompt(
    tokens=tokens,
    kind=kind,
    positions=places,
    next_position=np.array([one.next_position for one in encoded], np.int32),
    media_index=media_index,
    vision=None if known else stack_frames(encoded, shapes, sizes),
    media=_stack_features(encoded, media_index, shapes, sizes) if known else None,
  )


def _media_index(
  one: EncodedPrompt, patches: int, shapes: VisionShapes
) -> Int[np.ndarray, "prefix"]:
  """Index of each media token's features once frames are padded to `patches`; -1 for text."""
  index = np.full(one.tokens.shape, -1, np.int32)
  counts = [shapes.media_tokens(frame.patches) for frame in one.frames]
  stride = shapes.media_tokens(patches)
  places = [i * stride + np.arange(count) for i, count in enumerate(counts)]
  index[one.kind != records.Kind.TEXT] = np.concatenate([np.zeros(0, np.int64), *places])
  return index


def shuffle_media(
  media_index: Int[np.ndarray, "prompts prefix"], frames: Sequence[int], rng: np.random.Generator
) -> Int[np.ndarray, "prompts prefix"]:
  """Shuffles the temporal patches of each prompt in its media index; positions in time stay.

  frames: number of temporal patches of each prompt, all of one size.
  """
  shuffled = media_index.copy()
  for row, count in zip(shuffled, frames, strict=True):
    seen = row >= 0
    row[seen] = rng.permutation(row[seen].reshape(count, -1)).ravel()
  return shuffled


def _stack_features(
  encoded: Sequence[EncodedPrompt],
  media_index: Int[np.ndarray, "prompts prefix"],
  shapes: VisionShapes,
  sizes: PromptSizes,
) -> PyTree:
  """Stacks features to [prompts, media, …], at the indices in `media_index`."""
  known = {i: one.features for i, one in enumerate(encoded) if one.features is not None}
  leading = len(encoded), sizes.frames * shapes.media_tokens(sizes.patches)

  def stacked(*leaves: np.ndarray) -> np.ndarray:
    values = np.zeros((*leading, *leaves[0].shape[1:]), leaves[0].dtype)
    for i, features in zip(known, leaves, strict=True):
      values[i, media_index[i][media_index[i] >= 0]] = features
    return values

  return jax.tree.map(stacked, *known.values())


def stack_frames(
  encoded: Sequence[EncodedPrompt], shapes: VisionShapes, sizes: PromptSizes
) -> PyTree:
  """Stacks vision inputs [prompts, frames, patches, …] of prompts without features."""
  shape = (len(encoded), sizes.frames, sizes.patches)
  leaves, structure = jax.tree.flatten(shapes.patch)
  values = [np.zeros((*shape, *np.shape(leaf)), np.asarray(leaf).dtype) for leaf in leaves]
  for value, leaf in zip(values, leaves, strict=True):
    if np.any(leaf):
      value[...] = leaf
  for i, one in enumerate(encoded):
    for j, frame in enumerate(one.frames):
      for value, found in zip(values, jax.tree.leaves(frame.vision), strict=True):
        # An assignment would cut floats to bytes without a word.
        np.copyto(value[i, j, : frame.patches], found, casting="same_kind")
  return jax.tree.unflatten(structure, values)
