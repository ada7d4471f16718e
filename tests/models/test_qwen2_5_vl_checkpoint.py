"""Hugging Face directories: names and layouts that exist, and what is wrong with one, by name."""

import dataclasses
import importlib.util
import json

from flax import nnx
from golden import qwen2_5_vl as golden
import jax
import ml_dtypes
import model_builders as builders
import numpy as np
import pytest
from safetensors import numpy as safetensors

from vr_jax import errors
from vr_jax.models import qwen2_5_vl
from vr_jax.models.common import checkpoint
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import model

UNTIED, TIED = golden.CASES[0], golden.CASES[1]
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))


def write(path, names_and_tensors):
  safetensors.save_file(dict(names_and_tensors), path)


def named(case, *, text="model.", vision=""):
  def full(name):
    if name.startswith("visual."):
      return vision + name
    return name if name == "lm_head.weight" else text + name

  return {full(name): value for name, value in case.tensors().items()}


def assert_same(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture
def directory(tmp_path):
  builders.save(UNTIED, tmp_path)
  return tmp_path


def test_the_state_is_that_of_the_model_and_every_tensor_lands_in_its_place(directory):
  config, state = qwen2_5_vl.from_pretrained(directory)
  fresh = nnx.eval_shape(lambda: nnx.state(model.Qwen2_5_VL(config, rngs=nnx.Rngs(0))))
  assert jax.tree.structure(state) == jax.tree.structure(fresh)
  tensors = UNTIED.tensors()
  layers = state["text"]["layers"]
  query = tensors["layers.2.self_attn.q_proj.weight"].reshape(4, 8, 32)
  np.testing.assert_array_equal(layers["query"][...][2], query.transpose(2, 0, 1))
  out = tensors["layers.1.self_attn.o_proj.weight"].reshape(32, 4, 8)
  np.testing.assert_array_equal(layers["out"][...][1], out.transpose(1, 2, 0))
  head = state["text"]["head"][...]
  np.testing.assert_array_equal(head, tensors["lm_head.weight"])


@pytest.mark.parametrize("case", [UNTIED, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize(
  "prefixes",
  [
    {"text": "model.", "vision": ""},
    {"text": "model.language_model.", "vision": "model."},
    {"text": "language_model.model.", "vision": ""},
    {"text": "language_model.", "vision": ""},
  ],
  ids=["release", "nested", "wrapped", "bare"],
)
def test_names_of_every_version_are_read(tmp_path, case, prefixes):
  builders.save(case, tmp_path)
  _, expected = qwen2_5_vl.from_pretrained(tmp_path)
  write(tmp_path / checkpoint.SINGLE, named(case, **prefixes))
  assert_same(qwen2_5_vl.from_pretrained(tmp_path)[1], expected)


def test_shards_are_found_by_their_index(directory):
  _, expected = qwen2_5_vl.from_pretrained(directory)
  tensors = named(UNTIED)
  weight_map = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(tensors)}
  for shard in set(weight_map.values()):
    write(directory / shard, {n: tensors[n] for n, where in weight_map.items() if where == shard})
  (directory / checkpoint.SINGLE).unlink()
  (directory / checkpoint.INDEX).write_text(json.dumps({"weight_map": weight_map}))
  assert_same(qwen2_5_vl.from_pretrained(directory)[1], expected)
  (directory / "part-1.safetensors").unlink()
  with pytest.raises(
    errors.InputError, match=r"part-1\.safetensors: no such file, but .* names it"
  ):
    qwen2_5_vl.from_pretrained(directory)


def test_bfloat16_files_are_read_and_parameters_come_in_the_dtype_asked_for(directory):
  half = {name: value.astype(ml_dtypes.bfloat16) for name, value in named(UNTIED).items()}
  write(directory / checkpoint.SINGLE, half)
  _, wide = qwen2_5_vl.from_pretrained(directory)
  _, narrow = qwen2_5_vl.from_pretrained(directory, dtype="bfloat16")
  expected = half["model.norm.weight"]
  assert wide["text"]["norm"][...].dtype == np.float32
  assert narrow["text"]["norm"][...].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(wide["text"]["norm"][...], expected.astype(np.float32))
  np.testing.assert_array_equal(narrow["text"]["norm"][...], expected)


def test_a_tied_file_may_repeat_the_embedding_but_not_contradict_it(tmp_path):
  builders.save(TIED, tmp_path)
  _, expected = qwen2_5_vl.from_pretrained(tmp_path)
  tensors = named(TIED)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
  write(tmp_path / checkpoint.SINGLE, tensors)
  assert_same(qwen2_5_vl.from_pretrained(tmp_path)[1], expected)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
  write(tmp_path / checkpoint.SINGLE, tensors)
  with pytest.raises(errors.InputError, match=r"lm_head\.weight is not the embedding"):
    qwen2_5_vl.from_pretrained(tmp_path)


@pytest.mark.skipif(
  not HAS_REFERENCE,
  reason="torch and transformers not installed: the layouts they write are written out above",
)
def test_what_transformers_saves_is_read(tmp_path, directory):
  reference = golden.reference_model(UNTIED)
  saved = tmp_path / "theirs"
  reference.save_pretrained(saved, max_shard_size="60KB")
  assert (saved / checkpoint.INDEX).is_file()
  assert_same(qwen2_5_vl.from_pretrained(saved)[1], qwen2_5_vl.from_pretrained(directory)[1])


def test_the_flat_config_of_the_releases_means_the_same():
  nested = UNTIED.config()
  text = dict(nested["text_config"])
  rotary = text.pop("rope_parameters")
  vision = {**nested["vision_config"], "in_chans": 3}
  flat = {
    **{name: value for name, value in nested.items() if name != "text_config"},
    **text,
    "vision_config": vision,
    "rope_theta": rotary["rope_theta"],
    "rope_scaling": {"type": "mrope", "mrope_section": rotary["mrope_section"]},
    "torch_dtype": "bfloat16",
  }
  expected = config_lib.Qwen2_5_VLConfig.from_dict(nested)
  assert config_lib.Qwen2_5_VLConfig.from_dict(flat) == dataclasses.replace(
    expected, dtype="bfloat16"
  )


def without(name):
  return lambda tensors: tensors.pop(name)


def replaced(name, value):
  return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (without("model.norm.weight"), "no tensor norm.weight"),
    (without("lm_head.weight"), "no tensor lm_head.weight"),
    (without("visual.blocks.2.attn.qkv.bias"), "no tensor visual.blocks.2.attn.qkv.bias"),
    (replaced("model.layers.3.x", np.zeros(2)), "tensor model.layers.3.x is none of this model's"),
    (
      replaced("model.language_model.norm.weight", np.zeros(32)),
      "tensor model.* is also in .*model.safetensors",
    ),
    (
      replaced("model.norm.weight", np.zeros(31, np.float32)),
      r"tensor model.norm.weight has shape \(31,\), but config.json asks for \(32,\)",
    ),
    (
      replaced("model.layers.0.self_attn.k_proj.weight", np.zeros((32, 16), np.float32)),
      r"k_proj.weight has shape \(32, 16\), but config.json asks for \(16, 32\)",
    ),
  ],
)
def test_a_file_of_other_tensors_is_refused_by_the_tensors_name(directory, change, message):
  tensors = named(UNTIED)
  change(tensors)
  write(directory / checkpoint.SINGLE, tensors)
  with pytest.raises(errors.InputError, match=message):
    qwen2_5_vl.from_pretrained(directory)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_file_is_refused_by_its_name(directory, keep):
  path = directory / checkpoint.SINGLE
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(errors.InputError, match=r"model\.safetensors: damaged safetensors"):
    qwen2_5_vl.from_pretrained(directory)


