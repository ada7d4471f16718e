"""Qwen2.5-VL weights from a Hugging Face directory: config.json and safetensors, whole or in shards.

Tensors are read one by one into the stacked arrays of the model, so the peak is the model and one tensor. Names are
those of the releases (`model.layers…`, `visual…`) or with the prefixes that newer versions of transformers write
(`model.language_model.layers…`, `model.visual…`).
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import math
import pathlib

from flax import nnx
import jax.numpy as jnp
import numpy as np
import safetensors

from vr_jax import errors
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import model as model_lib

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Our parameter -> the file's tensor, {} standing for the layer.
NAMES = {
  "text.embedding": "embed_tokens.weight",
  "text.head": "lm_head.weight",
  "text.norm": "norm.weight",
  "text.layers.norm1": "layers.{}.input_layernorm.weight",
  "text.layers.query": "layers.{}.self_attn.q_proj.weight",
  "text.layers.query_bias": "layers.{}.self_attn.q_proj.bias",
  "text.layers.key": "layers.{}.self_attn.k_proj.weight",
  "text.layers.key_bias": "layers.{}.self_attn.k_proj.bias",
  "text.layers.value": "layers.{}.self_attn.v_proj.weight",
  "text.layers.value_bias": "layers.{}.self_attn.v_proj.bias",
  "text.layers.out": "layers.{}.self_attn.o_proj.weight",
  "text.layers.norm2": "layers.{}.post_attention_layernorm.weight",
  "text.layers.gate": "layers.{}.mlp.gate_proj.weight",
  "text.layers.up": "layers.{}.mlp.up_proj.weight",
  "text.layers.down": "layers.{}.mlp.down_proj.weight",
  "vision.patch": "visual.patch_embed.proj.weight",
  "vision.blocks.norm1": "visual.blocks.{}.norm1.weight",
  "vision.blocks.qkv": "visual.blocks.{}.attn.qkv.weight",
  "vision.blocks.qkv_bias": "visual.blocks.{}.attn.qkv.bias",
  "vision.blocks.out": "visual.blocks.{}.attn.proj.weight",
  "vision.blocks.out_bias": "visual.blocks.{}.attn.proj.bias",
  "vision.blocks.norm2": "visual.blocks.{}.norm2.weight",
  "vision.blocks.gate": "visual.blocks.{}.mlp.gate_proj.weight",
  "vision.blocks.gate_bias": "visual.blocks.{}.mlp.gate_proj.bias",
  "vision.blocks.up": "visual.blocks.{}.mlp.up_proj.weight",
  "vision.blocks.up_bias": "visual.blocks.{}.mlp.up_proj.bias",
  "vision.blocks.down": "visual.blocks.{}.mlp.down_proj.weight",
  "vision.blocks.down_bias": "visual.blocks.{}.mlp.down_proj.bias",
  "vision.merger.norm": "visual.merger.ln_q.weight",
  "vision.merger.hidden": "visual.merger.mlp.0.weight",
  "vision.merger.hidden_bias": "visual.merger.mlp.0.bias",
  "vision.merger.out": "visual.merger.mlp.2.weight",
  "vision.merger.out_bias": "visual.merger.mlp.2.bias",
}
TABLES = ("text.embedding", "text.head")  # kept as they are: [vocab, embed]
MERGED_INPUTS = (
  "text.layers.out",
  "vision.blocks.out",
)  # [heads, head_dim] is one axis in the file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
  """Where one tensor of the file goes: a parameter, its layer, and the two shapes."""

  parameter: str
  layer: int | None
  file_shape: tuple[int, ...]
  shape: tuple[int, ...]

  def fit(self, tensor: np.ndarray) -> np.ndarray:
    """The tensor in our shape: the file keeps matrices output first, we input first."""
    if self.parameter in TABLES or len(self.file_shape) == 1:
      return tensor.reshape(self.shape)
    return tensor.reshape(self.file_shape[0], -1).T.reshape(self.shape)


def load_pretrained(
  directory: str | pathlib.Path, *, param_dtype: str = "float32"
) -> tuple[config_lib.Config, nnx.State]:
  """Reads a model. The state is that of `nnx.split(Qwen2_5_VL(config, …))`, NumPy arrays in `param_dtype`: the
  caller decides on which devices each lies.

  Raises:
    InputError: no Qwen2.5-VL model, a file missing or damaged, a tensor missing, unknown, twice or of a wrong shape;
      the message names the file and the tensor.
  """
  directory = pathlib.Path(directory)
  config = config_lib.Config.from_json(directory / "config.json")
  state = nnx.eval_shape(lambda: nnx.state(model_lib.Qwen2_5_VL(config, rngs=nnx.Rngs(0))))
  leaves = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
  slots = _slots(config, {name: leaf.shape for name, leaf in leaves.items()})
  required = frozenset(slots)
  if config.tie_word_embeddings:
    # Some files hold the embedding a second time under this name; it is read and must be the same.
    slots["lm_head.weight"] = slots["embed_tokens.weight"]
  located = _locate(directory, frozenset(slots), required)
  dtype = jnp.dtype(param_dtype)
  arrays = {name: np.empty(leaf.shape, dtype) for name, leaf in leaves.items()}
  done = set()
  for path, name, tensor in _tensors(located, slots):
    slot = slots[name]
    target = arrays[slot.parameter]
    target = target if slot.layer is None else target[slot.layer]
    values = slot.fit(tensor).astype(dtype)
    if (slot.parameter, slot.layer) in done and not np.array_equal(target, values):
      raise errors.InputError(
        f"{path}: lm_head.weight is not the embedding, though config.json says tie_word_embeddings"
      )
    done.add((slot.parameter, slot.layer))
    target[...] = values
  filled = [
    (path, leaf.replace(arrays.pop(".".join(map(str, path)))))
    for path, leaf in nnx.to_flat_state(state)
  ]
  return config, nnx.from_flat_state(filled)


def _slots(config: config_lib.Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Slot]:
  """Every tensor that the model needs, by its name in the file without prefixes."""
  vision = config.vision
  slots = {}
  for parameter, shape in shapes.items():
    stacked = "{}" in NAMES[parameter]
    inner = shape[1:] if stacked else shape
    inputs = 2 if parameter in MERGED_INPUTS else 1
    if parameter in TABLES:
      file_shape = inner
    elif parameter.endswith("_bias") or len(inner) == 1:
      file_shape = (math.prod(inner),)
    elif parameter == "vision.patch":
      size = (vision.patch_size, vision.patch_size)
      file_shape = (inner[1], vision.in_channels, vision.temporal_patch_size, *size)
    else:
      file_shape = (math.prod(inner[inputs:]), math.prod(inner[:inputs]))
    for layer in range(shape[0]) if stacked else (None,):
      name = NAMES[parameter].format(layer)
      slots[name] = Slot(parameter=parameter, layer=layer, file_shape=file_shape, shape=inner)
  return slots


def _bare(name: str) -> str:
  """A tensor's name without the prefixes that come and go between versions."""
  return name.removeprefix("model.").removeprefix("language_model.").removeprefix("model.")


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of a model, from its index where there is one."""
  index, single = directory / INDEX, directory / SINGLE
  if not index.is_file():
    if not single.is_file():
      raise errors.InputError(f"{directory}: has neither {SINGLE} nor {INDEX}")
    return [single]
  try:
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    paths = [directory / name for name in sorted(set(weight_map.values()))]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.InputError(f"{index}: no valid index ({error!r}); download it again") from error
  for path in paths:
    if not path.is_file():
      raise errors.InputError(f"{path}: no such file, but {index.name} names it; download it again")
  return paths


def _locate(
  directory: pathlib.Path, known: frozenset[str], required: frozenset[str]
) -> dict[pathlib.Path, dict[str, str]]:
  """Bare and full names of the tensors in each file, once it is known that they are those of the model."""
  located, seen = {}, {}
  for path in _files(directory):
    located[path] = {}
    for full in _open(path).keys():  # noqa: SIM118
      name = _bare(full)
      if name in seen:
        raise errors.InputError(f"{path}: tensor {full} is also in {seen[name]}")
      if name not in known:
        raise errors.InputError(
          f"{path}: tensor {full} is none of this model's; wrong config.json?"
        )
      seen[name] = path
      located[path][name] = full
  missing = sorted(required - seen.keys())
  if missing:
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise errors.InputError(f"{directory}: no tensor {', '.join(missing[:3])}{more}")
  return located


def _tensors(
  located: Mapping[pathlib.Path, Mapping[str, str]], slots: Mapping[str, Slot]
) -> Iterator[tuple[pathlib.Path, str, np.ndarray]]:
  """Tensors one by one, their shapes checked before they are read."""
  for path, names in located.items():
    handle = _open(path)
    for name, full in names.items():
      shape = tuple(handle.get_slice(full).get_shape())
      if shape != slots[name].file_shape:
        raise errors.InputError(
          f"{path}: tensor {full} has shape {shape}, but config.json asks for {slots[name].file_shape}"
        )
      yield path, name, handle.get_tensor(full)


def _open(path: pathlib.Path) -> safetensors.safe_open:
  try:
    return safetensors.safe_open(path, framework="np")
  except (safetensors.SafetensorError, OSError) as error:
    raise errors.InputError(f"{path}: damaged safetensors ({error}); download it again") from error
