"""Qwen3-VL's files: released sizes, exports that transformers reads, and what is refused by name.

Reference: transformers 5.24 with eager attention, float32 on CPU. Tolerance: none, the weights are
the same bits.
"""

import functools
import importlib.util
import json
import math
from typing import Any, cast

from golden import qwen2_5_vl as golden2
from golden import qwen3_vl as golden
import ml_collections
import model_builders as builders
import numpy as np
import pytest
from safetensors import numpy as safetensors

from vr_jax import errors
from vr_jax.models import qwen3_vl, registry
from vr_jax.models.common import weight_mapping
from vr_jax.parallel import mesh as mesh_lib

CASE, TIED = golden.CASES[:2]
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))
# Parameters of the releases, as the Hub counts them; widths and layers as their config.json says.
RELEASES = {
  "Qwen3-VL-2B-Instruct": (2_127_532_032, 2048, 28),
  "Qwen3-VL-4B-Instruct": (4_437_815_808, 2560, 36),
  "Qwen3-VL-8B-Thinking": (8_767_123_696, 4096, 36),
  "Qwen3-VL-32B-Instruct": (33_357_390_064, 5120, 64),
}


@pytest.fixture
def source(tmp_path):
  directory = tmp_path / "source"
  directory.mkdir()
  builders.save(CASE, directory)
  return directory


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_has_as_many_parameters_as_published(name):
  parameters, width, layers = RELEASES[name]
  config = registry.preset_config(name)
  flat = weight_mapping.flat(registry.family_of(config).abstract_params(config))
  assert sum(math.prod(variable.shape) for variable in flat.values()) == parameters
  text, vision = config.text, config.vision
  assert (config.hidden_size, text.num_hidden_layers, text.head_dim) == (width, layers, 128)
  assert (text.mrope_section, vision.table_side, vision.levels) == ((24, 20, 20), 48, 3)
  assert config.tie_word_embeddings == (width < 4096)


@pytest.mark.skipif(not HAS_REFERENCE, reason="torch and transformers not installed")
@pytest.mark.parametrize("carried", [True, False], ids=["with a source", "from nothing"])
@pytest.mark.parametrize("case", [CASE, TIED], ids=lambda case: case.name)
def test_transformers_loads_it_with_equal_logits(tmp_path, case, carried):
  import transformers

  source = tmp_path / "source"
  source.mkdir()
  builders.save(case, source)
  config, params = qwen3_vl.from_pretrained(source)
  path = tmp_path / "exported"
  qwen3_vl.save_pretrained(
    params, path, config=config, source=source if carried else None, file_bytes=60_000
  )
  loaded, info = cast(
    tuple[Any, dict],
    transformers.Qwen3VLForConditionalGeneration.from_pretrained(
      path, attn_implementation="eager", output_loading_info=True
    ),
  )
  assert not any(info.values()), info
  expected = golden.reference_outputs(case, golden.reference_model(case), 0)
  actual = golden.reference_outputs(case, loaded.eval(), 0)
  np.testing.assert_array_equal(actual["logits"], expected["logits"])
  assert qwen3_vl.FAMILY.read_config(path / "config.json") == config


