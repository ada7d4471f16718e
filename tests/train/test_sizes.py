"""Every size of the recipe can start on common numbers of devices."""

import json
import re
import shlex
from typing import Any, cast

import jax
import numpy as np
import pytest

from tests.train import nano
from vr_jax import errors, main, records
from vr_jax.models.common import image_patches
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.models.qwen2_5_vl import positions
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import machine_check, model_setup


@pytest.mark.parametrize(
  "size",
  [
    *("tiny", "tiny_qwen3vl", "tiny_phi2", "tiny_wordings", "tiny_steps"),
    *("phi2", "3b", "7b", "qwen3vl_8b"),
  ],
)
@pytest.mark.parametrize("devices", [1, 4, 8, 16])
def test_batches_of_every_size_divide_over_one_to_sixteen_devices(size, devices):
  config = nano.recipe(size)
  data, fsdp, _, tensor = (devices if axis == -1 else axis for axis in config.mesh)
  mesh = jax.sharding.AbstractMesh((data, fsdp, 1, tensor), mesh_lib.AXES)
  config = model_setup.clamp_microbatches(config, mesh)
  for section in ("sft", "rl", "eval"):
    part = config[section]
    parts = part.get("microbatches", 1)
    mesh_lib.check_batch(part.batch_size, mesh, f"config.{section}.batch_size", parts=parts)


@pytest.mark.parametrize(
  ("mesh", "asked", "made"),
  [
    ((1, 1, 1, 1), 4, 4),
    ((1, 4, 1, 1), 4, 4),
    ((2, 4, 1, 1), 4, 2),
    ((16, 1, 1, 1), 4, 1),
    ((1, 1, 1, 1), 99, 16),
    ((1, 1, 4, 4), 16, 16),
  ],
)
def test_an_update_has_as_many_parts_as_it_asks_for_or_one_a_prompt_of_each_device(
  mesh, asked, made
):
  config = nano.recipe("3b")
  config.rl.microbatches = config.sft.microbatches = asked
  found = model_setup.clamp_microbatches(config, jax.sharding.AbstractMesh(mesh, mesh_lib.AXES))
  assert (found.rl.microbatches, found.sft.microbatches) == (made, made)
  assert config.rl.microbatches == asked


