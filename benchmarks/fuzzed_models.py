"""Files of models and checkpoints for benchmarks/fuzz_inputs.py."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
from pathlib import Path
import random
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from benchmarks import damage, fuzzed_files
from vr_jax import errors, recipe_config
from vr_jax.data import feature_cache
from vr_jax.models import registry
from vr_jax.models.common import checkpoint, tensor_file, weight_mapping
from vr_jax.models.qwen2_5_vl import tokenizer
from vr_jax.models.sam2 import checkpoint as sam2_checkpoint
from vr_jax.models.sam2 import config as sam2_config
from vr_jax.models.sam2 import parameters
from vr_jax.train import checkpoints

_RECIPES = ("grpo:tiny", "moss_chatv:tiny_qwen3vl", "moss_chatv:tiny_phi2")


def damage_safetensors(rng: random.Random, whole: bytes) -> bytes:
  """Damages the JSON of a header, whose length is written anew or left; or bytes anywhere."""
  if rng.random() < 0.3:
    return damage.damage_bytes(rng, whole)
  size = int.from_bytes(whole[:8], "little")
  header = damage.damage_json(rng, whole[8 : 8 + size])
  length = len(header) if rng.random() < 0.9 else rng.choice((0, 1, size, 2**31, 2**63, 2**64 - 1))
  return length.to_bytes(8, "little") + header + whole[8 + size :]


def _fields(recipe: str) -> dict[str, Any]:
  """The fields of a config.json of a recipe's tiny network."""
  fields = json.loads(json.dumps(recipe_config.load(recipe).model.architecture.to_dict()))
  return {**registry.family_of_fields(fields).token_fields, **fields}


def _model(folder: Path, recipe: str, *, shards: int) -> Path:
  """Writes a model directory of zeros: config.json, and its tensors in a file or in shards."""
  folder.mkdir(parents=True)
  fields = _fields(recipe)
  (folder / "config.json").write_text(json.dumps(fields))
  family = registry.family_of_fields(fields)
  config = family.make_config(fields)
  flat = weight_mapping.flat(family.abstract_params(config))
  slots = weight_mapping.by_tensor(family.weights.slots(config, flat))
  tensors = {
    family.weights.released(name): np.zeros(slot.file_shape, np.float32)
    for name, slot in slots.items()
  }
  if shards == 1:
    safetensors.save_file(tensors, folder / checkpoint.SINGLE)
    return folder
  files = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
  places = {name: files[number % shards] for number, name in enumerate(tensors)}
  for file in files:
    part = {name: tensors[name] for name, place in places.items() if place == file}
    safetensors.save_file(part, folder / file)
  index = {"metadata": {"total_size": 1}, "weight_map": places}
  (folder / checkpoint.INDEX).write_text(json.dumps(index))
  return folder


def safetensors_inputs(folder: Path) -> list[damage.FuzzedInput]:
  """Headers of files of several dtypes, of a model, of SAM2 and of cached features; an index."""
  plain = folder / "plain.safetensors"
  tensors = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(4, np.float16),
    "c": np.asarray(jnp.ones((2, 2), jnp.bfloat16)),
    "e": np.zeros((0, 3), np.float32),
    "s": np.array(3.0, np.float32),
  }
  safetensors.save_file(tensors, plain, metadata={"format": "pt"})
  cache = feature_cache.FeatureCache(folder, {"t": 1}, dtype=np.dtype("float32"), gibibytes=1.0)
  cache.put("clip", np.ones((4, 8), np.float32))
  family = registry.family("qwen2_5_vl")
  single = _model(folder / "single", _RECIPES[0], shards=1)
  sharded = _model(folder / "sharded", _RECIPES[0], shards=2)
  small = sam2_config.smallest()
  sam2_checkpoint.save(small, parameters.initialise(small, 0), folder / "sam2")

  def read_plain() -> None:
    for stored in tensor_file.tensors(plain).values():
      stored.view().astype(np.float32).sum()
      if stored.view().nbytes > plain.stat().st_size:
        raise ValueError(f"{stored.name}: larger than its file")

  def read_features() -> None:
    path = cache.directory / "clip.safetensors"
    content = path.read_bytes()
    cache.get("clip", (4, 8))
    path.write_bytes(content)  # a damaged entry was removed

  def check(directory: Path) -> Callable[[], None]:
    return functools.partial(checkpoint.check_files, directory, family=family)

  def read_sam2() -> None:
    sam2_checkpoint.load(folder / "sam2")

  in_file = fuzzed_files.in_file
  return [
    in_file(plain, damage_safetensors, read_plain),
    in_file(plain, damage_safetensors, read_plain, name="plain again"),
    in_file(cache.directory / "clip.safetensors", damage_safetensors, read_features),
    in_file(single / checkpoint.SINGLE, damage_safetensors, check(single)),
    in_file(sharded / checkpoint.INDEX, damage.damage_json, check(sharded)),
    in_file(folder / "sam2" / sam2_checkpoint.FILE, damage_safetensors, read_sam2, name="sam2"),
  ]


