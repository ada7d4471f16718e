"""What is wrong with the directory of a model is said before any video is read."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from tests.train import nano
from vr_jax import errors, main
from vr_jax.models import qwen2_5_vl, registry, sam2
from vr_jax.models.sam2 import parameters as sam2_parameters
from vr_jax.train import initialization, model_checks, paths


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
  """The directory of a model with its tokenizer."""
  context = nano.build(data)
  path = tmp_path_factory.mktemp("models") / "model"
  params = initialization.fresh_params(context)
  qwen2_5_vl.save_pretrained(params, path, config=context.model, file_bytes=40_000)
  shutil.copy(paths.tokenizer_path(context.config, data), path / "tokenizer.json")
  return path


@pytest.fixture
def copy(model, tmp_path):
  return shutil.copytree(model, tmp_path / "model")


def _problems(path, mode="all", workdir="run", **fields):
  config = nano.config(model__pretrained=str(path), model__tokenizer="", **fields)
  return [str(problem) for problem in model_checks.problems(config, path.parent / workdir, mode)]


def test_a_whole_model_has_no_problem(model):
  assert _problems(model) == []
  assert _problems(model, rl__sampler_weights="int8") == []


def test_prompts_that_alone_fill_the_context_are_refused(model):
  (problem,) = _problems(model, model__prefix_buckets=(64, 4096))
  assert problem == (
    "--config.model.prefix_buckets=(64, 4096): prompts of 4096 tokens alone fill the model's "
    "context of 2048; leave that size out"
  )


def _drop(name):
  return lambda path: next(path.glob(name)).unlink()


def _cut(path):
  file = sorted(path.glob("*.safetensors"))[1]
  file.write_bytes(file.read_bytes()[:-9])


def _point(path):
  sorted(path.glob("*.safetensors"))[0].write_text("version https://git-lfs.github.com/spec/v1\n")


def _pickled(path):
  for file in path.glob("*.safetensors*"):
    file.unlink()
  (path / "pytorch_model.bin").touch()


def _of_another_family(path):
  fields = json.loads((path / "config.json").read_text())
  (path / "config.json").write_text(json.dumps({**fields, "model_type": "bert"}))


@pytest.mark.parametrize(
  ("spoil", "says"),
  [
    (_drop("config.json"), "model: holds no config.json"),
    (_drop("tokenizer.json"), "tokenizer.json: no such file"),
    (_drop("*00002*.safetensors"), "no such file, but model.safetensors.index.json names it"),
    (_cut, "damaged safetensors"),
    (_point, "is a pointer of Git LFS, not the file; run git lfs pull, or fetch the model with hf"),
    (_pickled, "pytorch_model.bin can't be read, fetch the safetensors files"),
    (_of_another_family, "config.json: model_type: is 'bert'"),
  ],
)
def test_what_is_missing_or_damaged_is_said_before_videos_are_read(copy, capsys, spoil, says):
  spoil(copy)
  (problem,) = _problems(copy)
  assert says in problem
  assert str(copy) in problem
  workdir = copy.parent / "run"
  flags = [f"--config.model.pretrained={copy}", "--config.model.tokenizer="]
  words = [word for word in nano.arguments(workdir) if "model.architecture" not in word]
  assert main.cli(["vr-jax", *words, *flags]) == 2
  assert capsys.readouterr().err == f"vr-jax: {problem}\n"
  assert not workdir.exists()


def test_all_problems_are_found(copy):
  _drop("tokenizer.json")(copy)
  _drop("*00002*.safetensors")(copy)
  found = _problems(copy, rl__init_checkpoint=str(copy), rl__max_new_tokens=5000)
  says = ("holds no checkpoint", "passes the model's context", "tokenizer.json", "names it")
  assert len(found) == len(says)
  assert all(part in line for part, line in zip(says, found, strict=True))


def test_data_can_be_made_beside_the_tokenizer_alone(copy):
  for file in copy.glob("*.safetensors*"):
    file.unlink()
  assert _problems(copy, mode="data") == []
  assert len(_problems(copy, mode="sft")) == 1
  (copy.parent / "run" / "checkpoints" / "sft" / "4").mkdir(parents=True)
  assert _problems(copy, mode="rl") == []
  assert len(_problems(copy, mode="rl", model__lora__rank=2)) == 1


@pytest.mark.parametrize(
  ("given", "says"),
  [
    (
      "some-lab/Model-2.1",
      "fetch it: hf download some-lab/Model-2.1 --local-dir=Model-2.1, then give "
      "--config.model.pretrained=Model-2.1",
    ),
    ("models/mine/of/today", "no such directory"),
    ("./models/mine", "no such directory"),
  ],
)
def test_a_name_on_the_hub_comes_with_the_command_that_fetches_it(
  monkeypatch, tmp_path, given, says
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.InputError) as error:
    registry.check_directory(given, "config.model.pretrained")
  assert str(error.value).endswith(says)
  assert str(error.value).startswith(f"config.model.pretrained={given}: no such directory")


def test_a_released_model_comes_with_the_command_that_fetches_it(monkeypatch, tmp_path, capsys):
  monkeypatch.chdir(tmp_path)
  assert main.cli(["vr-jax", "--config=moss_chatv:3b", "--workdir=run", "--mode=data"]) == 2
  line = capsys.readouterr().err
  name = line.split("pretrained=")[1].split(":")[0]
  assert line.endswith(f"no such directory; fetch it: hf download Qwen/{name} --local-dir={name}\n")


def test_a_cache_of_the_hub_is_said_with_the_directory_in_it(copy):
  cache = copy.parent / "models--lab--model"
  where = shutil.copytree(copy, cache / "snapshots" / "0123abc")
  assert _problems(cache) == [
    f"config.model.pretrained={cache}: holds no config.json; it is a cache of the Hub: give {where}"
  ]
  assert _problems(where) == []


@pytest.mark.parametrize("field", ["eval.tracker", "mask_filter.sam2"])
def test_weights_of_sam2_that_cannot_be_used_are_named_with_their_field(tmp_path, capsys, field):
  path, mode = tmp_path / "sam2", {"eval.tracker": "eval", "mask_filter.sam2": "filter"}[field]
  config = nano.config("configs/revseg.py", **nano.SHORT_GROUNDING)
  config.update_from_flattened_dict({field: str(path)})

  def problems(mode):
    return [str(each) for each in model_checks.problems(config, tmp_path / "run", mode)]

  smallest = sam2.smallest(64)
  sam2.save(sam2.Segmenter(smallest, sam2_parameters.initialise(smallest, 0)), path)
  assert problems("check") == problems(mode) == []
  file = path / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  get = "fetch weights with: hf download facebook/sam2"
  for foreign, says in (
    (dict(list(tensors.items())[1:]), f"{file}: no tensor {min(tensors)} (of 1 that SAM2 has"),
    ({"lm_head.weight": np.zeros((2, 2), np.float32)}, f"{file}: no tensor"),
    (None, f"{path}: no such SAM2 weights"),
  ):
    if foreign is None:
      shutil.rmtree(path)
    else:
      safetensors.numpy.save_file(foreign, file)
    (problem,) = problems("check")
    assert problem.startswith(f"--config.{field}: {says}") and get in problem
    assert "\n" not in problem
    assert problems(mode) == problems("all") == [problem]
    assert problems("sft") == []
  short = {name.replace("__", "."): value for name, value in nano.SHORT_GROUNDING.items()}
  flags = [f"--config.{name}={value}" for name, value in {**short, field: path}.items()]
  words = nano.arguments(tmp_path / "run", *flags, mode="check", recipe="configs/revseg.py")
  assert main.cli(["vr-jax", *words]) == 2
  assert f"problem: {problem}" in capsys.readouterr().out
