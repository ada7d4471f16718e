"""TinyLLaVA-Video's files: released sizes, exports under released names, what is refused by name.

Reference: tests/golden/tinyllava_reference.py, whose parameters have the released names. Tolerance:
none, the weights are the same bits.
"""

import functools
import importlib.util
import json
import math

from golden import qwen2_5_vl as other_golden
from golden import tinyllava as golden
import jax
import jax.numpy as jnp
import ml_collections
import model_builders as builders
import numpy as np
import pytest
from safetensors import numpy as safetensors

from vr_jax import errors
from vr_jax.models import registry, tinyllava
from vr_jax.models.common import weight_mapping
from vr_jax.models.tinyllava import config as config_lib
from vr_jax.models.tinyllava import presets, resampler
from vr_jax.parallel import mesh as mesh_lib

CASE, NAIVE = golden.CASES[:2]
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))
RELEASE = "TinyLLaVA-Video-Phi2-Naive-16-512"
PHI_2 = 2_779_683_840  # parameters, as its model card counts them


@pytest.fixture
def source(tmp_path):
  directory = tmp_path / "source"
  directory.mkdir()
  builders.save(CASE, directory)
  return directory


def test_the_release_has_the_sizes_of_its_parts():
  config = registry.preset_config(f"somewhere/{RELEASE}")
  family = registry.family_of(config)
  counts = {name: 0 for name in ("text", "vision", "vision.connector")}
  for name, variable in weight_mapping.flat(family.abstract_params(config)).items():
    part = max((part for part in counts if name.startswith(f"{part}.")), key=len)
    counts[part] += math.prod(variable.shape)
  assert counts["text"] == PHI_2
  assert counts["vision.connector"] == pytest.approx(177e6, rel=0.01)
  vision, shapes = config.vision, config.vision_shapes
  assert (vision.depth, vision.patches, vision.tokens, config.text.rotary_dim) == (26, 729, 728, 32)
  assert shapes.most_patches(16, 0) == 16 * 729 and shapes.count_frames(16) == 1
  assert shapes.media_tokens(16 * 729) == shapes.media_tokens(729) == 512
  assert config.max_position_embeddings == 3072


def test_a_config_json_without_what_its_classes_have_as_defaults_is_the_same():
  fields = json.loads(json.dumps(presets.RELEASES[RELEASE]))
  for name in ("num_attention_heads", "num_key_value_heads", "rope_theta", "layer_norm_eps"):
    del fields["text_config"][name]
  assert config_lib.TinyLlavaConfig.from_dict(fields) == registry.preset_config(RELEASE)
  newer = fields["text_config"]
  del newer["partial_rotary_factor"]
  newer["rope_parameters"] = {"rope_theta": 10000.0, "partial_rotary_factor": 0.4}
  assert config_lib.TinyLlavaConfig.from_dict(fields) == registry.preset_config(RELEASE)


@pytest.mark.skipif(not HAS_REFERENCE, reason="torch and transformers not installed")
@pytest.mark.parametrize("case", [CASE, NAIVE], ids=lambda case: case.name)
def test_the_reference_loads_an_export_with_equal_logits(tmp_path, case):
  import torch

  source = tmp_path / "source"
  source.mkdir()
  builders.save(case, source)
  config, params = tinyllava.from_pretrained(source)
  path = tmp_path / "exported"
  tinyllava.save_pretrained(params, path, config=config, source=source, file_bytes=60_000)
  reference = golden.reference_model(case)
  expected = golden.reference_outputs(case, reference, 0)["logits"]
  exported = {}
  for file in path.glob("*.safetensors"):
    exported |= {k: torch.from_numpy(v) for k, v in safetensors.load_file(file).items()}
  with torch.no_grad():
    for parameter in reference.parameters():
      parameter.zero_()
  reference.load_state_dict(exported)  # strict: the parts that are not used are there, too
  actual = golden.reference_outputs(case, reference, 0)["logits"]
  np.testing.assert_array_equal(actual, expected)
  assert tinyllava.FAMILY.read_config(path / "config.json") == config


