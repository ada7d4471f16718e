"""A family of models: all that the project needs to train one, by name."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import json
import pathlib
from typing import Any

from flax import nnx
from jaxtyping import PyTree
import ml_collections
import tokenizers

from vr_jax import errors
from vr_jax.models import interface
from vr_jax.models.common import flops, lora, weight_mapping

GROUPS = ("vision", "connector", "text", "head")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFamily:
  """Functions and constants of one `model_type`; each `models/<name>/family.py` has one.

  make_config(fields): the config that the fields of a config.json say. Raises InputError naming a
  field.
  with_options(config, section): that config with what a recipe's section `config.model` says of the
  arithmetic.
  make_model(config, rngs=…, layout=…): the network with random weights.
  config_fields(config): the fields of a config.json of its own.
  make_processor(config, tokenizer, section): section has min_pixels, max_pixels, system and
  resampling.
  load_tokenizer(path): from a tokenizer.json or the directory of a model. Raises InputError.
  train_tokenizer(texts, vocab_size): learns one. tokenizer_fields(tokenizer): what a config takes
  from it.
  forward_flops(config, frames=, patches=, prefix=, group=, time=): of one prompt and its replies.

  weights: the tensors of a Hugging Face file. lora_targets: projections that may get adapters.
  parameter_groups: group (of GROUPS) -> dotted names of what holds its parameters; each parameter
  is in one group. Vision and
    connector are all that `encode_vision` reads.
  template_words: what the chat template puts around texts, for a tokenizer that is trained.
  presets: fields of the config.json of releases, by their names. token_fields: ids of special
  tokens, where no tokenizer is at
    hand and they change no shape.
  end_token, pad_token: as its tokenizer spells them.
  """

  model_type: str
  make_config: Callable[[Mapping[str, Any]], interface.ModelConfig]
  with_options: Callable[[Any, ml_collections.ConfigDict], interface.ModelConfig]
  make_model: Callable[..., nnx.Module]
  config_fields: Callable[[Any], dict[str, Any]]
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
  template_words: tuple[str, ...] = ()
  presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  token_fields: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if set(self.parameter_groups) - set(GROUPS):
      raise ValueError(f"{self.model_type}: groups of parameters are {', '.join(GROUPS)}")

  @property
  def tower(self) -> tuple[str, ...]:
    """Names of what holds the parameters that `encode_vision` reads."""
    return (*self.parameter_groups["vision"], *self.parameter_groups.get("connector", ()))

  def read_config(self, path: str | pathlib.Path) -> interface.ModelConfig:
    """Reads a config.json. Raises InputError naming the file where it is none of this family."""
    path = pathlib.Path(path)
    fields = read_fields(path)
    try:
      return self.make_config(fields)
    except errors.InputError as error:
      raise errors.InputError(f"{path}: {error}") from error

  def abstract_params(self, config: interface.ModelConfig) -> PyTree:
    """Shapes and logical axes of a model's parameters, without the parameters."""
    return nnx.eval_shape(lambda: nnx.state(self.make_model(config, rngs=nnx.Rngs(0))))

  def adapters(self, section: ml_collections.ConfigDict) -> lora.Adapters | None:
    """Those that a recipe's section `config.model.lora` asks for; None where rank is 0."""
    if not section["rank"]:
      return None
    chosen = {"text": tuple(section["text"]), "vision": tuple(section["vision"])}
    return lora.Adapters(
      rank=section["rank"], alpha=section["alpha"], targets=self.lora_targets, **chosen
    )


def read_fields(path: pathlib.Path) -> dict[str, Any]:
  """The fields of a config.json. Raises InputError naming the file where it is none."""
  if not path.is_file():
    raise errors.InputError(f"{path}: no such file; a model directory holds a config.json")
  try:
    fields = json.loads(path.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise errors.InputError(f"{path}: not valid JSON ({error}); download it again") from error
  if not isinstance(fields, dict):
    raise errors.InputError(f"{path}: holds no JSON object; download it again")
  return fields


def bound(function: Callable[..., Any], family: ModelFamily) -> Callable[..., Any]:
  """The function with `family=` given: how a family's package offers those of `common`."""
  return functools.wraps(function)(functools.partial(function, family=family))
