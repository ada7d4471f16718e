"""The protocols that every model family implements and the rest of the project calls.

    ModelConfig      sizes and constants, as read from a config.json
    LanguageModel    prompts in, hidden states of replies out; with its Prefix and Cache
    Processor        text and pictures in, token ids and vision inputs out, and replies back to text

Code outside `models/` uses a network only through these. Inputs and outputs of the vision tower are
pytrees that only the family looks into: arrays [prompts, frames, patches, …] and
[prompts, media, …] (`common.prompts.VisionShapes`).

Names of axes: prompts, prefix, group, time, frames, patches and axes are those of `records`.
    media           vision tokens of a prompt, over all its frames
    embed, vocab    components of a hidden state; entries of the vocabulary
    slots, rows     replies being decoded; replies that an observation is appended to
    packed          valid tokens of all replies, without padding
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt8
import numpy as np
import tokenizers

from vr_jax import records
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import conversation, prompts
from vr_jax.models.common import packing as packing_lib
from vr_jax.models.common import slots as slots_lib
from vr_jax.models.model_config import ModelConfig as ModelConfig


@runtime_checkable
class Prefix(Protocol):
  """What prefilled prompts leave for their replies to attend to. A pytree."""

  hidden: Array  # [prompts, embed]: final-normed, at the last token of each prompt

  def placed(self, place: Callable[[Array, layout_lib.Axes], Array]) -> "Prefix":
    """Applies `place(array, logical axes)` to each array."""
    ...


@runtime_checkable
class Cache(Protocol):
  """Keys and values of replies that are being sampled. A pytree."""

  def placed(self, place: Callable[[Array, layout_lib.Axes], Array]) -> "Cache":
    """Applies `place(array, logical axes)` to each array."""
    ...

  def select_slots(self, layout: layout_lib.Layout, slots: Int[Array, "select_slots"]) -> "Cache":
    """The cache of some slots. slots: their indices on the device that holds them."""
    ...

  def write_rows(
    self,
    layout: layout_lib.Layout,
    new: "Cache",
    slots: Int[Array, "rows"],
    starts: Int[Array, "rows"],
    counts: Int[Array, "rows"],
  ) -> "Cache":
    """Writes the first `counts` positions of each row of `new` into a slot, from `starts` on.

    A row whose slot is out of range on its device is left out.
    """
    ...

  def grow(self, layout: layout_lib.Layout, length: int) -> "Cache":
    """Pads the cache with zeros to `length` positions."""
    ...


@runtime_checkable
class LanguageModel(Protocol):
  """A network that runs each prompt once and shares the result with the group of its replies.

  It is an nnx.Module; `layout` shards its parameters by their metadata `axes`. `prefix.hidden`
  gives the distribution of the first reply token, the hidden state of token t that of token t + 1.
  """

  layout: layout_lib.Layout  # maps names of axes to the devices of a mesh

  @property
  def logit_chunk(self) -> int:
    """Largest size of a vocabulary chunk in the chunked log-softmax."""
    ...

  def encode_vision(self, vision: PyTree) -> PyTree:
    """Runs the vision tower: [prompts, frames, patches, …] to features [prompts, media, …]."""
    ...

  def prefill(self, prompt: records.Prompt) -> Prefix:
    """Runs the prompts once; runs the vision tower first unless they bring features."""
    ...

  def forward_replies(
    self,
    prefix: Prefix,
    tokens: Int[Array, "prompts group time"],
    valid: Bool[Array, "prompts group time"],
    episode_inputs: records.EpisodeInputs | None = None,
  ) -> Float[Array, "prompts group time embed"]:
    """A teacher-forced forward pass over replies: their final-normed hidden states.

    Token t attends to its prompt and its reply's valid tokens up to t, but not to tokens of
    forgotten turns. Gradients reach the prefix. episode_inputs: of episodes with several turns.
    """
    ...

  def forward_packed_replies(
    self,
    prefix: Prefix,
    tokens: Int[Array, "prompts group time"],
    valid: Bool[Array, "prompts group time"],
    packing: packing_lib.Packing,
    episode_inputs: records.EpisodeInputs | None = None,
  ) -> Float[Array, "packed embed"]:
    """Like `forward_replies`, for the valid tokens only."""
    ...

  def prefill_observation(
    self,
    prefix: Prefix,
    cache: Cache,
    shown: records.Prompt,
    media: PyTree,
    rows: slots_lib.CacheRows,
  ) -> tuple[Float[Array, "rows embed"], Cache]:
    """Prefills an observation after what each reply's cache holds; does not modify the cache.

    shown: the observations, encoded as prompts whose positions count from 0.
    media: features [rows, media, …] of their frames.

    Returns each row's last hidden state, and a Cache of only the new entries, for `write_rows`.
    """
    ...

  def init_media_features(self, slots: int, frames: int, patches: int) -> PyTree:
    """Zero buffer [slots, media, …] for the features of `frames` frames of `patches` patches."""
    ...

  def init_cache(self, prefix: Prefix, slots: int, length: int) -> Cache:
    """An empty cache for replies of up to `length` tokens."""
    ...

  def prepare_decode(self, prefix: Prefix) -> PyTree:
    """Prepares what every decoding step reads, once for a loop of steps."""
    ...

  def decode(
    self,
    constants: PyTree,
    cache: Cache,
    tokens: Int[Array, "slots"],
    index: Int[Array, ""],
    decode_slots: slots_lib.DecodeSlots,
  ) -> tuple[Float[Array, "slots embed"], Cache]:
    """Feeds one token to every slot; returns final-normed hidden states and the new cache.

    tokens: the one to feed for each slot; index: its position in the cache, the same for all slots.
    """
    ...

  def decode_later_turn(
    self,
    constants: PyTree,
    past: Cache,
    recent: Cache,
    tokens: Int[Array, "slots"],
    index: Int[Array, ""],
    rows: slots_lib.CacheRows,
    decode_slots: slots_lib.DecodeSlots,
  ) -> tuple[Float[Array, "slots embed"], Cache]:
    """Like `decode`, with a two-part cache: `past` is only read, the new `recent` is returned.

    recent: the cache of the tokens fed since `past`, equally many a slot; `index` counts in it.
    """
    ...

  def gather_for_slots(
    self, x: Shaped[Array, "prompts *rest"], decode_slots: slots_lib.DecodeSlots
  ) -> Shaped[Array, "slots *rest"]:
    """Copies each prompt's entry of `x` to the slots of its replies."""
    ...

  def decoding_params(self, *, int8_weights: bool = False) -> PyTree:
    """The parameters in the layout of decoding and the dtypes that it reads.

    None in place of an array that stays as it is.

    int8_weights: the matrices of layers as `int8_weights.Int8Matrices`.
    """
    ...

  def lm_head_weight(self) -> Float[Array, "vocab embed"]:
    """The output (lm_head) matrix."""
    ...

  def lm_head_bias(self) -> Float[Array, "vocab"] | None:
    """What is added to the product with it; None: nothing."""
    ...

  def logits(self, hidden: Float[Array, "*batch embed"]) -> Float[Array, "*batch vocab"]:
    """Logits of the next token, float32."""
    ...


