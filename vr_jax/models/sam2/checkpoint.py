"""Reading and writing of weights: safetensors with transformers' names, or with Facebook's.

Pickled checkpoints are not read: to open one is to run what it says.
"""

from collections.abc import Mapping
import json
import pathlib

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike
import numpy as np
import safetensors.numpy

from vr_jax import atomic, errors
from vr_jax.models.common import tensor_file
from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import facebook_names, parameters

FILE, CONFIG = "model.safetensors", "config.json"
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
# The two copies of one matrix; a file may have only one of them.
_TWINS = (
  "shared_image_embedding.positional_embedding",
  "prompt_encoder.shared_embedding.positional_embedding",
)


def load(
  path: str | pathlib.Path, dtype: DTypeLike = "float32"
) -> tuple[config_lib.Sam2Config, dict[str, Array]]:
  """Reads a model's config and parameters.

  path: a directory with one .safetensors file, or that file. With transformers' names there is
    a config.json beside it. With Facebook's names the file itself tells which release it is; other
    sizes need a config.json, too.

  Raises:
    InputError: nothing there, no SAM2, a pickled or damaged file, a tensor that is missing, unknown
      or of a wrong shape.
  """
  config, sources = _open(find(pathlib.Path(path)))
  target, params = jnp.dtype(dtype), {}
  for name, parameter in parameters.parameters(config).items():
    parts = [tensor.view() for tensor in sources[name]]
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    params[name] = jnp.asarray(parameter.from_file(values), target)
  return config, params


def check(path: str | pathlib.Path) -> None:
  """Raises the InputError that `load` would raise. Reads names and shapes only."""
  _open(find(pathlib.Path(path)))


def save(
  config: config_lib.Sam2Config, params: Mapping[str, Array], path: str | pathlib.Path
) -> None:
  """Writes a directory that `load` and transformers' Sam2VideoModel read, in float32.

  Raises InputError if it can't be written or is there already.
  """
  specs = parameters.parameters(config)
  tensors = {name: specs[name].to_file(np.asarray(x, np.float32)) for name, x in params.items()}
  with atomic.directory(pathlib.Path(path)) as directory:
    safetensors.numpy.save_file(tensors, directory / FILE, metadata={"format": "pt"})
    text = json.dumps(config_lib.to_dict(config), indent=2)
    (directory / CONFIG).write_text(text + "\n", encoding="utf-8")


def _how_to_get(path: pathlib.Path) -> str:
  return (
    "fetch weights with: hf download facebook/sam2.1-hiera-large model.safetensors config.json "
    f"--local-dir {path} (or -base-plus, -small, -tiny)"
  )


def find(path: pathlib.Path) -> pathlib.Path:
  """The one safetensors file that a path means.

  Raises InputError if there is none; it says where to get one.
  """
  if not path.exists():
    raise errors.InputError(f"{path}: no such SAM2 weights; {_how_to_get(path)}")
  if path.is_dir():
    files = sorted(path.glob("*.safetensors"))
    if (path / FILE) in files:
      return path / FILE
    if len(files) > 1:
      names = ", ".join(file.name for file in files)
      raise errors.InputError(f"{path}: holds {names}; name the file that is meant")
    if files:
      return files[0]
    pickled = [file for file in sorted(path.iterdir()) if file.suffix in PICKLED]
    if not pickled:
      raise errors.InputError(f"{path}: holds no .safetensors file; {_how_to_get(path)}")
    path = pickled[0]
  if path.suffix in PICKLED:
    raise errors.InputError(
      f"{path}: is a pickle, which is not read, as it could run code; convert it once with: python "
      '-c "import torch, safetensors.torch as s; '
      f"s.save_file(torch.load('{path}', weights_only=True)['model'], "
      f"'{path.with_suffix('.safetensors')}')\""
    )
  return path


Stored = Mapping[str, tensor_file.StoredTensor]
Sources = dict[str, list[tensor_file.StoredTensor]]


def _open(file: pathlib.Path) -> tuple[config_lib.Sam2Config, Sources]:
  """The config of a model, and the tensors of each of its parameters."""
  stored = tensor_file.tensors(file)
  if any(name.startswith("sam_mask_decoder.") for name in stored):
    return _facebook(file, stored)
  return _transformers(file, stored)


def _facebook(file: pathlib.Path, stored: Stored) -> tuple[config_lib.Sam2Config, Sources]:
  shapes = {name: tensor.shape for name, tensor in stored.items()}
  config = facebook_names.recognise(shapes)
  if config is None and (file.parent / CONFIG).is_file():
    config = config_lib.read_config(file.parent / CONFIG)
    _check(file, facebook_names.expected_shapes(config), stored)
  if config is None:
    # Say what differs from the release that shares the most tensors.
    candidates = [
      config_lib.released(size, version) for size in config_lib.SIZES for version in ("2.1", "2.0")
    ]
    nearest = max(
      (facebook_names.expected_shapes(each) for each in candidates),
      key=lambda expected: len(expected.items() & shapes.items()),
    )
    _check(file, nearest, stored)
  assert config is not None
  names = parameters.parameters(config)
  return config, {name: [stored[t] for t in facebook_names.tensors_of(name)] for name in names}


def _transformers(file: pathlib.Path, stored: Stored) -> tuple[config_lib.Sam2Config, Sources]:
  beside = file.parent / CONFIG
  if not beside.is_file():
    if "mask_decoder.mask_tokens.weight" not in stored:
      raise errors.InputError(f"{file}: holds no SAM2; {_how_to_get(file.parent)}")
    raise errors.InputError(f"{beside}: no such file; fetch it from where {file.name} comes from")
  config = config_lib.read_config(beside)
  found = dict(stored)
  for one, other in (_TWINS, _TWINS[::-1]):
    if one not in found and other in found:
      found[one] = found[other]
  shapes = {name: parameter.shape for name, parameter in parameters.parameters(config).items()}
  _check(file, shapes, found)
  return config, {name: [found[name]] for name in shapes}


def _check(file: pathlib.Path, expected: Mapping[str, tuple[int, ...]], stored: Stored) -> None:
  """Raises InputError unless a file has exactly these tensors."""
  if missing := sorted(expected.keys() - stored.keys()):
    raise errors.InputError(
      f"{file}: no tensor {missing[0]} (of {len(missing)} that SAM2 has and this file has not); "
      f"{_how_to_get(file.parent)}"
    )
  if unknown := sorted(stored.keys() - expected.keys()):
    raise errors.InputError(
      f"{file}: tensor {unknown[0]} is none of this SAM2's; {_how_to_get(file.parent)}"
    )
  for name, shape in expected.items():
    if stored[name].shape != shape:
      raise errors.InputError(
        f"{file}: tensor {name} has shape {stored[name].shape}, but this SAM2's is {shape}; "
        f"{_how_to_get(file.parent)}"
      )
