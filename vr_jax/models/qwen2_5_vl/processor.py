"""From text, images and videos to what the model reads, and from its tokens back to text.

All of it is Qwen2.5-VL's own: chat template, pixel budgets, media tokens, positions. NumPy on the host.
"""

from collections.abc import Sequence
import dataclasses
import math

from jaxtyping import Float, Int, UInt8
import numpy as np
import tokenizers

from vr_jax import errors, records
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import pixels, positions

SYSTEM = "You are a helpful assistant."
MEDIA_TOKENS = (
  "<|vision_start|>",
  "<|vision_end|>",
  "<|vision_pad|>",
  "<|image_pad|>",
  "<|video_pad|>",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
  """A still picture."""

  pixels: UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
  """Frames and the time between two of them."""

  frames: UInt8[np.ndarray, "frames height width 3"]
  seconds_per_frame: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
  """What one side of a conversation said: `role` is system, user or assistant."""

  role: str
  parts: tuple[str | Image | Video, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
  """One temporal patch: an image, or `temporal_patch_size` frames of a video."""

  patches: Float[np.ndarray, "patches patch_dim"]
  rows: Int[np.ndarray, "patches 2"]
  window: Int[np.ndarray, "patches"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
  """One prompt as the model takes it, not yet padded. Its media tokens are those of `frames`, in order."""

  name: str
  tokens: Int[np.ndarray, "prefix"]
  kind: Int[np.ndarray, "prefix"]
  positions: Int[np.ndarray, "3 prefix"]
  next_position: int
  frames: tuple[Frame, ...]


class Processor:
  """Rules of one model: its tokenizer, its vision constants, and the pixels a frame may have."""

  def __init__(
    self,
    config: config_lib.Config,
    tokenizer: tokenizers.Tokenizer,
    min_pixels: int,
    max_pixels: int,
    *,
    system: str = SYSTEM,
  ):
    """`system` opens every conversation that brings no system turn of its own; empty for none.

    Raises:
      InputError: the tokenizer's media tokens are not those of the config, or it has more tokens than the model.
    """
    self.config = config
    self.tokenizer = tokenizer
    self.min_pixels = min_pixels
    self.max_pixels = max_pixels
    self.system = system
    expected = (
      ("<|image_pad|>", config.image_token_id),
      ("<|video_pad|>", config.video_token_id),
      ("<|vision_start|>", config.vision_start_token_id),
      ("<|vision_end|>", config.vision_end_token_id),
    )
    for token, number in expected:
      found = tokenizer.token_to_id(token)
      if found != number:
        raise errors.InputError(
          f"tokenizer: {token} is token {found}, but the model's config says {number}; take both from one model"
        )
    if tokenizer.get_vocab_size() > config.text.vocab_size:
      raise errors.InputError(
        f"tokenizer: has {tokenizer.get_vocab_size()} tokens, but the model only {config.text.vocab_size}"
      )

  @property
  def stop_tokens(self) -> tuple[int, ...]:
    """Tokens that end a reply."""
    return self._ids(("<|im_end|>", "<|endoftext|>"))

  @property
  def media_tokens(self) -> tuple[int, ...]:
    """Tokens that may never be sampled: they stand for pixels, and a reply has none."""
    return self._ids(MEDIA_TOKENS)

  @property
  def pad_token(self) -> int:
    """What fills the end of shorter prompts."""
    return self._ids(("<|endoftext|>",))[0]

  def encode(
    self,
    text: str,
    frames: UInt8[np.ndarray, "frames height width 3"] | None,
    timestamps: Float[np.ndarray, "times"] | None = None,
    *,
    question_first: bool = False,
    name: str = "prompt",
  ) -> Encoded:
    """One question about one video, the assistant's turn opened; without frames the question alone (blind).

    question_first: the text stands before the video, not after it.
    timestamps: seconds of each frame, rising. Their mean distance is the video's rate.
    name: what an error calls this prompt.
    """
    video = None
    if frames is not None:
      video = Video(frames=frames, seconds_per_frame=_rate(timestamps, len(frames), name))
    return self.encode_conversation([_question(text, video, question_first)], name=name)

  def check_prompt(
    self,
    text: str,
    shape: tuple[int, int, int],
    *,
    question_first: bool,
    name: str,
    prefix_buckets: Sequence[int],
    frame_buckets: Sequence[int],
    patch_buckets: Sequence[int],
  ) -> None:
    """Raises what `encode` and `collate` would raise of a question about a video, of which only the shape is known.

    shape: frames, height and width (pixels).
    """
    blank = np.broadcast_to(np.uint8(0), (*shape, 3))
    video = Video(frames=blank, seconds_per_frame=1.0)
    grid = self._grid(video)
    merge = self.config.vision.spatial_merge_size
    one = positions.Grid(kind=grid.kind, frames=1, height=merge, width=merge)
    tokens, kind = self._tokenize([_question(text, video, question_first)], [1])
    _check_media(kind, [one], self.config.vision, name)
    length = len(tokens) - 1 + grid.tokens(self.config.vision)
    _bucket([(name, length)], prefix_buckets, "tokens")
    _bucket([(name, grid.frames)], frame_buckets, "temporal patches")
    _bucket([(name, grid.height * grid.width)], patch_buckets, "patches a frame")

  def encode_conversation(
    self, turns: Sequence[Turn], *, open_reply: bool = True, name: str = "prompt"
  ) -> Encoded:
    """A conversation with images and videos anywhere in it.

    open_reply: ends with the head of the assistant's next turn.

    Raises:
      InputError: media that are no pictures, or media tokens written in the text.
    """
    media = [part for turn in turns for part in turn.parts if not isinstance(part, str)]
    encoded = [self._encode_media(part, name) for part in media]
    grids = [grid for grid, _ in encoded]
    counts = [grid.tokens(self.config.vision) for grid in grids]
    tokens, kind = self._tokenize(turns, counts, open_reply=open_reply)
    _check_media(kind, grids, self.config.vision, name)
    places, next_position = positions.rope_index(kind, grids, self.config.vision)
    return Encoded(
      name=name,
      tokens=tokens,
      kind=kind,
      positions=places,
      next_position=next_position,
      frames=tuple(frame for _, steps in encoded for frame in steps),
    )

  def encode_reply(self, text: str) -> list[int]:
    """Tokens of a whole reply, the end of the turn included."""
    tokens = self.tokenizer.encode(text).ids
    if set(tokens) & set(self.media_tokens):
      raise errors.InputError(f"reply {text[:60]!r}: holds media tokens, which no reply can have")
    return [*tokens, *self._ids(("<|im_end|>",))]

  def decode(self, ids: Sequence[int] | Int[np.ndarray, "time"]) -> str:
    """Text of a reply; special tokens, the end of the turn among them, leave nothing."""
    return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

  def collate(
    self,
    encoded: Sequence[Encoded],
    *,
    prefix_buckets: Sequence[int],
    frame_buckets: Sequence[int],
    patch_buckets: Sequence[int],
  ) -> records.Prompt:
    """Stacks prompts, padded on each axis to the smallest bucket that holds the longest of them.

    prefix_buckets: tokens of a prompt. frame_buckets: temporal patches of a prompt (0 for batches without media).
    patch_buckets: patches of one temporal patch, multiples of the patches of a media token.

    Raises:
      InputError: a prompt is larger than the largest bucket; the message names it.
    """
    prefix = _bucket([(e.name, len(e.tokens)) for e in encoded], prefix_buckets, "tokens")
    frames = _bucket([(e.name, len(e.frames)) for e in encoded], frame_buckets, "temporal patches")
    sizes = [(e.name, max((len(f.window) for f in e.frames), default=0)) for e in encoded]
    patches = _bucket(sizes, patch_buckets, "patches a frame")
    if patches % self.config.vision.merge_unit:
      raise errors.InputError(
        f"patch_buckets: {patches} is no multiple of {self.config.vision.merge_unit}, the patches of a media token"
      )
    count = len(encoded)
    tokens = np.full((count, prefix), self.pad_token, np.int32)
    kind = np.full((count, prefix), records.Kind.PAD, np.int32)
    places = np.zeros((3, count, prefix), np.int32)
    media_index = np.full((count, prefix), -1, np.int32)
    for i, one in enumerate(encoded):
      length = len(one.tokens)
      tokens[i, :length] = one.tokens
      kind[i, :length] = one.kind
      places[:, i, :length] = one.positions
      media_index[i, :length] = _media_index(one, patches, self.config.vision)
    return records.Prompt(
      tokens=tokens,
      kind=kind,
      positions=places,
      next_position=np.array([one.next_position for one in encoded], np.int32),
      media_index=media_index,
      vision=_stack_frames(encoded, frames, patches, self.config.vision),
    )

  def _tokenize(
    self, turns: Sequence[Turn], media_tokens: Sequence[int], *, open_reply: bool = True
  ) -> tuple[Int[np.ndarray, "prefix"], Int[np.ndarray, "prefix"]]:
    """Tokens of a conversation and their kinds; `media_tokens` counts those of each medium, in order."""
    if self.system and (not turns or turns[0].role != "system"):
      turns = (Turn(role="system", parts=(self.system,)), *turns)
    counts = iter(media_tokens)
    pieces = []
    for turn in turns:
      pieces.append(f"<|im_start|>{turn.role}\n")
      for part in turn.parts:
        if isinstance(part, str):
          pieces.append(part)
          continue
        pad = "<|image_pad|>" if isinstance(part, Image) else "<|video_pad|>"
        pieces.append(f"<|vision_start|>{pad * next(counts)}<|vision_end|>")
      pieces.append("<|im_end|>\n")
    if open_reply:
      pieces.append("<|im_start|>assistant\n")
    tokens = np.array(self.tokenizer.encode("".join(pieces)).ids, np.int32)
    return tokens, self._kinds(tokens)

  def _ids(self, tokens: Sequence[str]) -> tuple[int, ...]:
    found = (self.tokenizer.token_to_id(token) for token in tokens)
    return tuple(number for number in found if number is not None)

  def _kinds(self, tokens: Int[np.ndarray, "prefix"]) -> Int[np.ndarray, "prefix"]:
    kind = np.full(tokens.shape, records.Kind.TEXT, np.int32)
    kind[tokens == self.config.image_token_id] = records.Kind.IMAGE
    kind[tokens == self.config.video_token_id] = records.Kind.VIDEO
    return kind

  def _encode_media(self, part: Image | Video, name: str) -> tuple[positions.Grid, list[Frame]]:
    """Patches of one image or video, a Frame for each temporal patch."""
    config = self.config.vision
    still = isinstance(part, Image)
    frames = np.repeat(part.pixels[None], config.temporal_patch_size, 0) if still else part.frames
    if not frames.size:
      raise errors.InputError(f"{name}: {'an image' if still else 'a video'} without pixels")
    grid = self._grid(part)
    size = (grid.height * config.patch_size, grid.width * config.patch_size)
    patches = pixels.patchify(pixels.resample(frames, *size), config)
    rows = positions.patch_rows(grid.height, grid.width, config)
    window = positions.patch_windows(rows, config)
    return grid, [Frame(patches=step, rows=rows, window=window) for step in patches]

  def _grid(self, part: Image | Video) -> positions.Grid:
    """The patches of one image or video, by its size alone."""
    config = self.config.vision
    if isinstance(part, Image):
      kind, count, seconds = records.Kind.IMAGE, 1, 1.0
      height, width = part.pixels.shape[:2]
    else:
      kind, count = records.Kind.VIDEO, -(-len(part.frames) // config.temporal_patch_size)
      seconds = part.seconds_per_frame * config.temporal_patch_size
      height, width = part.frames.shape[1:3]
    height, width = pixels.smart_resize(
      height,
      width,
      factor=config.pixel_factor,
      min_pixels=self.min_pixels,
      max_pixels=self.max_pixels,
    )
    return positions.Grid(
      kind=kind,
      frames=count,
      height=height // config.patch_size,
      width=width // config.patch_size,
      seconds=seconds,
    )


def _question(text: str, video: Video | None, question_first: bool) -> Turn:
  parts = (text,) if video is None else (text, video) if question_first else (video, text)
  return Turn(role="user", parts=parts)


def _rate(timestamps: Float[np.ndarray, "times"] | None, count: int, name: str) -> float:
  """Seconds between frames, on average; of one frame it does not matter."""
  if timestamps is None or len(timestamps) != count:
    raise errors.InputError(f"{name}: {count} frames need {count} timestamps")
  if count < 2:
    return 1.0
  rate = float(timestamps[-1] - timestamps[0]) / (count - 1)
  if not (math.isfinite(rate) and np.all(np.diff(timestamps) > 0)):
    raise errors.InputError(f"{name}: timestamps of its frames do not rise")
  return rate


def _check_media(
  kind: Int[np.ndarray, "prefix"],
  grids: Sequence[positions.Grid],
  config: config_lib.VisionConfig,
  name: str,
) -> None:
  """The one place where media tokens are held against the features that will fill them."""
  expected = [np.full(grid.tokens(config), grid.kind) for grid in grids]
  expected = np.concatenate([np.zeros(0, np.int64), *expected])
  found = kind[kind != records.Kind.TEXT]
  if not np.array_equal(found, expected):
    raise errors.InputError(
      f"{name}: {len(found)} media tokens for {len(expected)} media features; "
      "its text must not hold <|image_pad|> or <|video_pad|>"
    )


def _bucket(sizes: Sequence[tuple[str, int]], buckets: Sequence[int], what: str) -> int:
  name, size = max(sizes, key=lambda entry: entry[1])
  fitting = [bucket for bucket in buckets if bucket >= size]
  if not fitting:
    raise errors.InputError(
      f"{name}: {size} {what}, but the largest bucket has {max(buckets)}; shorten it or add a bucket"
    )
  return min(fitting)


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


def _stack_frames(
  encoded: Sequence[Encoded], frames: int, patches: int, config: config_lib.VisionConfig
) -> records.Vision:
  shape = (len(encoded), frames, patches)
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