@runtime_checkable
class Processor(Protocol):
  """Encodes text, images and videos for a model, and decodes its tokens. NumPy, on the host.

  All methods raise InputError for media that can't be encoded; `name` is used in error messages.
  `question_first` puts the text before the video, not after it.
  """

  @property
  def config(self) -> ModelConfig:
    """The config of the model that it encodes for."""
    ...

  @property
  def tokenizer(self) -> tokenizers.Tokenizer:
    """The tokenizer of the model."""
    ...

  @property
  def position_axes(self) -> int:
    """Axes of a token's position."""
    ...

  @property
  def system_length(self) -> int:
    """Number of tokens in the system turn that opens every prompt; 0 without one."""
    ...

  @property
  def stop_tokens(self) -> tuple[int, ...]:
    """Tokens each of which ends a reply when it is sampled; `end_token` is one of them."""
    ...

  @property
  def media_tokens(self) -> tuple[int, ...]:
    """Placeholder tokens of images and videos, which are never sampled."""
    ...

  @property
  def pad_token(self) -> int:
    """The token that pads shorter prompts."""
    ...

  @property
  def end_token(self) -> int:
    """The token of the chat template that ends a turn; `encode_reply` adds it."""
    ...

  @property
  def preprocessing(self) -> dict[str, Any]:
    """Settings that the vision inputs of a clip depend on. JSON-able."""
    ...

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
    """Encodes a question about a video (None: without), up to the start of the assistant's turn.

    size: of the frames as shown, see `conversation.Image`.
    """
    ...

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
    """Like `encode`, for a video of `shape` (frames, height, width) with features [media, …]."""
    ...

  def encode_conversation(
    self, turns: Sequence[conversation.Message], *, open_reply: bool = True, name: str = "prompt"
  ) -> prompts.EncodedPrompt:
    """Encodes a conversation; `open_reply`: up to the start of the assistant's next turn."""
    ...

  def continue_conversation(
    self,
    turns: Sequence[conversation.Message],
    *,
    after: Sequence[int] | Int[np.ndarray, "time"],
    name: str = "observation",
  ) -> prompts.EncodedPrompt:
    """Encodes the turns after a reply, whose token ids are `after`. Positions count from 0."""
    ...

  def encode_tokens(self, tokens: Sequence[int], name: str = "reply") -> prompts.EncodedPrompt:
    """Wraps text tokens as an encoded prompt. Positions count from 0."""
    ...

  def encode_reply(self, text: str) -> list[int]:
    """Tokenizes a whole reply, with the token that ends the turn."""
    ...

  def reply_length(self, text: str, longest: int) -> int:
    """The number of tokens of a reply, or a cheaper upper bound if that is at most `longest`."""
    ...

  def decode(self, ids: Sequence[int] | Int[np.ndarray, "time"]) -> str:
    """Decodes a reply to text, without special tokens."""
    ...

  def ends(self, ids: Sequence[int] | Int[np.ndarray, "time"]) -> list[int]:
    """For each token, the length of the decoded text up to and including it."""
    ...

  def count_media_tokens(self, shape: tuple[int, int, int], name: str) -> int:
    """Counts the media tokens of a video. shape: frames, height and width (pixels)."""
    ...

  def resized(self, size: tuple[int, int], name: str = "frame") -> tuple[int, int]:
    """Height and width (pixels) to which a frame of `size` is resized."""
    ...

  def frame_size(self, grid: prompts.Grid) -> tuple[int, int]:
    """Height and width (pixels) of the frames of a grid, as the vision tower gets them."""
    ...

  def box_scale(self, size: conversation.Size) -> tuple[float, float]:
    """The numbers for the lower and the right edge of a frame in the boxes that the model writes.

    size: at which the frame is shown. Families differ: pixels of it, or thousandths of its sides.
    """
    ...

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
    """Raises the errors that `encode` and `collate` would raise for a video of this shape."""
    ...

  def media_grid(
    self, shape: tuple[int, int, int], timestamps: Float[np.ndarray, "times"] | None, name: str
  ) -> prompts.Grid:
    """The grid of a video of this shape, or of an image (timestamps: None)."""
    ...

  def sizes(
    self,
    encoded: Sequence[prompts.EncodedPrompt],
    *,
    prefix_buckets: Sequence[int],
    frame_buckets: Sequence[int],
    patch_buckets: Sequence[int],
  ) -> prompts.PromptSizes:
    """Finds the smallest buckets that hold all of these prompts."""
    ...

  def collate(
    self,
    encoded: Sequence[prompts.EncodedPrompt],
    *,
    prefix_buckets: Sequence[int],
    frame_buckets: Sequence[int],
    patch_buckets: Sequence[int],
  ) -> records.Prompt:
    """Stacks prompts, each axis padded to the smallest bucket that holds all of them."""
    ...

  def pad(
    self, encoded: Sequence[prompts.EncodedPrompt], sizes: prompts.PromptSizes
  ) -> records.Prompt:
    """Stacks prompts, padded to these sizes."""
    ...

  def stack_frames(
    self, encoded: Sequence[prompts.EncodedPrompt], sizes: prompts.PromptSizes
  ) -> PyTree:
    """Stacks vision inputs [prompts, frames, patches, …] of prompts without features."""
    ...

  def shuffle_frames(
    self,
    media_index: Int[np.ndarray, "prompts prefix"],
    encoded: Sequence[prompts.EncodedPrompt],
    rng: np.random.Generator,
  ) -> Int[np.ndarray, "prompts prefix"]:
    """Permutes which frame's features each placeholder points to; position ids are unchanged."""
    ...
