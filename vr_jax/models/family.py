"""ModelFamily: the functions and constants by which the project trains one kind of model."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import pathlib
from typing import Any

from flax import nnx
from jaxtyping import PyTree
import ml_collections
import tokenizers

from vr_jax import errors, plain_json
from vr_jax.models import interface
from vr_jax.models.common import flops, lora, weight_mapping

GROUPS = ("vision", "connector", "text", "head")
PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")


def limit_frame_pixels(
  section: ml_collections.ConfigDict, least: int, most: int, frames: int
) -> None:
  """Sets the limits of a model that limits each frame, whatever the number of frames."""
  del frames
  section.min_pixels, section.max_pixels = least, most


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFamily:
  """Functions and constants of one `model_type`; each `models/<name>/family.py` defines one.

  make_config(fields): builds a config from the fields of a config.json. Raises InputError naming
    a field.
  with_options(config, section): applies the dtype, kernels and other computation options of a
    recipe's section `config.model`.
  make_model(config, rngs=…, layout=…): builds the network with random weights.
  model_files(config, source): returns the fields of an exported config.json, and other texts by
    file name that it refers to. source: the fields of the config.json that the weights started
    from, or None.
  make_processor(config, tokenizer, section): the section has min_pixels, max_pixels, those of
    videos, system and resize_backend. Raises InputError naming a field of the section.
  limit_pixels(section, least, most, frames): sets the pixel limits of a section `config.model` in
    place: `least` to `most` for an image, and for each frame of a video of so many frames.
  load_tokenizer(path): reads a tokenizer.json, or that of a model directory. Raises InputError.
  train_tokenizer(texts, vocab_size): trains a tokenizer.
  tokenizer_fields(tokenizer): returns the config fields that depend on the tokenizer.
  forward_flops(config, frames=, patches=, prefix=, group=, time=): counts FLOPs of one prompt and
    its replies.
  processor_files(processor, sampling): returns the texts of an export's processor files by name,
    None for one that must not be copied. sampling: fields of transformers' video processors by
    which frames are chosen.

  patch_fields(config): returns the sizes of patches or images, named as in the files of a
    processor; these must say the same.

  weights: maps parameters to the tensors of a Hugging Face file.
  parameter_groups: for each of GROUPS, dotted names of modules or parameters; each parameter is in
    one group. `encode_vision` reads the groups vision and connector only.
  lora_targets: projections that may get adapters.
  end_token, pad_token: as the tokenizer spells them.
  template_words: text that the chat template adds, for training a tokenizer.
  presets: config.json fields of released models, by name.
  organization: of the released models on the Hugging Face Hub.
  token_fields: ids of special tokens, for use without a tokenizer; no shape depends on them.
  cannot_shuffle: why frames can't be reordered among their features; empty if they can.
  casts_matrices: whether each pass casts every parameter with at least two named axes, besides
    `layers`, to the activations' dtype before it computes with it. A copy in that dtype then gives
    the same bits, and a reference takes half the memory.
  """

  model_type: str
  make_config: Callable[[Mapping[str, Any]], interface.ModelConfig]
  with_options: Callable[[Any, ml_collections.ConfigDict], interface.ModelConfig]
  make_model: Callable[..., nnx.Module]
  model_files: Callable[[Any, Mapping[str, Any] | None], tuple[dict[str, Any], Mapping[str, str]]]
  make_processor: Callable[
    [Any, tokenizers.Tokenizer, ml_collections.ConfigDict], interface.Processor
  ]
  load_tokenizer: Callable[[str | pathlib.Path], tokenizers.Tokenizer]
  train_tokenizer: Callable[[Iterable[str], int], tokenizers.Tokenizer]
  tokenizer_fields: Callable[[tokenizers.Tokenizer], dict[str, int]]
  forward_flops: Callable[..., flops.Forward]
  weights: weight_mapping.WeightMapping
  parameter_groups: Mapping[str, tuple[str, ...]]
  lora_targets: lora.Targets
  end_token: str
  pad_token: str
  limit_pixels: Callable[[ml_collections.ConfigDict, int, int, int], None] = limit_frame_pixels
  processor_files: Callable[[Any, Mapping[str, Any]], Mapping[str, str | None]] = lambda *_: {}
  patch_fields: Callable[[Any], Mapping[str, Any]] = lambda _: {}
  template_words: tuple[str, ...] = ()
  presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  organization: str = ""
  token_fields: Mapping[str, int] = dataclasses.field(default_factory=dict)
  cannot_shuffle: str = ""
  casts_matrices: bool = False

  def __post_init__(self) -> None:
    if set(self.parameter_groups) - set(GROUPS):
      raise ValueError(f"{self.model_type}: groups of parameters are {', '.join(GROUPS)}")

  @property
  def tower(self) -> tuple[str, ...]:
    """Names of the modules whose parameters `encode_vision` reads."""
    return (*self.parameter_groups["vision"], *self.parameter_groups.get("connector", ()))

  def read_config(self, path: str | pathlib.Path) -> interface.ModelConfig:
    """Reads a config.json.

    Raises InputError naming the file if this family can't use it, or if a processor's file beside
    it contradicts it.
    """
    path = pathlib.Path(path)
    fields = read_fields(path)
    try:
      config = self.make_config(fields)
    except errors.InputError as error:
      raise errors.InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, ArithmeticError) as error:
      raise errors.InputError(
        f"{path}: {error!r:.200} in the sizes of the model; download it again"
      ) from error
    for name in PROCESSOR_FILES:
      beside = path.parent / name
      told = read_fields(beside) if beside.is_file() else {}
      for field, size in self.patch_fields(config).items():
        if told.get(field, size) != size:
          raise errors.InputError(
            f"{beside}: {field} is {told[field]!r:.60}, but {path.name} says {size}; "
            "take both files from one model"
          )
    return config

  def abstract_params(self, config: interface.ModelConfig) -> PyTree:
    """Returns shapes and logical axes of a model's parameters, without allocating them."""
    return nnx.eval_shape(lambda: nnx.state(self.make_model(config, rngs=nnx.Rngs(0))))

  def adapters(self, section: ml_collections.ConfigDict) -> lora.Adapters | None:
    """The adapters of a recipe's section `config.model.lora`; None if its rank is 0."""
    if not section["rank"]:
      return None
    chosen = {
      half: known if tuple(section[half]) == ("all",) else tuple(section[half])
      for half, known in (("text", self.lora_targets.text), ("vision", self.lora_targets.vision))
    }
    return lora.Adapters(
      rank=section["rank"], alpha=section["alpha"], targets=self.lora_targets, **chosen
    )


def read_fields(path: pathlib.Path) -> dict[str, Any]:
  """Reads the fields of a config.json. Raises InputError naming the file if it is not one."""
  if not path.is_file():
    raise errors.InputError(f"{path}: no such file; a model directory holds a config.json")
  try:
    fields = plain_json.parse(path.read_bytes())
  except (OSError, ValueError) as error:
    raise errors.InputError(f"{path}: not valid JSON ({error}); download it again") from error
  if not isinstance(fields, dict):
    raise errors.InputError(f"{path}: holds no JSON object; download it again")
  return fields


def bound(function: Callable[..., Any], family: ModelFamily) -> Callable[..., Any]:
  """Binds `family=` of a function in `common`, for a family's package to export."""
  return functools.wraps(function)(functools.partial(function, family=family))