@pytest.mark.parametrize(
  ("stage", "flag"), [("sft", "sft.batch_size=4"), ("rl", "rl.batch_size=4")]
)
def test_parts_that_are_not_equal_are_refused(data, tmp_path, capsys, monkeypatch, stage, flag):
  nano.use_devices(monkeypatch, 1)
  more = (f"--config.data.directory={data}", f"--config.{stage}.microbatches=3")
  assert main.cli(["vr-jax", *nano.arguments(tmp_path, *more, mode=stage)]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert f"config.{flag}: not a multiple of 3 =" in line


@pytest.mark.parametrize(
  ("size", "devices"), [("72b", 8), ("72b", 64), ("72b", 128), ("qwen3vl_32b", 32)]
)
def test_the_largest_sizes_divide_over_slices_of_a_pod(size, devices):
  config = nano.recipe(size)
  data, _, _, tensor = config.mesh
  mesh = jax.sharding.AbstractMesh((data, devices // 8, 1, tensor), mesh_lib.AXES)
  for section in ("sft", "rl", "eval"):
    mesh_lib.check_batch(config[section].batch_size, mesh, f"config.{section}.batch_size")


@pytest.mark.parametrize("size", ["3b", "7b", "72b"])
def test_the_flags_for_64_frames_of_256_tokens_are_those_that_the_recipe_names(size):
  text = (nano.ROOT / nano.RECIPE).read_text()
  flags = shlex.split(" ".join(re.findall(r"^    (--config\..*)$", text, re.MULTILINE)))
  recipe = f"--config={nano.ROOT / nano.RECIPE}:{size}"
  config = main.parse_flags(["vr-jax", recipe, "--workdir=x", *flags])[0]
  model = config.model
  side, _ = image_patches.smart_resize(
    896, 896, factor=28, min_pixels=model.min_pixels, max_pixels=model.max_pixels
  )
  patches = (side // 14) ** 2
  assert (config.data.frames, patches // 4) == (64, 256)
  assert max(model.frame_buckets) == 64 // 2
  assert max(model.patch_buckets) == patches
  assert max(model.prefix_buckets) > 32 * 256


@pytest.mark.parametrize("size", ["tiny", "3b", "7b"])
@pytest.mark.parametrize(
  ("said", "text"), [({}, [13, 14]), ({"rope_after_video": "sides"}, [5, 6])]
)
def test_text_after_a_video_continues_as_the_file_of_the_weights_says(
  data, tmp_path, size, said, text
):
  """A released config.json says nothing, and means the largest position; our exports say it.

  Four patches of 2 x 2 tokens, 1.5 s apart, at two steps a second.

  Their times are 3, 6, 9 and 12; the sides of a frame end at 5.
  """
  context = nano.build(data)
  fields = {**context.config.model.architecture.to_dict(), "image_token_id": 1, "video_token_id": 2}
  fields |= {"vision_start_token_id": 3, "vision_end_token_id": 4}
  del fields["vision_config"]["rope_after_video"]
  fields["vision_config"] |= said
  (tmp_path / "config.json").write_text(json.dumps(fields))
  config = nano.recipe(size)
  config.model.pretrained = str(tmp_path)
  model = model_setup.model_of(config)
  video = prompts_lib.Grid(kind=records.Kind.VIDEO, frames=4, height=4, width=4, seconds=1.5)
  kind = np.array([records.Kind.TEXT] * 3 + [records.Kind.VIDEO] * 16 + [records.Kind.TEXT] * 2)
  places, _ = positions.rope_index(kind.astype(np.int32), [video], cast(Any, model).vision)
  assert places[0, 3:19:4].tolist() == [3, 6, 9, 12]
  assert places[:, 19:].tolist() == [text] * 3


@pytest.mark.parametrize(
  ("mesh", "prompts", "named"),
  [
    ((1, 8, 1, 1), 2, (1, 2, 4, 1)),
    ((8, 1, 1, 1), 4, (4, 1, 2, 1)),
    ((2, 2, 1, 2), 2, (2, 1, 2, 2)),
    ((1, 8, 1, 1), 6, (1, 2, 4, 1)),
    ((1, 8, 1, 1), 3, (1, 1, 8, 1)),
  ],
)
def test_more_devices_than_prompts_are_refused_with_a_mesh_that_splits_groups(mesh, prompts, named):
  mesh = mesh_lib.make_mesh(mesh)
  config = nano.config(rl__batch_size=prompts, sft__steps=0, eval__batch_size=8)
  with pytest.raises(errors.InputError, match=r"rl\.batch_size=\d: not a multiple of") as caught:
    model_setup.check_batch(config, mesh, "rl")
  line = str(caught.value)
  assert f'; --config.mesh="({",".join(map(str, named))})" works' in line and "\n" not in line
  model_setup.check_batch(config, mesh_lib.make_mesh(named), "rl")


@pytest.mark.parametrize(
  ("mesh", "prompts", "chosen"),
  [
    ((1, -1, -1, 1), 8, (1, 8, 1, 1)),
    ((1, -1, -1, 1), 2, (1, 2, 4, 1)),
    ((2, -1, -1, 1), 2, (2, 1, 4, 1)),
    ((1, -1, -1, 2), 6, (1, 2, 2, 2)),
    ((1, -1, -1, 1), 3, (1, 1, 8, 1)),
    ((1, -1, 1, 1), 2, (1, -1, 1, 1)),  # not left open
    ((-1, 1, -1, 1), 2, (-1, 1, -1, 1)),
  ],
)
def test_devices_beyond_the_prompts_split_them_where_the_mesh_leaves_that_open(
  mesh, prompts, chosen
):
  config = nano.config(rl__batch_size=prompts, sft__steps=0, eval__batch_size=24, mesh=mesh)
  assert model_setup.mesh_shape(config) == chosen
  if -1 not in chosen:
    made = model_setup.make_mesh(config)
    assert made.devices.shape == chosen
    model_setup.check_batch(config, made, "rl")
    model_setup.check_batch(config, made, "eval")


def test_a_check_says_which_mesh_an_open_one_is():
  lines = []
  config = nano.config(rl__batch_size=2, sft__steps=0, eval__batch_size=4, mesh=(1, -1, -1, 1))
  assert list(machine_check.problems(config, lines, [0])) == []
  assert lines[0].startswith("mesh: 1 x 2 x 4 x 1 (")


def test_an_open_mesh_of_two_halves_is_chosen_for_one_of_them():
  config = nano.config(rl__batch_size=2, rl__disjoint_meshes=True, sft__steps=0)
  config.mesh = (1, -1, -1, 1)
  assert model_setup.mesh_shape(config) == (1, 2, 2, 1)


def test_an_open_mesh_splits_no_prompts_where_they_can_not_be_split():
  config = nano.config(rl__batch_size=2, model__prefix_buckets=(81,), mesh=(1, -1, -1, 1))
  assert model_setup.mesh_shape(config) == (1, 8, 1, 1)
  with pytest.raises(errors.InputError, match=r"rl\.batch_size=2: not a multiple of 8"):
    model_setup.check_batch(config, model_setup.make_mesh(config), "rl")


def test_no_mesh_is_named_where_prompts_can_not_be_split():
  mesh = mesh_lib.make_mesh((1, 8, 1, 1))
  for field, value in (("model__decode_attention", "pallas"), ("model__prefix_buckets", (81,))):
    config = nano.config(rl__batch_size=2, **{field: value})
    with pytest.raises(errors.InputError, match=r"microbatches \(1\)$"):
      model_setup.check_batch(config, mesh, "rl")