def checkpoint_inputs(folder: Path) -> list[damage.FuzzedInput]:
  """config.json of all families and of SAM2, tokenizers, and the JSON of a training checkpoint."""
  in_file, found = fuzzed_files.in_file, []
  for recipe in _RECIPES:
    directory = folder / recipe.replace(":", "_")
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(_fields(recipe)))
    sizes = {"patch_size": _fields(recipe)["vision_config"]["patch_size"]}
    (directory / "preprocessor_config.json").write_text(json.dumps(sizes))
    read = functools.partial(_read_model, directory)
    for name in ("config.json", "preprocessor_config.json"):
      found.append(in_file(directory / name, damage.damage_json, read, name=f"{recipe} {name}"))
  words = folder / "words"
  words.mkdir()
  made = tokenizer.train_tokenizer(["At 2s, the circle is red."], 300)
  made.save(str(words / "tokenizer.json"))

  def read_words() -> None:
    loaded = tokenizer.load_tokenizer(words)
    loaded.decode(loaded.encode("At 2s <|im_end|>").ids)

  found.append(in_file(words / "tokenizer.json", damage.damage_json, read_words))
  path = folder / "sam2.json"
  path.write_text(json.dumps(sam2_config.to_dict(sam2_config.smallest())))
  read_sam2 = functools.partial(sam2_config.read_config, path)
  found.append(in_file(path, damage.damage_json, lambda: _nothing(read_sam2())))
  return [*found, *_training_checkpoint(folder / "rl")]


def _nothing(value: object) -> None:
  del value


def _read_model(directory: Path) -> None:
  config = registry.read_config(directory / "config.json")
  json.dumps(config.architecture)
  hash(config)


def _training_checkpoint(folder: Path) -> list[damage.FuzzedInput]:
  """All JSON files of a checkpoint of training."""
  tree = {"params": {"a": jnp.arange(6.0).reshape(2, 3)}, "step": jnp.int32(7)}
  store = checkpoints.Checkpoints(folder, architecture={"hidden_size": 32})
  store.save(1, tree, {"iterator": {"next": 2}})
  store.close()

  def read() -> None:
    opened = checkpoints.Checkpoints(folder, architecture={"hidden_size": 32})
    try:
      restored = opened.restore(tree, step=1)
    finally:
      opened.close()
    for name, value in {"a": restored.tree["params"]["a"], "step": restored.tree["step"]}.items():
      expected = tree["params"]["a"] if name == "a" else tree["step"]
      if not np.array_equal(np.asarray(value), np.asarray(expected)):
        raise ValueError(f"{name}: was restored with other values")

  found, sums = [], sorted(folder.glob("1/checksums-*.json"))
  for path in sums:
    found.append(fuzzed_files.in_file(path, damage.damage_json, read))
  for path in sorted(each for each in folder.rglob("*") if each.is_file() and each not in sums):
    try:
      json.loads(path.read_bytes())
    except ValueError:
      continue
    name = path.relative_to(folder).as_posix()
    found.append(_without(sums, fuzzed_files.in_file(path, damage.damage_json, read, name=name)))
  if not sums or len(found) == len(sums):
    raise errors.InputError(f"{folder}: the checkpoint has no JSON")
  return found


def _without(sums: Sequence[Path], one: damage.FuzzedInput) -> damage.FuzzedInput:
  """The same input in a checkpoint of an older version, whose files have no checksums."""
  contents = {path: path.read_bytes() for path in sums}

  def read(data: bytes) -> None:
    for path in contents:
      path.unlink()
    try:
      one.read(data)
    finally:
      for path, content in contents.items():
        path.write_bytes(content)

  return dataclasses.replace(one, read=read)
