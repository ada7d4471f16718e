"""Export of parameters: a model directory for transformers, an adapter directory for PEFT."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import itertools
import json
import pathlib
import re
import shutil
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PyTree
import numpy as np

from vr_jax import errors
from vr_jax.models import family as family_lib
from vr_jax.models import interface
from vr_jax.models.common import checkpoint, lora, streaming, tensor_file, weight_mapping

FILE_BYTES = 5 * 10**9  # size of a file; a larger tensor gets its own

# Files that are copied from a source directory, besides its weights and config.json.
CARRIED = (
  "LICENSE",
  "added_tokens.json",
  "chat_template.jinja",
  "chat_template.json",
  "generation_config.json",
  "merges.txt",
  "preprocessor_config.json",
  "processor_config.json",
  "special_tokens_map.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "video_preprocessor_config.json",
  "vocab.json",
)


def save_pretrained(
  params: PyTree,
  path: str | pathlib.Path,
  *,
  config: interface.ModelConfig,
  family: family_lib.ModelFamily,
  adapters: lora.Adapters | None = None,
  source: str | pathlib.Path | None = None,
  files: Mapping[str, str | None] | None = None,
  dtype: DTypeLike | None = None,
  file_bytes: int = FILE_BYTES,
  piece_bytes: int = checkpoint.PIECE_BYTES,
  progress: Callable[[int], None] = lambda pieces: None,
) -> None:
  """Writes a directory that `from_pretrained` and transformers read.

  It is written under a temporary name, then renamed. All processes that share `params` call this;
  the first one writes, on a shared disk.

  adapters: the adapters in `params`; each is merged into its weight.
  source: a directory whose config.json, tokenizer and other small files are copied.
  files: more text files by name; they replace copied ones. None: the file is not copied.
  dtype: of the tensors; None: the dtype of each parameter.
  file_bytes: size at which the next file is started.
  piece_bytes: bytes of a parameter on the host at once, at least one tensor of a file.
  progress: called for each piece that is to be written, with their number so far, in all processes.

  Raises:
    InputError: `path` exists or can't be written, or the parameters don't match `config`.
  """
  base = weight_mapping.flat(lora.strip_adapters(params) if adapters else params)
  _check_shapes(base, family.abstract_params(config))
  dtypes = {name: jnp.dtype(dtype or variable.dtype) for name, variable in base.items()}

  def array_of(name: str) -> Array:
    if adapters:
      return lora.merge_adapter(params, name, adapters, dtypes[name])
    return base[name].get_value().astype(dtypes[name])

  slots = {
    name: dataclasses.replace(slot, names=tuple(map(family.weights.released, slot.names)))
    for name, slot in family.weights.slots(config, base).items()
  }
  stream = streaming.tensors(slots, array_of, piece_bytes=piece_bytes)
  stream = _counted(stream, progress)

  def write(directory: pathlib.Path) -> None:
    origin = None if source is None else pathlib.Path(source)
    # What the network does not use is copied, so that readers of the release miss nothing.
    copied = _unused(origin, config, family, dtype)
    listed = [*streaming.entries(slots, dtypes), *copied]
    values = (stored.view().astype(entry.dtype) for entry, stored in copied.items())
    streaming.write_files(directory, listed, itertools.chain(stream, values), file_bytes)
    widest = max(dtypes.values(), key=lambda d: d.itemsize)
    read = None if origin is None else family_lib.read_fields(origin / "config.json")
    fields, beside = family.model_files(config, read)
    _write_texts(directory, fields, origin, {**beside, **(files or {})}, widest)

  streaming.write_directory(pathlib.Path(path), stream, write)


def _counted(stream: Iterator[np.ndarray], progress: Callable[[int], None]) -> Iterator[np.ndarray]:
  for number, piece in enumerate(stream, start=1):
    progress(number)
    yield piece


def save_adapter(
  params: PyTree,
  path: str | pathlib.Path,
  *,
  adapters: lora.Adapters,
  base: str,
  family: family_lib.ModelFamily,
  files: Mapping[str, str] | None = None,
) -> None:
  """Writes the adapters in `params` as a directory that PEFT loads. All processes call this.

  base: name or directory of the adapted model, for PEFT's `base_model_name_or_path`.
  files: more text files by name.

  Raises InputError if `path` exists or can't be written.
  """
  flat, slots = weight_mapping.flat(params), {}
  for parameter in adapters.parameters:
    ends = [parameter + end for end in lora.ENDS]
    found = family.weights.adapter_slots(parameter, [flat[name].shape for name in ends])
    slots |= dict(zip(ends, found, strict=True))
  dtypes = {name: jnp.dtype(flat[name].dtype) for name in slots}
  stream = streaming.tensors(slots, lambda name: flat[name].get_value())

  def write(directory: pathlib.Path) -> None:
    entries = streaming.entries(slots, dtypes)
    streaming.write_file(directory / "adapter_model.safetensors", entries, stream)
    depths = {name: flat[name].shape[0] for name in adapters.parameters}
    _write_json(directory / "adapter_config.json", adapter_fields(adapters, base, family, depths))
    for name, text in (files or {}).items():
      (directory / name).write_text(text, encoding="utf-8")

  streaming.write_directory(pathlib.Path(path), stream, write)


def adapter_fields(
  adapters: lora.Adapters, base: str, family: family_lib.ModelFamily, depths: Mapping[str, int]
) -> dict[str, Any]:
  """Builds the fields of PEFT's adapter_config.json. depths: layers of each adapted parameter."""
  # Layers by number: a model may have more of them than are used.
  modules = [
    re.escape(family.weights.module(name)).replace(
      r"\{\}", f"({'|'.join(map(str, range(depths[name])))})"
    )
    for name in adapters.parameters
  ]
  return {
    "peft_type": "LORA",
    "task_type": None,
    "base_model_name_or_path": base,
    "r": adapters.rank,
    "lora_alpha": adapters.alpha,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    # A regular expression, since vision and text have projections of the same names.
    "target_modules": "|".join(modules),
  }