def test_a_round_trip_over_a_mesh_changes_no_bit(tmp_path, source):
  mesh = mesh_lib.make_mesh((2, 2, 1, 2))
  shardings = functools.partial(mesh_lib.param_shardings, mesh=mesh)
  config, params = qwen3_vl.from_pretrained(source, shardings=shardings)
  qwen3_vl.save_pretrained(params, tmp_path / "exported", config=config, source=source)
  (file,) = (tmp_path / "exported").glob("*.safetensors")
  written = safetensors.load_file(file)
  kept = safetensors.load_file(source / "model.safetensors")
  assert written.keys() == kept.keys()
  for name, value in kept.items():
    np.testing.assert_array_equal(written[name], value, err_msg=name)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model_type": "qwen3_vl_moe"}, "model_type: is 'qwen3_vl_moe'"),
    ({"text_config": None}, "text_config: the field is missing"),
    ({"text_config.attention_bias": True}, "attention_bias: is true"),
    (
      {"text_config.rope_parameters": {"mrope_interleaved": False}},
      "mrope_interleaved: is false",
    ),
    ({"text_config.head_dim": 16}, r"mrope_section: \(2, 1, 1\) must add up to half the head, 8"),
    ({"vision_config.hidden_act": "silu"}, "hidden_act: vision model has 'silu'"),
    ({"vision_config.out_hidden_size": 48}, "out_hidden_size: 48 is not the text hidden_size 32"),
    ({"vision_config.num_position_embeddings": 35}, "num_position_embeddings: 35 is no square"),
    ({"vision_config.deepstack_visual_indexes": []}, r"deepstack_visual_indexes: \(\) are not"),
    ({"vision_config.deepstack_visual_indexes": [1, 2]}, "deepstack_visual_indexes: .* 2 blocks"),
    ({"text_config.num_hidden_layers": 1}, "deepstack_visual_indexes: 2 levels for 1 text layers"),
  ],
)
def test_a_config_that_cannot_work_is_refused_by_the_fields_name(tmp_path, fields, message):
  config = CASE.config()
  for path, value in fields.items():
    *half, name = path.split(".")
    (config[half[0]] if half else config)[name] = value
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(errors.InputError, match=rf"config\.json: {message}"):
    qwen3_vl.FAMILY.read_config(tmp_path / "config.json")


@pytest.mark.parametrize("case", [CASE, golden2.CASES[0]], ids=["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize(
  ("file", "field"),
  [("preprocessor_config.json", "patch_size"), ("video_preprocessor_config.json", "merge_size")],
)
def test_a_processor_s_file_of_another_model_is_refused(tmp_path, case, file, field):
  builders.save(case, tmp_path)
  right = registry.family_of_fields(case.config()).patch_fields(builders.load(case).config)
  (tmp_path / file).write_text(json.dumps(right))
  registry.from_pretrained(tmp_path)
  (tmp_path / file).write_text(json.dumps(right | {field: 15}))
  with pytest.raises(errors.InputError) as refused:
    registry.from_pretrained(tmp_path)
  assert str(refused.value) == (
    f"{tmp_path / file}: {field} is 15, but config.json says {right[field]}; "
    "take both files from one model"
  )


def test_weights_of_another_family_or_size_are_refused_by_their_tensor(tmp_path, source):
  config = source / "config.json"
  config.write_text(json.dumps(TIED.config()))
  with pytest.raises(errors.InputError, match=r"tensor .*(none of this model's|has shape)"):
    qwen3_vl.from_pretrained(source)
  builders.save(golden2.CASES[0], source)
  config.write_text(json.dumps(CASE.config()))
  with pytest.raises(errors.InputError, match=r"tensor .*(none of this model's|has shape)"):
    qwen3_vl.from_pretrained(source)
  config.write_text(json.dumps(golden2.CASES[0].config()))
  with pytest.raises(errors.InputError, match=r"model_type: is 'qwen2_5_vl', but only 'qwen3_vl'"):
    qwen3_vl.from_pretrained(source)


def test_limits_of_whole_videos_are_for_the_family_that_has_them():
  section = ml_collections.ConfigDict(
    {"min_pixels": 1, "max_pixels": 9, "min_video_pixels": 0, "max_video_pixels": 0}
    | {"system": "", "resize_backend": "pillow"}
  )
  config = builders.load(CASE).config
  made = qwen3_vl.FAMILY.make_processor(config, builders.BYTES, section)
  assert (made.preprocessing["min_video_pixels"], made.max_video_pixels) == (4096, 25165824)
  section.max_video_pixels = 9
  with pytest.raises(
    errors.InputError, match=r"config\.model\.max_video_pixels=9: Qwen2\.5-VL lim"
  ):
    registry.family("qwen2_5_vl").make_processor(
      builders.load(golden2.CASES[0]).config, builders.BYTES, section
    )


def test_the_position_of_text_after_a_video_is_no_option():
  section = ml_collections.ConfigDict({"rope_after_video": "sides"})
  with pytest.raises(errors.InputError, match=r"config\.model\.rope_after_video=sides: Qwen3-VL"):
    qwen3_vl.FAMILY.with_options(builders.load(CASE).config, section)
