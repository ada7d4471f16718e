"""The protocols of a model: what the rest of the project calls, and each family implements.

    ModelConfig      sizes and constants, as read from a config.json
    LanguageModel    prompts in, hidden states of replies out; with its Prefix and Cache
    Processor        text and pictures in, token ids and vision inputs out, and replies back to text

Nothing outside `models/` knows more of a network than this. What its vision tower takes and gives
are pytrees that only the
family looks into: arrays [prompts, frames, patches, …] and [prompts, media, …]
(`common.prompts.VisionShapes`).

Axes: prompts, prefix, group, time, frames, patches, media and axes as in `records`; slots (replies
that are decoded), rows
(replies that are appended to), homes (where the keys and values of replies stay), packed (valid
tokens of replies).
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt8
import numpy as np
import tokenizers

from vr_jax import records
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import conversation, flops, prompts
from vr_jax.models.common import packing as packing_lib
from vr_jax.models.common import slots as slots_lib


@runtime_checkable
class ModelConfig(Protocol):
  """Sizes and constants of a model. A frozen dataclass: it is hashed, and its fields replaced."""

  model_type: ClassVar[str]  # as in config.json; the registry finds the family by it

  @property
  def dtype(self) -> str:
    """Dtype of activations: float32, bfloat16 or float16."""
    ...

  @property
  def remat(self) -> str:
    """Rematerialisation policy: a name in common/rematerialisation.py."""
    ...

  @property
  def attention(self) -> str:
    """Attention backend (common/attention.py); "" for the platform's default."""
    ...

  @property
  def logit_chunk(self) -> int:
    """Rows of the vocabulary whose logits an update holds in memory at once."""
    ...

  @property
  def tie_word_embeddings(self) -> bool:
    """Whether the output matrix is the token embedding."""
    ...

  @property
  def vocab_size(self) -> int:
    """Rows of the token embedding."""
    ...

  @property
  def hidden_size(self) -> int:
    """Features of a hidden state of the language model."""
    ...

  @property
  def max_position_embeddings(self) -> int:
    """Tokens that a prompt and its reply may have together."""
    ...

  @property
  def position_axes(self) -> int:
    """Of the positions of tokens: 1, or more where they stand in time, height and width."""
    ...

  @property
  def text_sizes(self) -> flops.TextSizes:
    """What planning asks of the language model."""
    ...

  @property
  def vision_shapes(self) -> prompts.VisionShapes:
    """What the vision tower takes and gives."""
    ...

  @property
  def architecture(self) -> dict[str, Any]:
    """What parameters of this config fit: sizes, by name."""
    ...

  @property
  def tower_fields(self) -> dict[str, Any]:
    """What features depend on beside pixels, weights of the tower and dtype. JSON-able."""
    ...


@runtime_checkable
class Prefix(Protocol):
  """Prompts that have been read: what their replies attend to. A pytree."""

  hidden: Array  # [prompts, embed]: final-normed, at the last token of each prompt

  def placed(self, place: Callable[[Array, layout_lib.Axes], Array]) -> "Prefix":
    """Each array as `place(array, logical axes)` makes it."""
    ...


@runtime_checkable
class Cache(Protocol):
  """What replies that are being sampled attend to of themselves. A pytree."""

  def placed(self, place: Callable[[Array, layout_lib.Axes], Array]) -> "Cache":
    """Each array as `place(array, logical axes)` makes it."""
    ...

  def select_slots(self, layout: layout_lib.Layout, slots: Int[Array, "select_slots"]) -> "Cache":
    """That of some slots, named by their places on the device that holds them."""
    ...

  def write_rows(
    self,
    layout: layout_lib.Layout,
    new: "Cache",
    slots: Int[Array, "rows"],
    starts: Int[Array, "rows"],
    counts: Int[Array, "rows"],
  ) -> "Cache":
    """With the first `counts` positions of each row of `new` in a slot, from a place there on.

    A row whose slot its device does not have is left out.
    """
    ...

  def grow(self, layout: layout_lib.Layout, length: int) -> "Cache":
    """With room for so many positions."""
    ...


