"""Names, shapes and counts of released SAM2 models; reading and writing; what is refused.

Reference: transformers' Sam2VideoModel on PyTorch's meta device, no tolerance.
"""

import json
from pathlib import Path
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from tests.models.sam2.conftest import HAS_REFERENCE, SMALLEST
from vr_jax import errors
from vr_jax.models import sam2
from vr_jax.models.sam2 import checkpoint, facebook_names, parameters
from vr_jax.models.sam2 import config as config_lib

# Names of transformers and of Facebook's checkpoints, for each kind of parameter; * is a number.
# Theirs are as its modules name them: github.com/facebookresearch/sam2, sam2/modeling.
NAMES = Path(__file__).resolve().parents[2] / "golden" / "sam2_names.txt"
NEW = {  # kinds of 2.1
  "occlusion_spatial_embedding_parameter",
  "temporal_positional_encoding_projection_layer.weight",
  "temporal_positional_encoding_projection_layer.bias",
}
RELEASES = {  # parameters and tensors of 2.1; 2.0 has 16,512 and 3 fewer
  "tiny": (38_962_498, 469),
  "small": (46_060_354, 517),
  "base_plus": (80_850_178, 613),
  "large": (224_446_642, 901),
}


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize("size", config_lib.SIZES)
def test_released_models_have_the_parameters_of_the_reference(size, version):
  config = config_lib.released(size, version)
  shapes = {name: p.shape for name, p in parameters.parameters(config).items()}
  count = sum(map(np.prod, shapes.values()))
  new = version == "2.1"
  assert len(shapes) == RELEASES[size][1] - (0 if new else 3)
  # The fixed frequencies of points, stored twice, are no parameters to PyTorch.
  assert count - 2 * 2 * config.width // 2 == RELEASES[size][0] - (0 if new else 16_512)
  if HAS_REFERENCE:
    import torch
    import transformers

    fields = config_lib.to_dict(config)
    with torch.device("meta"):
      model = transformers.Sam2VideoModel(transformers.Sam2VideoConfig(**fields))
    assert {name: tuple(x.shape) for name, x in model.state_dict().items()} == shapes


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize("size", config_lib.SIZES)
def test_files_with_facebooks_names_tell_which_release_they_are(size, version):
  config = config_lib.released(size, version)
  shapes = facebook_names.expected_shapes(config)
  assert facebook_names.recognise(shapes) == config
  # Points are four tensors there; their frequencies are one, here two.
  assert len(shapes) == len(parameters.parameters(config)) + 3 - 1


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize("size", config_lib.SIZES)
def test_facebooks_names_are_those_of_its_modules(size, version):
  pairs = dict(line.split() for line in NAMES.read_text(encoding="utf-8").splitlines())
  kinds = {kind: re.compile(re.escape(kind).replace(r"\*", r"(\d+)")) for kind in pairs}
  used = set()
  for name in parameters.parameters(config_lib.released(size, version)):
    ((kind, found),) = ((k, m) for k, p in kinds.items() if (m := p.fullmatch(name)))
    used.add(kind)
    theirs = pairs[kind].replace("*", "{}")
    points = range(4) if name == facebook_names.POINT_EMBEDDINGS else ("",)
    expected = tuple(theirs.format(*found.groups(), point) for point in points)
    assert facebook_names.tensors_of(name) == expected
  assert pairs.keys() - used == (NEW if version == "2.0" else set())


@pytest.fixture(scope="module")
def params():
  """Fresh parameters of the smallest model."""
  return parameters.initialise(SMALLEST, 0)


@pytest.fixture
def weights(params, tmp_path):
  """A directory with them."""
  sam2.save(sam2.Segmenter(SMALLEST, params), tmp_path / "weights")
  return tmp_path / "weights"


def rewrite(directory, change):
  """Changes the tensors of a file, a dict by name."""
  file = directory / checkpoint.FILE
  tensors = dict(safetensors.numpy.load_file(file))
  file.unlink()
  change(tensors)
  safetensors.numpy.save_file(tensors, file)


def test_what_is_saved_is_loaded(params, weights):
  loaded = sam2.load(weights)
  assert loaded.config == SMALLEST
  assert loaded.params.keys() == params.keys()
  for name, value in params.items():
    np.testing.assert_array_equal(loaded.params[name], value)
  assert sam2.load(weights / checkpoint.FILE, "bfloat16").params["no_object_pointer"].dtype == (
    "bfloat16"
  )
  with pytest.raises(errors.InputError, match="cannot be written"):
    sam2.save(loaded, weights)


