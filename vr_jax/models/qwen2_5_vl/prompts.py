"""Prompts as the model takes them: one encoded conversation, and a batch of them padded."""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Bool, Float, Int
import numpy as np

from vr_jax import errors, records
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
  """One temporal patch: an image, or `temporal_patch_size` frames of a video. Without patches its features are known."""

  patches: Float[np.ndarray, "patches patch_dim"] | None
  rows: Int[np.ndarray, "patches 2"]
  window: Int[np.ndarray, "patches"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
  """One conversation as the model takes it, not yet padded. Its media tokens are those of `frames`, in order.

  loss_mask: the tokens that the assistant wrote, ends of its turns included: those that supervised training learns.
  features: of all its media tokens, where the vision tower has read them before; its frames have no patches then.
  """

  name: str
  tokens: Int[np.ndarray, "prefix"]
  kind: Int[np.ndarray, "prefix"]
  positions: Int[np.ndarray, "3 prefix"]
  next_position: int
  loss_mask: Bool[np.ndarray, "prefix"]
  grids: tuple[positions.Grid, ...]
  frames: tuple[Frame, ...]
  features: Float[np.ndarray, "media embed"] | None = None


def joined(parts: Sequence[Encoded], *, name: str) -> Encoded:
  """One conversation of parts without features, the positions of each going on where those before it ended."""
  starts = np.cumsum([0, *(part.next_position for part in parts)])
  places = [part.positions + start for part, start in zip(parts, starts, strict=False)]
  return Encoded(
    name=name,
    tokens=np.concatenate([part.tokens for part in parts]),
    kind=np.concatenate([part.kind for part in parts]),
    positions=np.concatenate(places, axis=1).astype(np.int32),
    next_position=int(starts[-1]),
    loss_mask=np.concatenate([part.loss_mask for part in parts]),
    grids=tuple(grid for part in parts for grid in part.grids),
    frames=tuple(frame for part in parts for frame in part.frames),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """What prompts are padded to: tokens, temporal patches, patches of one of these."""

  prefix: int
  frames: int
  patches: int


def bucket(sizes: Sequence[tuple[str, int]], buckets: Sequence[int], what: str) -> int:
  """The smallest bucket that holds all `sizes` (name, size). Raises InputError naming the one that no bucket holds."""
  name, size = max(sizes, key=lambda entry: entry[1])
  fitting = [bucket for bucket in buckets if bucket >= size]
  if not fitting:
    raise errors.InputError(
      f"{name}: {size} {what}, but the largest bucket has {max(buckets)}; shorten it or add a bucket"
    )
  return min(fitting)


def pad(
  encoded: Sequence[Encoded], config: config_lib.VisionConfig, sizes: Sizes, *, pad_token: int
) -> records.Prompt:
  """Prompts of at most these sizes, stacked.

  They hold patches, or, where the features of any of them are known, features; those that are not known are 0.
  """
  count = len(encoded)
  tokens = np.full((count, sizes.prefix), pad_token, np.int32)
  kind = np.full((count, sizes.prefix), records.Kind.PAD, np.int32)
  places = np.zeros((3, count, sizes.prefix), np.int32)
  media_index = np.full((count, sizes.prefix), -1, np.int32)
  for i, one in enumerate(encoded):
    length = len(one.tokens)
    tokens[i, :length] = one.tokens
    kind[i, :length] = one.kind
    places[:, i, :length] = one.positions
    media_index[i, :length] = _media_index(one, sizes.patches, config)
  known = any(one.features is not None for one in encoded)
  return records.Prompt(
    tokens=tokens,
    kind=kind,
    positions=places,
    next_position=np.array([one.next_position for one in encoded], np.int32),
    media_index=media_index,
    vision=None if known else stack_frames(encoded, config, sizes),
    media=_stack_features(encoded, media_index, config, sizes) if known else None,
  )


def _media_index(
  one: Encoded, patches: int, config: config_lib.VisionConfig
) -> Int[np.ndarray, "prefix"]:
  """Where each media token's features lie once frames are padded to `patches`; -1 for text."""
  index = np.full(one.tokens.shape, -1, np.int32)
  counts = [len(frame.window) // config.merge_unit for frame in one.frames]
  stride = patches // config.merge_unit
  places = [i * stride + np.arange(count) for i, count in enumerate(counts)]
  index[one.kind != records.Kind.TEXT] = np.concatenate([np.zeros(0, np.int64), *places])
  return index


def in_random_order(
  media_index: Int[np.ndarray, "prompts prefix"], frames: Sequence[int], rng: np.random.Generator
) -> Int[np.ndarray, "prompts prefix"]:
  """The same prompts, but each with its temporal patches (as many as `frames` says, of one size) in an order of its own.

  Their times stay where they are.
  """
  mixed = media_index.copy()
  for row, count in zip(mixed, frames, strict=True):
    seen = row >= 0
    row[seen] = rng.permutation(row[seen].reshape(count, -1)).ravel()
  return mixed


def _stack_features(
  encoded: Sequence[Encoded],
  media_index: Int[np.ndarray, "prompts prefix"],
  config: config_lib.VisionConfig,
  sizes: Sizes,
) -> Float[np.ndarray, "prompts media embed"]:
  known = {i: one.features for i, one in enumerate(encoded) if one.features is not None}
  dtype = next(iter(known.values())).dtype
  media = sizes.frames * sizes.patches // config.merge_unit
  values = np.zeros((len(encoded), media, config.out_hidden_size), dtype)
  for i, features in known.items():
    values[i, media_index[i][media_index[i] >= 0]] = features
  return values


def stack_frames(
  encoded: Sequence[Encoded], config: config_lib.VisionConfig, sizes: Sizes
) -> records.Vision:
  """The patches of prompts whose features are not known."""
  shape = (len(encoded), sizes.frames, sizes.patches)
  values = np.zeros((*shape, config.patch_dim), np.float32)
  rows = np.zeros((*shape, 2), np.int32)
  window = np.full(shape, -1, np.int32)
  for i, one in enumerate(encoded):
    for j, frame in enumerate(one.frames):
      count = len(frame.window)
      values[i, j, :count] = frame.patches
      rows[i, j, :count] = frame.rows
      window[i, j, :count] = frame.window
  return records.Vision(patches=values, rows=rows, window=window)
