"""Families by the `model_type` of a config.json, and batches of any family's vision inputs."""

import json

import jax
import numpy as np
import pytest

from tests.models import toy_vlm
from vr_jax import errors, records
from vr_jax.models import registry
from vr_jax.models.common import prompts, weight_mapping

registry.register(toy_vlm.FAMILY)
FIELDS = {"model_type": "toy_vlm", "vocab_size": 300, "image_token_id": 258}


def test_a_directory_is_read_by_the_family_that_its_config_names(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(FIELDS))
  assert registry.family_in(tmp_path) is toy_vlm.FAMILY
  config = registry.read_config(tmp_path / "config.json")
  assert config == toy_vlm.make_config(FIELDS) and registry.family_of(config) is toy_vlm.FAMILY


def test_a_release_is_known_by_its_name_without_its_files():
  config = registry.preset_config("somewhere/Qwen2.5-VL-7B-Instruct")
  assert (config.model_type, config.hidden_size) == ("qwen2_5_vl", 3584)
  with pytest.raises(errors.InputError, match=r"holds no config\.json, and is none of Qwen"):
    registry.preset_config("nothing")


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"model_type": "other"}, "model_type: is 'other', but only .*'toy_vlm' can be read"),
    ({}, "model_type: the field is missing; one of .*toy_vlm"),
  ],
)
def test_a_config_of_no_family_is_named_with_its_file(tmp_path, fields, says):
  (tmp_path / "config.json").write_text(json.dumps(fields))
  with pytest.raises(errors.InputError, match=f"config.json: {says}"):
    registry.read_config(tmp_path / "config.json")


RELEASES = ("Qwen2.5-VL-7B-Instruct", "Qwen3-VL-2B-Instruct", "TinyLLaVA-Video-Phi2-Naive-16-512")


@pytest.mark.parametrize("release", ["", *RELEASES])
def test_each_parameter_is_in_one_group_and_has_its_tensors(release):
  config = registry.preset_config(release) if release else toy_vlm.make_config(FIELDS)
  family = registry.family_of(config)
  flat = weight_mapping.flat(family.abstract_params(config))
  for name in flat:
    groups = [
      group
      for group, names in family.parameter_groups.items()
      if any(f"{name}.".startswith(f"{each}.") for each in names)
    ]
    assert len(groups) == 1, (name, groups)
  slots = family.weights.slots(config, flat)
  assert len(weight_mapping.by_tensor(slots)) == sum(len(slot.names) for slot in slots.values())


def _encoded(shapes, rng, frames, *, known=False):
  count = frames * shapes.media_tokens(1)
  kind = np.full(count + 2, records.Kind.IMAGE, np.int32)
  kind[[0, -1]] = records.Kind.TEXT
  vision = [rng.random((1, toy_vlm.CELLS, toy_vlm.CELLS, 3), np.float32) for _ in range(frames)]
  features = shapes.features(lambda shape, dtype: rng.random(shape).astype(dtype), count)
  return prompts.EncodedPrompt(
    name="one",
    tokens=np.arange(count + 2, dtype=np.int32),
    kind=kind,
    positions=np.arange(count + 2, dtype=np.int32)[:, None],
    next_position=count + 2,
    loss_mask=np.zeros(count + 2, bool),
    grids=(),
    frames=tuple(prompts.TemporalPatch(vision=None if known else one, patches=1) for one in vision),
    features=features if known else None,
  )


def test_features_of_several_arrays_are_packed_to_rows_and_back():
  shapes = toy_vlm.make_config(FIELDS).vision_shapes
  features = _encoded(shapes, np.random.default_rng(0), 3, known=True).features
  rows = shapes.pack_features(features)
  assert rows.shape == (3, shapes.feature_width) and shapes.feature_width == 33
  jax.tree.map(np.testing.assert_array_equal, shapes.unpack_features(rows), features)


def test_known_features_stand_at_their_media_index_and_the_rest_is_zero():
  shapes, rng = toy_vlm.make_config(FIELDS).vision_shapes, np.random.default_rng(0)
  encoded = [_encoded(shapes, rng, 2, known=True), _encoded(shapes, rng, 3)]
  sizes = prompts.PromptSizes(prefix=8, frames=4, patches=1)
  batch = prompts.pad(encoded, shapes, sizes, pad_token=0)
  assert batch.vision is None and batch.positions.shape == (2, 8, 1)
  for name, expected in encoded[0].features.items():
    index = batch.media_index[0][batch.media_index[0] >= 0]
    np.testing.assert_array_equal(batch.media[name][0, index], expected)
    assert not batch.media[name][0, len(index) :].any() and not batch.media[name][1].any()


def test_frames_are_stacked_and_padded_with_the_patch_that_a_family_names():
  shapes, rng = toy_vlm.make_config(FIELDS).vision_shapes, np.random.default_rng(0)
  one = _encoded(shapes, rng, 2)
  shown = prompts.stack_frames([one], shapes, prompts.PromptSizes(prefix=8, frames=3, patches=2))
  assert shown.shape == (1, 3, 2, toy_vlm.CELLS, toy_vlm.CELLS, 3)
  np.testing.assert_array_equal(shown[0, 1, 0], one.frames[1].vision[0])
  assert not shown[0, 2].any() and not shown[0, :, 1].any()
