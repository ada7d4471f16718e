"""The processor that families share: encodes text, images and videos, and decodes tokens.

NumPy on the host. A family implements the methods in `rules`.
"""

from collections.abc import Sequence
import functools
from typing import Any

from jaxtyping import Bool, Float, Int, PyTree, UInt8
import numpy as np
import tokenizers
from tokenizers import decoders

from vr_jax import errors, records
from vr_jax.models import interface
from vr_jax.models.common import conversation, prompts, resize, rules

SYSTEM = "You are a helpful assistant."


class VideoProcessor(rules.Rules):
  """Processor of one model: its config, its tokenizer and the pixel limits of a frame.

  It implements `interface.Processor`; a family implements `rules.Rules`.
  """

  def __init__(
    self,
    config: interface.ModelConfig,
    tokenizer: tokenizers.Tokenizer,
    min_pixels: int,
    max_pixels: int,
    *,
    system: str = SYSTEM,
    library: str = "torchvision",
  ):
    """Initialises the processor.

    min_pixels, max_pixels: limits of one frame.
    system: opens conversations that have no system turn; empty for none.
    library: whose resizing to reproduce, torchvision or pillow (resize.py).

    Raises:
      InputError: the tokenizer's special tokens are not those of the config, it has more tokens
        than the model, or the library is unknown.
    """
    self.config = config
    self.tokenizer = tokenizer
    self.min_pixels = min_pixels
    self.max_pixels = max_pixels
    self.system = system
    self.library = library
    for token, number in self.special_tokens().items():
      found = tokenizer.token_to_id(token)
      if found != number:
        raise errors.InputError(
          f"tokenizer: {token} is token {found}, but the model's config says {number}; "
          "take both from one model"
        )
    if tokenizer.get_vocab_size() > config.vocab_size:
      raise errors.InputError(
        f"tokenizer: has {tokenizer.get_vocab_size()} tokens, "
        f"but the model only {config.vocab_size}"
      )
    if library not in resize.RESIZE:
      raise errors.InputError(f"library: is {library!r}, not one of {', '.join(resize.RESIZE)}")
    self._template = self.make_template(tokenizer)

  @property
  def position_axes(self) -> int:
    """Axes of a token's position."""
    return self.config.position_axes

  @property
  def stop_tokens(self) -> tuple[int, ...]:
    """Tokens that end a reply."""
    return self._ids(self.stops)

  @property
  def media_tokens(self) -> tuple[int, ...]:
    """Placeholder tokens of images and videos, which are never sampled."""
    return self._ids(self.never_sampled)

  @property
  def pad_token(self) -> int:
    """The token that pads shorter prompts."""
    return self._ids((self.pad_name,))[0]

  @property
  def end_token(self) -> int:
    """The token that ends the assistant's turn."""
    return self._ids((self.end_of_turn,))[0]

  @property
  def preprocessing(self) -> dict[str, Any]:
    """Settings that the vision inputs of a clip depend on. JSON-able."""
    return {
      "min_pixels": self.min_pixels,
      "max_pixels": self.max_pixels,
      "resampling": self.library,
    }

  def encode(
    self,
    text: str,
    frames: UInt8[np.ndarray, "frames height width 3"] | None,
    timestamps: Float[np.ndarray, "times"] | None = None,
    *,
    size: conversation.Size | None = None,
    question_first: bool = False,
    name: str = "prompt",
  ) -> prompts.EncodedPrompt:
    """Encodes a question about a video, up to the start of the assistant's turn.

    frames: None for a question without a video.
    timestamps: seconds of each frame, increasing.
    size: see `conversation.Image`.
    question_first: put the text before the video, not after it.
    name: of the prompt in error messages.
    """
    video = None
    if frames is not None:
      times = np.zeros(0) if timestamps is None else timestamps
      video = conversation.VideoFrames(frames=frames, timestamps=times, size=size)
    return self.encode_conversation([conversation.question(text, video, question_first)], name=name)

  def encode_with_features(
    self,
    text: str,
    shape: tuple[int, int, int],
    timestamps: Float[np.ndarray, "times"],
    features: PyTree,
    *,
    question_first: bool = False,
    name: str = "prompt",
  ) -> prompts.EncodedPrompt:
    """Like `encode`, for a video whose features [media, …] are known.

    shape: frames, height and width (pixels) of the video.
    """
    grid = self._video_grid(shape, timestamps, name)
    turn = conversation.question(text, conversation.NO_VIDEO, question_first)
    tokens, loss_mask = self._tokenize([turn], [self.media_runs(grid)], open_reply=True)
    return self.join(tokens, [grid], None, loss_mask, features=features, name=name)

  def count_media_tokens(self, shape: tuple[int, int, int], name: str) -> int:
    """Counts the media tokens of a video. shape: frames, height and width (pixels)."""
    return self._count(self.video_grid(shape, np.arange(float(shape[0])), name))

  def resized(self, size: tuple[int, int], name: str = "frame") -> tuple[int, int]:
    """Height and width (pixels) to which a frame of `size` is resized."""
    return self.frame_size(self.image_grid(size, None, name))

  def box_scale(self, size: conversation.Size) -> tuple[float, float]:
    """The numbers for the lower and the right edge of a frame shown at `size`, in boxes."""
    height, width = (1000, 1000) if self.box_units == "thousandths" else self.resized(size)
    return float(height), float(width)

  def check_prompt(
    self,
    text: str,
    shape: tuple[int, int, int],
    timestamps: Float[np.ndarray, "times"],
    *,
    question_first: bool,
    name: str,
    prefix_buckets: Sequence[int],
    frame_buckets: Sequence[int],
    patch_buckets: Sequence[int],
  ) -> None:
    """Raises the errors that `encode` and `collate` would raise for a video of this shape.

    shape: frames, height and width (pixels).
    """
    grid = self._video_grid(shape, timestamps, name)
    runs = self.media_runs(grid)
    length = self._around_question + conversation.most_tokens(text)
    length += sum(run.most_tokens for run in runs)
    if length > max(prefix_buckets):
      turn = conversation.question(text, conversation.NO_VIDEO, question_first)
      length = len(self._tokenize([turn], [runs], open_reply=True)[0])
    prompts.smallest_bucket([(name, length)], prefix_buckets, "tokens")
    prompts.smallest_bucket([(name, grid.frames)], frame_buckets, "temporal patches")
    prompts.smallest_bucket([(name, grid.patches)], patch_buckets, "patches a frame")

  def media_grid(
    self, shape: tuple[int, int, int], timestamps: Float[np.ndarray, "times"] | None, name: str
  ) -> prompts.Grid:
    """The grid of a video of this shape, or of an image (timestamps: None). See `check_prompt`."""
    if timestamps is None:
      return self.image_grid(shape[1:], None, name)
    return self._video_grid(shape, timestamps, name)

  def encode_conversation(
    self, turns: Sequence[conversation.Message], *, open_reply: bool = True, name: str = "prompt"
  ) -> prompts.EncodedPrompt:
    """Encodes a conversation with images and videos anywhere in it.

    open_reply: whether it ends with the start of the assistant's next turn.

    Raises:
      InputError: media without pixels or of an extreme aspect ratio, or an unknown role.
    """
    grids, patches = self._media(turns, name)
    tokens, loss_mask = self._tokenize(turns, self._runs(grids), open_reply=open_reply)
    return self.join(tokens, grids, patches, loss_mask, name=name)

  def continue_conversation(
    self,
    turns: Sequence[conversation.Message],
    *,
    after: Sequence[int] | Int[np.ndarray, "time"],
    name: str = "observation",
  ) -> prompts.EncodedPrompt:
    """Encodes what follows a reply: the end of its turn, `turns`, the start of the next reply.

    The end of the turn is left out if the reply wrote it. Positions count from 0. The loss mask is
    all False.

    after: token ids of the reply.

    Raises InputError as `encode_conversation` does.
    """
    grids, patches = self._media(turns, name)
    ended = len(after) > 0 and int(after[-1]) == self.end_token
    tokens = self._template.continuation(turns, self._runs(grids), ended=ended)
    return self.join(tokens, grids, patches, name=name)

  def join(
    self,
    tokens: Int[np.ndarray, "prefix"],
    grids: Sequence[prompts.Grid],
    patches: Sequence[np.ndarray] | None,
    loss_mask: Bool[np.ndarray, "prefix"] | None = None,
    *,
    features: PyTree | None = None,
    name: str = "prompt",
  ) -> prompts.EncodedPrompt:
    """Joins token ids and the patches of their media tokens; all prompts are built here.

    This is the only place that checks the number of media tokens against patches or features.

    patches: None if features are given.

    Raises:
      InputError: the media tokens are not the runs of each grid, or patches don't match their grid.
    """
    kind = self.kinds(tokens)
    shapes = [(grid.frames, grid.patches, *self.patch_shape) for grid in grids]
    found = shapes if patches is None else [steps.shape for steps in patches]
    if found != shapes:
      raise errors.InputError(f"{name}: patches of shape {found}, but its media need {shapes}")
    prompts.check_media_tokens(kind, grids, self._runs(grids), name)
    places, next_position = self.positions(kind, grids)
    frames = []
    for number, grid in enumerate(grids):
      inputs = [None] * grid.frames if patches is None else self.frame_inputs(patches[number], grid)
      frames += [prompts.TemporalPatch(vision=one, patches=grid.patches) for one in inputs]
    return prompts.EncodedPrompt(
      name=name,
      tokens=tokens,
      kind=kind,
      positions=places,
      next_position=next_position,
      loss_mask=np.zeros(tokens.shape, bool) if loss_mask is None else loss_mask,
      grids=tuple(grids),
      frames=tuple(frames),
      features=features,
    )

  def encode_tokens(self, tokens: Sequence[int], name: str = "reply") -> prompts.EncodedPrompt:
    """Wraps text tokens as an encoded prompt. Positions count from 0."""
    return self.join(np.array(tokens, np.int32), [], [], name=name)

  def encode_reply(self, text: str) -> list[int]:
    """Tokenizes a whole reply, with the token that ends the turn."""
    return [*self._template.text(self.reply_start + text), self.end_token]

  def reply_length(self, text: str, longest: int) -> int:
    """Counts the tokens of a reply, or returns an upper bound that is at most `longest`."""
    most = conversation.most_tokens(self.reply_start + text) + 1
    return most if most <= longest else len(self.encode_reply(text))

  def decode(self, ids: Sequence[int] | Int[np.ndarray, "time"]) -> str:
    """Decodes a reply to text, without special tokens and what starts every reply."""
    text = self.tokenizer.decode(np.asarray(ids, int).tolist(), skip_special_tokens=True)
    return text.removeprefix(self.reply_start)

  def ends(self, ids: Sequence[int] | Int[np.ndarray, "time"]) -> list[int]:
    """For each token, how many characters of `decode` end with it.

    A character of several tokens counts with the last of them.
    """
    stream, ends, text = decoders.DecodeStream(skip_special_tokens=True), [], ""
    for token in ids:
      text += stream.step(self.tokenizer, int(token)) or ""
      ends.append(len(text))
    start = len(self.reply_start) if text.startswith(self.reply_start) else 0
    return [max(end - start, 0) for end in ends]

  def collate(
    self,
    encoded: Sequence[prompts.EncodedPrompt],
    *,
    prefix_buckets: Sequence[int],
    frame_buckets: Sequence[int],
    patch_buckets: Sequence[int],
  ) -> records.Prompt:
    """Stacks prompts, each axis padded to the smallest bucket that holds all of them."""
    sizes = self.sizes(
      encoded,
      prefix_buckets=prefix_buckets,
      frame_buckets=frame_buckets,
      patch_buckets=patch_buckets,
    )
    return self.pad(encoded, sizes)

  def sizes(
    self,
    encoded: Sequence[prompts.EncodedPrompt],
    *,
    prefix_buckets: Sequence[int],
    frame_buckets: Sequence[int],
    patch_buckets: Sequence[int],
  ) -> prompts.PromptSizes:
    """Finds the smallest buckets that hold all of these prompts.

    prefix_buckets: tokens of a prompt.
    frame_buckets: temporal patches of a prompt (0 for batches without media).
    patch_buckets: patches of one temporal patch, multiples of the patches of a media token.

    Raises:
      InputError: a prompt is larger than the largest bucket; the message names it.
    """
    prefix = prompts.smallest_bucket(
      [(e.name, len(e.tokens)) for e in encoded], prefix_buckets, "tokens"
    )
    counts = [(e.name, len(e.frames)) for e in encoded]
    frames = prompts.smallest_bucket(counts, frame_buckets, "temporal patches")
    sizes = [(e.name, e.patches) for e in encoded]
    patches = prompts.smallest_bucket(sizes, patch_buckets, "patches a frame")
    unit, owner = self.config.vision_shapes.patch_unit
    if patches % unit:
      raise errors.InputError(
        f"patch_buckets: {patches} is no multiple of {unit}, the patches of {owner}"
      )
    return prompts.PromptSizes(prefix=prefix, frames=frames, patches=patches)

  def pad(
    self, encoded: Sequence[prompts.EncodedPrompt], sizes: prompts.PromptSizes
  ) -> records.Prompt:
    """Stacks prompts, padded to these sizes: see `prompts.pad`."""
    shapes = self.config.vision_shapes
    return prompts.pad(encoded, shapes, sizes, pad_token=self.pad_token)

  def stack_frames(
    self, encoded: Sequence[prompts.EncodedPrompt], sizes: prompts.PromptSizes
  ) -> PyTree:
    """Stacks vision inputs [prompts, frames, patches, …] of prompts without features."""
    return prompts.stack_frames(encoded, self.config.vision_shapes, sizes)

  def shuffle_frames(
    self,
    media_index: Int[np.ndarray, "prompts prefix"],
    encoded: Sequence[prompts.EncodedPrompt],
    rng: np.random.Generator,
  ) -> Int[np.ndarray, "prompts prefix"]:
    """Shuffles the frames of each prompt in its media index; positions in time stay."""
    return prompts.shuffle_media(media_index, [len(one.frames) for one in encoded], rng)

  def _media(
    self, turns: Sequence[conversation.Message], name: str
  ) -> tuple[list[prompts.Grid], list[np.ndarray]]:
    """Grids and patches of the media of a conversation."""
    for turn in turns:
      if turn.role not in conversation.ROLES:
        known = ", ".join(conversation.ROLES)
        raise errors.InputError(f"{name}: a turn of {turn.role!r}; roles are {known}")
    media = [part for turn in turns for part in turn.parts if not isinstance(part, str)]
    encoded = [self._encode_media(part, name) for part in media]
    return [grid for grid, _ in encoded], [patches for _, patches in encoded]

  def _runs(self, grids: Sequence[prompts.Grid]) -> list[tuple[prompts.MediaRun, ...]]:
    return [self.media_runs(grid) for grid in grids]

  def _tokenize(
    self,
    turns: Sequence[conversation.Message],
    media: Sequence[Sequence[prompts.MediaRun]],
    *,
    open_reply: bool,
  ) -> tuple[Int[np.ndarray, "prefix"], Bool[np.ndarray, "prefix"]]:
    """Tokens of a conversation and their loss mask. media: the runs of each medium's tokens."""
    if self.system and (not turns or turns[0].role != "system"):
      turns = (conversation.Message(role="system", parts=(self.system,)), *turns)
    return self._template.apply(turns, media, open_reply=open_reply)

  @property
  def system_length(self) -> int:
    """Number of tokens in the system turn that opens every prompt; 0 without one."""
    return len(self._tokenize([], [], open_reply=False)[0]) if self.system else 0

  def _ids(self, tokens: Sequence[str]) -> tuple[int, ...]:
    found = (self.tokenizer.token_to_id(token) for token in tokens)
    return tuple(number for number in found if number is not None)

  @functools.cached_property
  def _around_question(self) -> int:
    """Upper bound of a prompt's tokens without those of its video and of its question's text."""
    empty = conversation.question("", conversation.NO_VIDEO, False)
    return len(self._tokenize([empty], [()], open_reply=True)[0]) + self._template.slack

  def _encode_media(
    self, part: conversation.Image | conversation.VideoFrames, name: str
  ) -> tuple[prompts.Grid, np.ndarray]:
    """Resizes one image or video and cuts it into patches."""
    is_image = isinstance(part, conversation.Image)
    frames = part.pixels[None] if is_image else part.frames
    if not frames.size:
      raise errors.InputError(f"{name}: {'an image' if is_image else 'a video'} without pixels")
    if is_image:
      grid = self.image_grid(part.size or frames.shape[1:3], part.seconds, name)
    else:
      height, width = part.size or frames.shape[1:3]
      grid = self._video_grid((len(frames), height, width), part.timestamps, name)
    resized = resize.resample(frames, *self.frame_size(grid), self.library)
    return grid, self.patchify(resized)

  def _video_grid(
    self, shape: tuple[int, int, int], timestamps: Float[np.ndarray, "times"], name: str
  ) -> prompts.Grid:
    """Checks the timestamps of a video's frames, and returns its grid."""
    if len(timestamps) != shape[0]:
      raise errors.InputError(f"{name}: {shape[0]} frames need {shape[0]} timestamps")
    if not (np.all(np.isfinite(timestamps)) and np.all(np.diff(timestamps) > 0)):
      raise errors.InputError(f"{name}: timestamps of its frames do not rise")
    return self.video_grid(shape, timestamps, name)

  def media_runs(self, grid: prompts.Grid) -> tuple[prompts.MediaRun, ...]:
    """One run of all tokens of an image or video, unless a family overrides this."""
    tokens = self.config.vision_shapes.media_tokens(grid.patches)
    return (prompts.MediaRun(tokens=grid.frames * tokens),)

  def _count(self, grid: prompts.Grid) -> int:
    """Counts the media tokens of a grid."""
    return sum(run.tokens for run in self.media_runs(grid))