def test_an_export_from_nothing_is_read_again(tmp_path, source):
  config, params = tinyllava.from_pretrained(source)
  tinyllava.save_pretrained(params, tmp_path / "exported", config=config)
  again, found = tinyllava.from_pretrained(tmp_path / "exported")
  assert again.architecture == config.architecture
  assert again.max_position_embeddings == config.max_position_embeddings
  jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_round_trip_over_a_mesh_keeps_every_tensor_of_the_source(tmp_path, source, dtype):
  mesh = mesh_lib.make_mesh((2, 2, 1, 2))
  shardings = functools.partial(mesh_lib.param_shardings, mesh=mesh)
  config, params = tinyllava.from_pretrained(source, shardings=shardings)
  tinyllava.save_pretrained(
    params, tmp_path / "exported", config=config, source=source, dtype=dtype
  )
  (file,) = (tmp_path / "exported").glob("*.safetensors")
  written = safetensors.load_file(file)
  kept = safetensors.load_file(source / "model.safetensors")
  assert written.keys() == kept.keys()
  assert any("post_layernorm" in name for name in kept)
  assert any("encoder.layers.2" in name for name in kept)  # behind the layer that is used
  for name, value in kept.items():
    np.testing.assert_array_equal(written[name], value.astype(dtype or value.dtype), err_msg=name)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model_type": "llava"}, "model_type: is 'llava'"),
    ({"text_config": None}, "text_config: the field is missing"),
    ({"text_config.model_type": "qwen2"}, "text_config: model_type is 'qwen2', but only 'phi'"),
    ({"vision_config.model_type": "clip_vision_model"}, "vision_config: model_type is 'clip_vis"),
    ({"connector_type": None}, "connector_type: the field is missing"),
    ({"connector_type": "mlp2x_gelu"}, "connector_type: is 'mlp2x_gelu', but only naiveresampler"),
    (
      {"connector_type": "resampler"},
      "connector_type: is 'resampler', but only naiveresampler, re",
    ),
    ({"group": None}, "group: the field is missing"),
    ({"group": 5}, "group: 5 groups do not divide num_queries=12"),
    ({"num_resampler_layers": None}, "num_resampler_layers: the field is missing"),
    ({"vision_feature_layer": 3}, "vision_feature_layer: 3 is none of -1 to -3"),
    ({"vision_feature_layer": -4}, "vision_feature_layer: -4 is none of -1 to -3"),
    ({"vision_feature_select_strategy": "all"}, "vision_feature_select_strategy: is 'all'"),
    ({"text_config.hidden_act": "silu"}, "hidden_act: text model has 'silu'"),
    ({"text_config.qk_layernorm": True}, "qk_layernorm: is true"),
    ({"text_config.tie_word_embeddings": True}, "tie_word_embeddings: is true"),
    ({"text_config.partial_rotary_factor": 0.4}, "partial_rotary_factor: 0.4 of 8 features is no"),
    ({"text_config.hidden_size": 36}, "hidden_size: 36 is no multiple of 2 x 4 heads"),
    ({"vision_config.image_size": 8}, "image_size: 8 pixels hold too few patches of 7"),
    ({"tokenizer_model_max_length": 12}, "num_queries: 12 media tokens of one video fill the con"),
  ],
)
def test_a_config_that_cannot_work_is_refused_by_the_fields_name(tmp_path, fields, message):
  config = CASE.config()
  for path, value in fields.items():
    *half, name = path.split(".")
    (config[half[0]] if half else config)[name] = value
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(errors.InputError, match=rf"config\.json: {message}"):
    tinyllava.FAMILY.read_config(tmp_path / "config.json")