def facebook(tensors):
  """The same tensors by Facebook's names."""
  theirs = {}
  for name, value in tensors.items():
    names = facebook_names.tensors_of(name)
    theirs |= dict(zip(names, np.split(value, len(names)), strict=True))
  return theirs


def test_both_namings_give_the_same_model(params, weights):
  def rename(tensors):
    theirs = facebook(tensors)
    tensors.clear()
    tensors.update({name: x.astype(np.float16) for name, x in theirs.items()})

  rewrite(weights, rename)
  loaded = sam2.load(weights)
  for name, value in params.items():
    np.testing.assert_array_equal(loaded.params[name], value.astype(np.float16))


def message(path):
  with pytest.raises(errors.InputError) as caught:
    sam2.load(path)
  text = str(caught.value)
  assert "\n" not in text
  return text


def test_absent_weights_say_where_to_get_them(tmp_path):
  for path in (tmp_path / "nowhere", tmp_path):
    text = message(path)
    assert text.startswith(f"{path}: ")
    assert (
      f"hf download facebook/sam2.1-hiera-large model.safetensors config.json --local-dir {path}"
      in text
    )


def test_a_pickled_checkpoint_is_refused_and_the_advice_converts_it(params, tmp_path):
  torch = pytest.importorskip("torch")
  specs = parameters.parameters(SMALLEST)
  tensors = facebook(
    {name: specs[name].to_file(np.asarray(value)) for name, value in params.items()}
  )
  state = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in tensors.items()}
  torch.save({"model": state}, tmp_path / "sam2.1_hiera_tiny.pt")
  text = message(tmp_path)
  assert text == message(tmp_path / "sam2.1_hiera_tiny.pt")
  assert "is a pickle" in text
  command = shlex.split(text.partition("convert it once with: ")[2])
  assert command[:-1] == ["python", "-c"]
  subprocess.run([sys.executable, *command[1:]], check=True)
  (tmp_path / checkpoint.CONFIG).write_text(json.dumps(config_lib.to_dict(SMALLEST)))
  loaded = sam2.load(tmp_path)
  assert loaded.config == SMALLEST
  for name, value in params.items():
    np.testing.assert_array_equal(loaded.params[name], value)


def test_foreign_weights_are_refused_with_the_tensor(weights):
  rewrite(weights, lambda tensors: tensors.pop("no_object_pointer"))
  assert "no tensor no_object_pointer (of 1 that SAM2 has" in message(weights)
  rewrite(weights, lambda tensors: tensors.update(no_object_pointer=np.zeros((1, 64), np.float32)))
  assert "tensor no_object_pointer has shape (1, 64), but this SAM2's is (1, 128)" in message(
    weights
  )
  rewrite(weights, lambda tensors: tensors.update(no_object_pointer=np.zeros((1, 128), np.float32)))
  sam2.load(weights)
  rewrite(weights, lambda tensors: tensors.update(extra=np.zeros(1, np.float32)))
  assert "tensor extra is none of this SAM2's" in message(weights)
  (weights / checkpoint.CONFIG).unlink()
  assert f"{weights / checkpoint.CONFIG}: no such file" in message(weights)
  safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, weights / checkpoint.FILE)
  assert "holds no SAM2; fetch weights with: hf download" in message(weights)
  (weights / checkpoint.FILE).write_bytes(b"\x80\x04pickle")
  assert "damaged safetensors" in message(weights)


def test_a_foreign_config_is_refused_with_the_field(weights):
  fields = config_lib.to_dict(SMALLEST)

  def told(**changes):
    (weights / checkpoint.CONFIG).write_text(json.dumps({**fields, **changes}))
    return message(weights)

  assert "model_type is 'sam', not 'sam2_video'" in told(model_type="sam")
  assert "num_maskmem" not in told(max_cond_frame_num=4)
  assert "max_cond_frame_num: is 4, but only -1 can be computed" in told(max_cond_frame_num=4)
  assert "memory_encoder_hidden_size: is 64, but fpn_hidden_size is 128" in told(
    memory_encoder_hidden_size=64
  )
  assert "image_size: is 100, not a multiple of 32" in told(image_size=100)
  (weights / checkpoint.CONFIG).write_text("[]")
  assert "no valid config.json" in message(weights)


def test_facebooks_file_of_another_size_says_what_differs_from_the_nearest_release(weights):
  tensors = facebook(dict(safetensors.numpy.load_file(weights / checkpoint.FILE)))
  safetensors.numpy.save_file(tensors, weights / checkpoint.FILE)
  (weights / checkpoint.CONFIG).unlink()
  assert "this SAM2's is" in message(weights) or "no tensor" in message(weights)
