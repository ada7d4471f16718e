"""The protocol that the config of every model family implements."""

from typing import Any, ClassVar, Protocol, runtime_checkable

from vr_jax.models.common import flops, prompts


@runtime_checkable
class ModelConfig(Protocol):
  """Sizes and constants of a model: a frozen, hashable dataclass."""

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
  def decode_attention(self) -> str:
    """Attention of decoding: xla or pallas (common/attention.py)."""
    ...

  @property
  def logit_chunk(self) -> int:
    """Largest size of a vocabulary chunk in the chunked log-softmax."""
    ...

  @property
  def tie_word_embeddings(self) -> bool:
    """Whether the output (lm_head) matrix is the token embedding."""
    ...

  @property
  def vocab_size(self) -> int:
    """Rows of the token embedding."""
    ...

  @property
  def hidden_size(self) -> int:
    """Width of a hidden state of the language model."""
    ...

  @property
  def max_position_embeddings(self) -> int:
    """The most tokens that a prompt and its reply may have together."""
    ...

  @property
  def position_axes(self) -> int:
    """Axes of a token's position: 1, or 3 for time, height and width."""
    ...

  @property
  def text_sizes(self) -> flops.TextSizes:
    """Sizes of the language model, for FLOP counts and memory plans."""
    ...

  @property
  def vision_shapes(self) -> prompts.VisionShapes:
    """Shapes of the vision tower's inputs and features."""
    ...

  @property
  def architecture(self) -> dict[str, Any]:
    """Sizes by name; configs with equal `architecture` can share checkpoints."""
    ...

  @property
  def tower_fields(self) -> dict[str, Any]:
    """Config fields that features depend on, for the key of a feature cache. JSON-able."""
    ...
