"""Exported directories: transformers loads them, and a round trip changes no bit.

Interrupted exports leave no directory.

Reference: transformers 5.23 with eager attention, float32 on CPU. Tolerance: none, the weights are
the same bits.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
from typing import Any, cast

from golden import qwen2_5_vl as golden
import jax
import ml_dtypes
import model_builders as builders
import numpy as np
import pytest
from safetensors import numpy as safetensors

from vr_jax import atomic, errors
from vr_jax.models import qwen2_5_vl
from vr_jax.models.common import checkpoint, export, weight_mapping
from vr_jax.models.qwen2_5_vl import hf_mapping
from vr_jax.parallel import mesh as mesh_lib

UNTIED, TIED, OTHER_PATCHES = golden.CASES[0], golden.CASES[1], golden.CASES[4]
CASES = [pytest.param(case, id=case.name) for case in (UNTIED, TIED, OTHER_PATCHES)]
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))
NEEDS_REFERENCE = pytest.mark.skipif(
  not HAS_REFERENCE, reason="torch and transformers not installed: names and bits are tested below"
)


@pytest.fixture
def source(tmp_path):
  directory = tmp_path / "source"
  directory.mkdir()
  builders.save(UNTIED, directory)
  return directory


def assert_same(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  jax.tree.map(np.testing.assert_array_equal, left, right)


SPARE = (1,) * (len(mesh_lib.AXES) - 3)
MESH = (2, 2, *SPARE, 2)
PIECES = 16_000  # bytes: several pieces of the larger parameters


def by_the_rules():
  mesh = mesh_lib.make_mesh(MESH)
  return {"shardings": functools.partial(mesh_lib.param_shardings, mesh=mesh)}


@NEEDS_REFERENCE
@pytest.mark.parametrize("carried", [True, False], ids=["with a source", "from nothing"])
@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_it_with_equal_logits(tmp_path, case, carried):
  import transformers

  source = tmp_path / "source"
  source.mkdir()
  builders.save(case, source)
  config, params = qwen2_5_vl.from_pretrained(source)
  theirs = tmp_path / "exported"
  qwen2_5_vl.save_pretrained(
    params, theirs, config=config, source=source if carried else None, file_bytes=60_000
  )
  assert len(list(theirs.glob("*.safetensors"))) > 1
  loaded, info = cast(
    tuple[Any, dict],
    transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
      theirs, attn_implementation="eager", output_loading_info=True
    ),
  )
  assert not any(info.values()), info
  expected = golden.reference_outputs(case, golden.reference_model(case), 0)
  actual = golden.reference_outputs(case, loaded.eval(), 0)
  np.testing.assert_array_equal(actual["logits"], expected["logits"])
  np.testing.assert_array_equal(actual["positions"], expected["positions"])


@pytest.mark.parametrize(
  ("dtype", "pieces"),
  [("float32", {"piece_bytes": PIECES}), ("float32", {}), ("bfloat16", {})],
  ids=["float32 in pieces", "float32", "bfloat16"],
)
def test_a_round_trip_changes_no_bit(tmp_path, source, dtype, pieces):
  tensors = safetensors.load_file(source / checkpoint.SINGLE)
  kept = {name: value.astype(dtype) for name, value in tensors.items()}
  safetensors.save_file(kept, source / checkpoint.SINGLE)
  config, params = qwen2_5_vl.from_pretrained(source, dtype=dtype, **pieces, **by_the_rules())
  target = tmp_path / "exported"
  qwen2_5_vl.save_pretrained(
    params, target, config=config, source=source, file_bytes=50_000, **pieces
  )
  files = sorted(target.glob("*.safetensors"))
  written = {name: value for file in files for name, value in safetensors.load_file(file).items()}
  assert written.keys() == kept.keys()
  for name, value in kept.items():
    assert written[name].dtype == value.dtype
    assert written[name].tobytes() == value.tobytes(), name


def test_pieces_fill_what_one_read_fills_wherever_parameters_lie(source):
  _, expected = qwen2_5_vl.from_pretrained(source)
  for where in ({"mesh": mesh_lib.make_mesh(MESH)}, by_the_rules()):
    _, params = qwen2_5_vl.from_pretrained(source, piece_bytes=PIECES, **where)
    assert_same(params, expected)


def test_parameters_lie_where_they_are_asked_for(source):
  _, params = qwen2_5_vl.from_pretrained(source, **by_the_rules())
  wanted = by_the_rules()["shardings"](params)
  jax.tree.map(lambda x, sharding: np.testing.assert_(x.sharding == sharding), params, wanted)
  _, spread = qwen2_5_vl.from_pretrained(source, mesh=mesh_lib.make_mesh(MESH))
  for name, variable in weight_mapping.flat(spread).items():
    value = variable.get_value()
    shares = value.size // value.addressable_shards[0].data.size
    divisible = any(length % 8 == 0 for length in slot_shape(name, value))
    assert shares == (8 if divisible else 1), name


def slot_shape(name, value):
  return value.shape[1:] if "{}" in hf_mapping.NAMES[name] else value.shape


def test_the_index_names_each_tensor_once_and_the_size_of_all(tmp_path, source):
  config, params = qwen2_5_vl.from_pretrained(source)
  target = tmp_path / "exported"
  qwen2_5_vl.save_pretrained(params, target, config=config, dtype="bfloat16", file_bytes=40_000)
  index = json.loads((target / checkpoint.INDEX).read_text())
  held = {}
  for file in sorted(target.glob("*.safetensors")):
    for name, value in safetensors.load_file(file).items():
      assert index["weight_map"][name] == file.name
      assert value.dtype == ml_dtypes.bfloat16
      held[name] = value.nbytes
  assert held.keys() == index["weight_map"].keys()
  assert index["metadata"]["total_size"] == sum(held.values())
  count = len(set(index["weight_map"].values()))
  assert f"model-00001-of-{count:05d}.safetensors" in index["weight_map"].values()


def test_tokenizer_and_generation_files_come_along_and_the_dtype_is_told(tmp_path, source):
  fields = json.loads((source / "config.json").read_text()) | {"torch_dtype": "float32", "mine": 3}
  (source / "config.json").write_text(json.dumps(fields))
  (source / "tokenizer.json").write_text('{"a": 1}')
  (source / "generation_config.json").write_text('{"b": 2}')
  (source / "notes.txt").write_text("of the release, not of ours")
  config, params = qwen2_5_vl.from_pretrained(source)
  target = tmp_path / "exported"
  files = {"tokenizer.json": '{"a": 2}'}
  qwen2_5_vl.save_pretrained(
    params, target, config=config, source=source, files=files, dtype="bfloat16"
  )
  assert (target / "generation_config.json").read_text() == '{"b": 2}'
  assert (target / "tokenizer.json").read_text() == '{"a": 2}'
  assert not (target / "notes.txt").exists()
  written = json.loads((target / "config.json").read_text())
  assert written == fields | {"torch_dtype": "bfloat16"}


def test_an_export_says_where_text_after_a_video_continues_and_brings_code_for_it(tmp_path, source):
  path = source / "config.json"
  released = json.loads(path.read_text())
  del released["vision_config"]["rope_after_video"]
  path.write_text(json.dumps(released))
  config, params = qwen2_5_vl.from_pretrained(source)
  for name, before in (("first", source), ("second", tmp_path / "first")):
    qwen2_5_vl.save_pretrained(params, tmp_path / name, config=config, source=before)
    written = json.loads((tmp_path / name / "config.json").read_text())
    assert written["vision_config"].pop("rope_after_video") == "largest"
    module, _ = written.pop("auto_map")["AutoModelForImageTextToText"].split(".")
    assert (tmp_path / name / f"{module}.py").is_file()
    assert written == {**released, "torch_dtype": "float32"}
  vision = dataclasses.replace(config.vision, rope_after_video="sides")
  config = dataclasses.replace(config, vision=vision)
  qwen2_5_vl.save_pretrained(params, tmp_path / "third", config=config, source=tmp_path / "second")
  written = json.loads((tmp_path / "third" / "config.json").read_text())
  assert written["vision_config"]["rope_after_video"] == "sides"
  assert "auto_map" not in written
  assert not list((tmp_path / "third").glob("*.py"))


def test_a_config_made_here_says_what_was_read(tmp_path, source):
  for case in (UNTIED, TIED, OTHER_PATCHES):
    config = builders.load(case).config
    path = tmp_path / f"{case.name}.json"
    path.write_text(json.dumps(qwen2_5_vl.FAMILY.model_files(config, None)[0]))
    assert qwen2_5_vl.FAMILY.read_config(path) == config


def test_what_is_there_already_is_not_touched(tmp_path, source):
  config, params = qwen2_5_vl.from_pretrained(source)
  before = sorted(path.name for path in source.iterdir())
  with pytest.raises(errors.InputError, match="source: is there already"):
    qwen2_5_vl.save_pretrained(params, source, config=config)
  assert sorted(path.name for path in source.iterdir()) == before


def test_a_disk_that_fails_leaves_nothing_behind(tmp_path, source, monkeypatch):
  config, params = qwen2_5_vl.from_pretrained(source)

  def full(*_):
    raise OSError(28, os.strerror(28))

  monkeypatch.setattr(export, "_write_texts", full)
  with pytest.raises(errors.InputError, match=r"exported: cannot be written \(No space left"):
    qwen2_5_vl.save_pretrained(params, tmp_path / "exported", config=config)
  assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_export_that_was_killed_is_refused_and_the_next_one_takes_its_place(
  tmp_path, source, monkeypatch
):
  config, params = qwen2_5_vl.from_pretrained(source)
  target = tmp_path / "exported"
  half = pathlib.Path(f"{target}{atomic.PARTIAL}")
  half.mkdir()
  builders.save(UNTIED, half)
  for path in (target, half):
    with pytest.raises(errors.InputError, match=r"exported\.partial: an export that was not fin"):
      qwen2_5_vl.from_pretrained(path)
  qwen2_5_vl.save_pretrained(params, target, config=config)
  assert not half.exists()
  assert_same(qwen2_5_vl.from_pretrained(target)[1], params)


def test_parameters_of_another_model_are_refused_by_name(tmp_path, source):
  _, params = qwen2_5_vl.from_pretrained(source)
  other = builders.load(OTHER_PATCHES).config
  with pytest.raises(errors.InputError, match=r"parameter text\.embedding: has shape \(272, 32\)"):
    qwen2_5_vl.save_pretrained(params, tmp_path / "exported", config=other)