@runtime_checkable
class LanguageModel(Protocol):
  """A network in the group layout. An nnx.Module; its parameters have the metadata `axes`.

  The first reply token's distribution comes from `prefix.hidden`, that of token t + 1 from the
  hidden state of token t.
  """

  layout: layout_lib.Layout  # where its arrays lie

  @property
  def logit_chunk(self) -> int:
    """Rows of the vocabulary whose logits an update has in memory at once."""
    ...

  def encode_vision(self, vision: PyTree) -> PyTree:
    """Runs the vision tower on inputs [prompts, frames, patches, …].

    Returns features [prompts, media, …], those of padding included.
    """
    ...

  def prefill(self, prompt: records.Prompt) -> Prefix:
    """Runs the prompts once, after the vision tower if they bring its inputs, not features."""
    ...

  def extend(
    self,
    prefix: Prefix,
    tokens: Int[Array, "prompts group time"],
    valid: Bool[Array, "prompts group time"],
    episode_inputs: records.EpisodeInputs | None = None,
  ) -> Float[Array, "prompts group time embed"]:
    """Final-normed hidden states of replies; of several turns where there is a suffix.

    Token t sees its prompt and the valid tokens up to t of its own reply. Gradients flow into the
    prefix.
    """
    ...

  def extend_packed(
    self,
    prefix: Prefix,
    tokens: Int[Array, "prompts group time"],
    valid: Bool[Array, "prompts group time"],
    packing: packing_lib.Packing,
    episode_inputs: records.EpisodeInputs | None = None,
  ) -> Float[Array, "packed embed"]:
    """As `extend`, of the valid tokens alone."""
    ...

  def append(
    self,
    prefix: Prefix,
    cache: Cache,
    shown: records.Prompt,
    media: PyTree,
    rows: slots_lib.CacheRows,
  ) -> tuple[Float[Array, "rows embed"], Cache]:
    """Runs what some replies are shown next, each behind what it has written.

    Returns the hidden state of the last token of each row, and the new part of the cache.

    shown: as prompts, whose positions count from 0; media: features [rows, media, …] of its frames.
    The cache is only read.
    """
    ...

  def start_media(self, slots: int, frames: int, patches: int) -> PyTree:
    """Zero buffer [slots, media, …] for the features of `frames` frames of `patches` patches."""
    ...

  def start_cache(self, prefix: Prefix, slots: int, length: int) -> Cache:
    """An empty cache for replies of up to `length` tokens."""
    ...

  def prepare_decode(self, prefix: Prefix) -> PyTree:
    """What every step of decoding reads. Made once for a loop of steps."""
    ...

  def decode(
    self,
    constants: PyTree,
    cache: Cache,
    tokens: Int[Array, "slots"],
    index: Int[Array, ""],
    decode_slots: slots_lib.DecodeSlots,
  ) -> tuple[Float[Array, "slots embed"], Cache]:
    """Feeds token number `index` of every slot: (final-normed hidden states, updated cache)."""
    ...

  def decode_on(
    self,
    constants: PyTree,
    past: Cache,
    recent: Cache,
    tokens: Int[Array, "slots"],
    index: Int[Array, ""],
    rows: slots_lib.CacheRows,
    decode_slots: slots_lib.DecodeSlots,
  ) -> tuple[Float[Array, "slots embed"], Cache]:
    """Like `decode`, for replies that go on: each behind what its slot of `past` holds.

    recent: of the tokens fed since, as many for every slot.
    """
    ...

  def gather_for_slots(
    self, x: Shaped[Array, "prompts *rest"], decode_slots: slots_lib.DecodeSlots
  ) -> Shaped[Array, "slots *rest"]:
    """Of each slot, what its prompt has."""
    ...

  def decoding_params(self) -> PyTree:
    """The parameters as each step of decoding reads them: gathered, in the dtype of activations."""
    ...

  def output_rows(self) -> Float[Array, "vocab embed"]:
    """The matrix whose product with a hidden state scores the next token."""
    ...

  def logits(self, hidden: Float[Array, "*batch embed"]) -> Float[Array, "*batch vocab"]:
    """Scores of the next token, float32."""
    ...