def test_a_directory_without_weights_or_config_is_refused(tmp_path):
  with pytest.raises(errors.InputError, match=r"config\.json: no such file"):
    qwen2_5_vl.from_pretrained(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(UNTIED.config()))
  with pytest.raises(errors.InputError, match=r"has neither model\.safetensors nor"):
    qwen2_5_vl.from_pretrained(tmp_path)
  (tmp_path / checkpoint.INDEX).write_text('{"weight_map": 3}')
  with pytest.raises(errors.InputError, match=r"index\.json: no valid index"):
    qwen2_5_vl.from_pretrained(tmp_path)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model_type": "qwen2_vl"}, "model_type: is 'qwen2_vl'"),
    ({"vision_config": None}, "vision_config: the field is missing"),
    ({"image_token_id": None}, "image_token_id: the field is missing"),
    ({"dtype": "int8"}, "dtype: is 'int8'"),
    ({"text_config.num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
    ({"text_config.num_attention_heads": 5}, "hidden_size: 32 is no multiple of 5 heads"),
    ({"text_config.use_sliding_window": True}, "use_sliding_window: is true"),
    ({"text_config.hidden_act": "gelu"}, "hidden_act: text model has 'gelu'"),
    ({"text_config.rope_parameters": {"rope_type": "llama3"}}, "rope_type: is 'llama3'"),
    (
      {"text_config.rope_parameters": {"mrope_section": [1, 1, 1]}},
      "mrope_section: .* half the head",
    ),
    ({"vision_config.out_hidden_size": 48}, "out_hidden_size: 48 is not the text hidden_size 32"),
    ({"vision_config.window_size": 27}, "window_size: 27 pixels"),
    ({"vision_config.num_heads": 3}, "vision hidden_size: 32 is no multiple of 4 x 3"),
    ({"vision_config.depth": None}, "depth: the field is missing"),
    ({"vision_config.rope_after_video": "nothing"}, "rope_after_video: is 'nothing'"),
  ],
)
def test_a_config_that_cannot_work_is_refused_by_the_fields_name(tmp_path, fields, message):
  config = UNTIED.config()
  for path, value in fields.items():
    *half, name = path.split(".")
    (config[half[0]] if half else config)[name] = value
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(errors.InputError, match=rf"config\.json: {message}"):
    qwen2_5_vl.FAMILY.read_config(tmp_path / "config.json")


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, content):
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(errors.InputError, match=r"config\.json: (not valid JSON|holds no JSON)"):
    qwen2_5_vl.FAMILY.read_config(tmp_path / "config.json")