def _unused(
  source: pathlib.Path | None,
  config: interface.ModelConfig,
  family: family_lib.ModelFamily,
  dtype: DTypeLike | None,
) -> dict[tensor_file.TensorEntry, tensor_file.StoredTensor]:
  """The tensors of a source's files that the family has no parameters for, and their new entries.

  dtype: of the entries; None: as they are stored.
  """
  if source is None or not checkpoint.has_weights(source):
    return {}
  return {
    tensor_file.TensorEntry(
      name=family.weights.released(stored.name),
      dtype=jnp.dtype(dtype or stored.dtype),
      shape=stored.shape,
    ): stored
    for stored in checkpoint.unused_tensors(source, config, family=family)
  }


def _check_shapes(given: Mapping[str, Any], abstract_params: PyTree) -> None:
  asked = weight_mapping.flat(abstract_params)
  for name in sorted(asked.keys() | given.keys()):
    there, here = (side[name].shape if name in side else None for side in (given, asked))
    if there != here:
      raise errors.InputError(
        f"parameter {name}: has shape {there}, but the config asks for {here}"
      )


def _write_texts(
  directory: pathlib.Path,
  fields: dict[str, Any],
  source: pathlib.Path | None,
  files: Mapping[str, str | None],
  dtype: np.dtype,
) -> None:
  """Writes config.json, copies the small files of the source, and writes `files`."""
  for name in CARRIED:
    if source and name not in files and (found := source / name).is_file():
      shutil.copyfile(found, directory / name)
  for half in _halves(fields):
    half |= {key: dtype.name for key in ("dtype", "torch_dtype") if key in half}
  fields.setdefault("torch_dtype", dtype.name)
  _write_json(directory / "config.json", fields)
  for name, text in files.items():
    if text is not None:
      (directory / name).write_text(text, encoding="utf-8")


def _halves(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """The sections of a config.json that may have a dtype."""
  yield fields
  yield from (fields[half] for half in ("text_config", "vision_config") if half in fields)


def _write_json(path: pathlib.Path, fields: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