def test_weights_of_another_resampler_family_or_size_are_refused_by_their_tensor(source):
  config = source / "config.json"
  (source / "model.safetensors").rename(source / "all.safetensors")
  tensors = safetensors.load_file(source / "all.safetensors")
  kept = {name: value for name, value in tensors.items() if "connector" not in name}
  safetensors.save_file(kept, source / "model.safetensors")
  with pytest.raises(errors.InputError, match=r"source: no tensor connector\._connector\.latents"):
    tinyllava.from_pretrained(source)
  safetensors.save_file(tensors, source / "model.safetensors")
  (source / "all.safetensors").unlink()
  config.write_text(json.dumps({**CASE.config(), **NAIVE.connector}))
  with pytest.raises(errors.InputError, match=r"latents has shape \(3, 32\), but .* \(9, 32\)"):
    tinyllava.from_pretrained(source)
  builders.save(other_golden.CASES[0], source)
  config.write_text(json.dumps(CASE.config()))
  with pytest.raises(errors.InputError, match=r"tensor .*(none of this model's|has shape)"):
    tinyllava.from_pretrained(source)


def test_a_directory_of_parts_as_training_writes_it_is_refused(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(CASE.config()))
  (tmp_path / "language_model").mkdir()
  (tmp_path / "language_model" / "pytorch_model.bin").touch()
  with pytest.raises(errors.InputError, match=r"; language_model/pytorch_model\.bin is a part of"):
    tinyllava.from_pretrained(tmp_path)


def test_a_processor_s_file_of_another_image_size_is_refused(tmp_path):
  builders.save(CASE, tmp_path)
  file = tmp_path / "preprocessor_config.json"
  file.write_text(json.dumps({"size": {"height": 29, "width": 29}}))
  registry.from_pretrained(tmp_path)
  file.write_text(json.dumps({"size": {"height": 384, "width": 384}}))
  with pytest.raises(errors.InputError, match=r"size is \{'height': 384.*config\.json says .*29"):
    registry.from_pretrained(tmp_path)


@pytest.mark.parametrize(
  ("name", "value", "says"),
  [
    ("max_pixels", 100, r"config\.model\.max_pixels=100: all images have the 29 x 29 .* set 841"),
    ("max_video_pixels", 9, r"config\.model\.max_video_pixels=9: all images .* set 0"),
  ],
)
def test_limits_of_pixels_that_have_no_effect_are_refused(name, value, says):
  limits = {"min_pixels": 841, "max_pixels": 841, "min_video_pixels": 0, "max_video_pixels": 0}
  section = ml_collections.ConfigDict({**limits, "system": "", "resize_backend": "pillow"})
  config = builders.load(CASE).config
  tinyllava.FAMILY.make_processor(config, builders.PHI_BYTES, section)
  section[name] = value
  with pytest.raises(errors.InputError, match=says):
    tinyllava.FAMILY.make_processor(config, builders.PHI_BYTES, section)
  with pytest.raises(errors.InputError, match=r"config\.model\.rope_after_video=sides: TinyLLaVA"):
    tinyllava.FAMILY.with_options(config, ml_collections.ConfigDict({"rope_after_video": "sides"}))


@pytest.mark.parametrize(("tokens", "groups"), [(11, 4), (12, 4), (3, 4), (0, 4), (7, 1)])
def test_groups_are_consecutive_parts_of_a_video_the_longer_first(tokens, groups):
  segment = jnp.where(jnp.arange(14) < tokens, 0, -1)[None, None]
  found = np.asarray(resampler.parts(segment, groups))[0, 0, :tokens]
  expected = [i for i, part in enumerate(np.array_split(np.arange(tokens), groups)) for _ in part]
  assert found.tolist() == expected


def test_the_table_of_positions_is_rounded_as_it_was_stored_also_in_a_compiled_program():
  exact, rounded = (
    jax.jit(resampler.position_table, static_argnums=(0, 1, 2))(600, 64, dtype)
    for dtype in ("float32", "float16")
  )
  np.testing.assert_array_equal(rounded, np.asarray(exact).astype(np.float16))
  error = np.abs(np.asarray(exact - rounded)).max()
  assert 1e-4 < error < 2.5e-4
  np.testing.assert_allclose(exact[7, :2], [math.sin(7), math.cos(7)], rtol=1e-6)
