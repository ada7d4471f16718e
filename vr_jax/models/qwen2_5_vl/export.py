"""Parameters as a Hugging Face directory: sharded safetensors with an index, config.json, tokenizer and the rest.

Parameters leave the devices piece by piece and go to disk as they come, so the host holds one piece and not the model.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
from typing import Any, BinaryIO

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PyTree
import numpy as np

from vr_jax import errors
from vr_jax.models.qwen2_5_vl import checkpoint, names, tensor_file
from vr_jax.models.qwen2_5_vl import config as config_lib

FILE_BYTES = 5 * 10**9  # of a file; a larger tensor gets one of its own
METADATA = {"format": "pt"}  # transformers reads the layout of PyTorch from files that say so

# What a source has beside its weights and its config.json, as far as it has it.
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
  config: config_lib.Config,
  source: str | pathlib.Path | None = None,
  files: Mapping[str, str] | None = None,
  dtype: DTypeLike | None = None,
  file_bytes: int = FILE_BYTES,
  piece_bytes: int = checkpoint.PIECE_BYTES,
) -> None:
  """Writes a directory that `from_pretrained` and transformers read. It appears whole: written aside, then renamed.

  config: the model's. source: a directory whose config.json, tokenizer and other small files are carried over.
  files: further text files by name; they take precedence. dtype: of the tensors; None: that of each parameter.
  file_bytes: at which size the next file is begun. piece_bytes: of a parameter that are on the host at once; one tensor
    of a file at least.

  All processes that share `params` call this; the first writes, on a disk that all see.

  Raises:
    InputError: `path` is there already or can't be written, or the parameters are not those of `config`.
  """
  directory = pathlib.Path(path)
  if directory.exists():
    raise errors.InputError(f"{directory}: is there already; delete it or choose another")
  _check_shapes(params, config)
  _wait("save_pretrained: begin")  # or the first might be done before another has looked
  parameters, slots = names.flat(params), names.slots(config, params)
  stream = _stream(parameters, slots, dtype, piece_bytes)
  if jax.process_index():
    for _ in stream:
      pass  # its own part of each piece is all that the first needs of it
  else:
    with _aside(directory) as partial:
      write_tensors(partial, _entries(parameters, slots, dtype), stream, file_bytes)
      _write_texts(partial, config, source, files or {}, dtype or _widest(parameters))
  _wait("save_pretrained: end")


def config_fields(config: config_lib.Config) -> dict[str, Any]:
  """The config.json of a model that has none yet, as transformers 5 writes it."""
  text = dataclasses.asdict(config.text)
  rotary = {"rope_theta": text.pop("rope_theta"), "mrope_section": text.pop("mrope_section")}
  named = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  ids = {name: value for name, value in named.items() if name.endswith("_token_id")}
  return {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": config_lib.MODEL_TYPE,
    "text_config": {
      "model_type": f"{config_lib.MODEL_TYPE}_text",
      **text,
      "hidden_act": "silu",
      "initializer_range": config.initializer_range,
      "rope_parameters": {"rope_type": "default", **rotary},
      "tie_word_embeddings": config.tie_word_embeddings,
      "bos_token_id": None,  # those of the releases would lie outside a small vocabulary
      "eos_token_id": None,
    },
    "vision_config": {
      "model_type": config_lib.MODEL_TYPE,
      **dataclasses.asdict(config.vision),
      "hidden_act": "silu",
    },
    "tie_word_embeddings": config.tie_word_embeddings,
    **ids,
  }


def _check_shapes(params: PyTree, config: config_lib.Config) -> None:
  asked = {name: leaf.shape for name, leaf in names.flat(names.abstract_params(config)).items()}
  given = {name: leaf.shape for name, leaf in names.flat(params).items()}
  for name in sorted(asked.keys() | given.keys()):
    if asked.get(name) != given.get(name):
      raise errors.InputError(
        f"parameter {name}: has shape {given.get(name)}, but the config asks for {asked.get(name)}"
      )


def _entries(
  parameters: Mapping[str, Any], slots: Mapping[str, names.Slot], dtype: DTypeLike | None
) -> list[tensor_file.Entry]:
  """All tensors, in the order in which `_stream` gives them."""
  return [
    tensor_file.Entry(
      name=names.released(tensor),
      dtype=jnp.dtype(dtype or parameters[name].dtype),
      shape=slot.file_shape,
    )
    for name, slot in slots.items()
    for tensor in slot.names
  ]


def _stream(
  parameters: Mapping[str, Any],
  slots: Mapping[str, names.Slot],
  dtype: DTypeLike | None,
  piece_bytes: int,
) -> Iterator[np.ndarray]:
  """The tensors one after another in the layout of a file, a table's in several pieces of rows."""
  for name, slot in slots.items():
    array = parameters[name].get_value()
    length = array.shape[0]
    entry = math.prod(array.shape[1:]) * array.dtype.itemsize
    # An array whose first axis is that of the file, or of layers, can be taken apart there.
    apart = slot.stacked or not slot.inputs
    count = min(max(piece_bytes // entry, 1), length) if apart else length
    for start in range(0, length, count):
      piece = _on_host(_part(array, start, min(count, length - start)))
      piece = piece.astype(dtype or piece.dtype, copy=False)
      for values in piece if slot.stacked else (piece,):
        yield slot.to_file(values) if values.shape == slot.shape else values


def _part(array: Array, start: int, count: int) -> Array:
  return array if count == array.shape[0] else _slice(array, start, count)


@functools.partial(jax.jit, static_argnames="count")
def _slice(array: Array, start: int | Array, count: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(array, start, count, axis=0)


def _on_host(array: Array) -> np.ndarray:
  """The whole array, wherever its shards lie; all processes must ask for it."""
  if array.is_fully_addressable:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def _wait(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _widest(parameters: Mapping[str, Any]) -> np.dtype:
  return max((jnp.dtype(leaf.dtype) for leaf in parameters.values()), key=lambda d: d.itemsize)


@contextlib.contextmanager
def _aside(final: pathlib.Path) -> Iterator[pathlib.Path]:
  """An empty directory that takes the name `final` when all went well, and else is removed."""
  partial = final.with_name(final.name + checkpoint.PARTIAL)
  try:
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    partial.mkdir(parents=True)
    yield partial
    os.replace(partial, final)
  except OSError as error:
    raise errors.InputError(
      f"{final}: cannot be written ({error.strerror or error}); nothing was kept"
    ) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def write_tensors(
  directory: pathlib.Path,
  entries: Sequence[tensor_file.Entry],
  stream: Iterator[np.ndarray],
  file_bytes: int,
) -> None:
  """The files and their index. `stream` gives the bytes of all entries in order."""
  groups = _groups(entries, file_bytes)
  weight_map = {}
  for number, group in enumerate(groups, start=1):
    name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
    weight_map |= {entry.name: name for entry in group}
    with (directory / name).open("wb") as file:
      file.write(tensor_file.header(group, METADATA))
      for entry in group:
        _write_tensor(file, entry, stream)
  total = sum(entry.bytes for entry in entries)
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  (directory / checkpoint.INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_tensor(file: BinaryIO, entry: tensor_file.Entry, stream: Iterator[np.ndarray]) -> None:
  written = 0
  while written < entry.bytes:
    written += file.write(next(stream).reshape(-1).view(np.uint8))


def _groups(entries: Sequence[tensor_file.Entry], file_bytes: int) -> list[list[tensor_file.Entry]]:
  """Entries file by file, in order."""
  groups, size = [[]], 0
  for entry in entries:
    if groups[-1] and size + entry.bytes > file_bytes:
      groups.append([])
      size = 0
    groups[-1].append(entry)
    size += entry.bytes
  return groups


def _write_texts(
  directory: pathlib.Path,
  config: config_lib.Config,
  source: str | pathlib.Path | None,
  files: Mapping[str, str],
  dtype: DTypeLike,
) -> None:
  """config.json, what the source has beside its weights, and `files`."""
  fields = config_fields(config)
  if source is not None:
    fields = json.loads((pathlib.Path(source) / "config.json").read_text(encoding="utf-8"))
    for name in CARRIED:
      if (found := pathlib.Path(source) / name).is_file():
        shutil.copyfile(found, directory / name)
  name = jnp.dtype(dtype).name
  halves = [fields, *(fields[half] for half in ("text_config", "vision_config") if half in fields)]
  for half in halves:
    half |= {key: name for key in ("dtype", "torch_dtype") if key in half}
  fields.setdefault("torch_dtype", name)
  texts = {"config.json": json.dumps(fields, indent=2) + "\n", **files}
  for file, text in texts.items():
    (directory / file).write_text(text, encoding="utf-8")