@runtime_checkable
class Processor(Protocol):
  """Encodes text, images and videos for a model, and decodes its tokens. NumPy, on the host.

  All methods raise InputError, naming the prompt, where something can't be shown.
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
  def axes(self) -> int:
    """Of positions."""
    ...

  @property
  def system_length(self) -> int:
    """Tokens of the system turn, which open every prompt; 0 without one."""
    ...

  @property
  def stop_tokens(self) -> tuple[int, ...]:
    """Tokens that end a reply."""
    ...

  @property
  def media_tokens(self) -> tuple[int, ...]:
    """Tokens that may never be sampled: they stand for pixels, and a reply has none."""
    ...

  @property
  def pad_token(self) -> int:
    """What fills the end of shorter prompts."""
    ...

  @property
  def end_token(self) -> int:
    """What the assistant ends its turn with."""
    ...

  @property
  def preprocessing(self) -> dict[str, Any]:
    """What the pixels that the tower reads depend on, beside a clip's own. JSON-able."""
    ...

  def encode(
    self,
    text: str,
    frames: UInt8[np.ndarray, "frames height width 3"] | None,
    timestamps: Float[np.ndarray, "times"] | None = None,
    *,
    question_first: bool = False,
    name: str = "prompt",
  ) -> prompts.EncodedPrompt:
    """One question about one video, the assistant's turn opened. frames=None: the question alone."""
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
    """Like `encode`, for a video whose features [media, …] are known.

    shape: number, height and width of its frames.
    """
    ...

  def encode_conversation(
    self, turns: Sequence[conversation.Message], *, open_reply: bool = True, name: str = "prompt"
  ) -> prompts.EncodedPrompt:
    """A conversation with images and videos anywhere in it.

    open_reply: it ends with the head of the assistant's next turn.
    """
    ...

  def continue_conversation(
    self,
    turns: Sequence[conversation.Message],
    *,
    after: Sequence[int] | Int[np.ndarray, "time"],
    name: str = "observation",
  ) -> prompts.EncodedPrompt:
    """What follows the reply `after` (token ids) in a conversation. Positions count from 0."""
    ...

  def encode_tokens(self, tokens: Sequence[int], name: str = "reply") -> prompts.EncodedPrompt:
    """Tokens of text as they are. Positions count from 0."""
    ...

  def encode_reply(self, text: str) -> list[int]:
    """Tokens of a whole reply, the end of the turn included."""
    ...

  def reply_length(self, text: str, longest: int) -> int:
    """The number of tokens of a reply, or an upper bound that is at most `longest`."""
    ...

  def decode(self, ids: Sequence[int] | Int[np.ndarray, "time"]) -> str:
    """Text of a reply; special tokens leave nothing."""
    ...

  def ends(self, ids: Sequence[int] | Int[np.ndarray, "time"]) -> list[int]:
    """How many characters of `decode` each token and those before it make."""
    ...

  def count_media_tokens(self, shape: tuple[int, int, int], name: str) -> int:
    """Those of a video, of whose frames number, height and width (pixels) are given."""
    ...

  def resized(self, size: tuple[int, int], name: str = "frame") -> tuple[int, int]:
    """Height and width (pixels) that a frame of `size` is given to the tower with."""
    ...

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
    """Raises what `encode` and `collate` would raise for a video of this shape."""
    ...

  def sizes(
    self,
    encoded: Sequence[prompts.EncodedPrompt],
    *,
    prefix_buckets: Sequence[int],
    frame_buckets: Sequence[int],
    patch_buckets: Sequence[int],
  ) -> prompts.PromptSizes:
    """The smallest buckets that hold all of these prompts."""
    ...

  def collate(
    self,
    encoded: Sequence[prompts.EncodedPrompt],
    *,
    prefix_buckets: Sequence[int],
    frame_buckets: Sequence[int],
    patch_buckets: Sequence[int],
  ) -> records.Prompt:
    """Stacks prompts, padded on each axis to the smallest bucket that holds the longest of them."""
    ...

  def pad(
    self, encoded: Sequence[prompts.EncodedPrompt], sizes: prompts.PromptSizes
  ) -> records.Prompt:
    """Prompts of at most these sizes, stacked."""
    ...

  def stack_frames(
    self, encoded: Sequence[prompts.EncodedPrompt], sizes: prompts.PromptSizes
  ) -> PyTree:
    """Vision inputs [prompts, frames, patches, …] of prompts whose features are not known."""
    ...

  def shuffle_frames(
    self,
    media_index: Int[np.ndarray, "prompts prefix"],
    encoded: Sequence[prompts.EncodedPrompt],
    rng: np.random.Generator,
  ) -> Int[np.ndarray, "prompts prefix"]:
    """The media index of the prompts with each one's frames shuffled; their times stay."""
    ...
