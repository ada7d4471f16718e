"""Names in files stay below the directory that they are about."""

import gzip
import json
import zipfile

import numpy as np
from PIL import Image
import pytest
from safetensors import numpy as safetensors

from tests.data import annotation_files
from vr_jax import errors, inner_path
from vr_jax.data import segmented_video
from vr_jax.eval import mask_submissions
from vr_jax.models import registry
from vr_jax.models.common import checkpoint
from vr_jax.train import checksums

OUTSIDE = ("../x", "a/../../x", "/etc/passwd", "..", "", "a\0b", "x" * 300, "\ud800", "..\\x", 3)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_its_directory_or_can_not_exist_is_none(name):
  assert not inner_path.is_inner(name)
  assert not inner_path.is_plain(name)


@pytest.mark.parametrize("name", ["a.mp4", "deep/b.mp4", "x..y", "…/ü.jpg", "."])
def test_other_names_are_inner(name):
  assert inner_path.is_inner(name) or name == "."
  assert inner_path.is_plain(name) == ("/" not in name and name != ".")


def test_an_index_of_weights_names_files_of_its_directory_alone(tmp_path):
  safetensors.save_file({"a": np.zeros(1, np.float32)}, tmp_path / "secret.safetensors")
  model = tmp_path / "model"
  model.mkdir()
  for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors")):
    (model / checkpoint.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(errors.InputError, match="is no file of this directory"):
      config = registry.preset_config("Qwen2.5-VL-3B-Instruct")
      checkpoint.unused_tensors(model, config, family=registry.family("qwen2_5_vl"))


@pytest.mark.parametrize("masks", ["../masks.json", "/masks.json", "a/../../m.json"])
def test_a_query_names_a_mask_file_below_its_annotations(tmp_path, masks):
  record = {"id": "q", "video": "a.mp4", "question": "the ball", "problem_type": "segmentation"}
  with pytest.raises(errors.InputError, match="'masks': needs the path of a mask file below"):
    annotation_files.read(tmp_path, {**record, "masks": masks, "instances": ["1"]})


def _named(video, query="0"):
  found = segmented_video.SegmentedQuery(name=query, text="a ball", instances=("1",))
  return found, segmented_video.SegmentedVideo(
    **{"name": video, "frames": ("0",), "height": 1, "width": 1, "queries": (found,)},
    folder=annotation_files.Path("."),
    instances=None,
  )


@pytest.mark.parametrize(("video", "query"), [("../v", "0"), ("v", "../../0"), ("/v", "0")])
@pytest.mark.parametrize("layout", ["mevis", "ref_youtube_vos"])
def test_masks_of_a_submission_are_written_below_its_directory(tmp_path, layout, video, query):
  found, named = _named(video, query)
  with pytest.raises(errors.InputError, match="no place below the predictions"):
    mask_submissions.folder(layout, tmp_path, named, found)


def test_a_submission_holds_no_file_that_a_link_leads_to(tmp_path):
  Image.new("L", (4, 4)).save(tmp_path / "secret.png")
  root = tmp_path / "masks"
  root.mkdir()
  Image.new("L", (4, 4)).save(root / "a.png")
  assert mask_submissions.pack(root, tmp_path / "a.zip") == 1
  assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == ["a.png"]
  (root / "b.png").symlink_to(tmp_path / "secret.png")
  with pytest.raises(errors.InputError, match=r"b\.png: is a link to a file elsewhere"):
    mask_submissions.pack(root, tmp_path / "b.zip")
  assert not (tmp_path / "b.zip").exists()


def test_checksums_of_a_checkpoint_are_those_of_its_files(tmp_path):
  (tmp_path / "secret").write_text("x")
  step = tmp_path / "1"
  step.mkdir()
  (step / "checksums-0-of-1.json").write_text(json.dumps({"../secret": [1, 0]}))
  assert "name a file elsewhere" in checksums.find_damage(step)


def test_a_gzip_file_that_unpacks_to_far_more_than_annotations_do_is_refused(tmp_path):
  path = tmp_path / "notes.jsonl.gz"
  path.write_bytes(gzip.compress(b" " * 2**27, compresslevel=1))
  with pytest.raises(errors.InputError, match="unpacks to more than 200 times its size"):
    annotation_files.annotations.read_first(path)


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\u2028b", "a\x85b"])
def test_an_input_error_is_always_one_line(text):
  assert len(str(errors.InputError(text)).splitlines()) == 1
