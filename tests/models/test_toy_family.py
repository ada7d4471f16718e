"""The boundary of models: a family registered from here goes through every stage."""

import dataclasses
import json

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from tests.data import videos
from tests.models import toy_vlm
from tests.train import nano
from vr_jax import main
from vr_jax.models import registry
from vr_jax.models.common import lora
from vr_jax.train import initialization, metrics, model_checks, paths, run_context

registry.register(toy_vlm.FAMILY)

TOY = {
  "model__architecture": ml_collections.ConfigDict(
    {"model_type": "toy_vlm", "vocab_size": 384, "max_position_embeddings": 1024}
  ),
  "model__prefix_buckets": (96,),
  "model__frame_buckets": (8,),
  "model__patch_buckets": (1,),
  "mesh": (1, 1, 1, 1),
  "cpu_devices": 0,
}
TURNS = {
  "data__simulate__world__behaviours": ("flicker",),
  "data__simulate__world__families": ("moment",),
  "data__simulate__world__fps": 1,
  "data__simulate__world__seconds": 16.0,
  "data__simulate__world__shown": 16.0,
  "data__simulate__world__dwell": 2.0,
  "env__sft_retrieval_fraction": 0.5,
  "critic__warmup_steps": 0,
  "env__turns": 2,
  "env__frame_budget": 8,
  "data__frames": 8,
  "model__prefix_buckets": (320,),
  "turns__episode_buckets": (192,),
  "turns__observation_buckets": (160,),
  "turns__frame_buckets": (2,),
  "turns__decode_chunk": 16,
  "sft__max_reply_tokens": 120,
  "sft__steps": 2,
  "rl__steps": 2,
}


@pytest.fixture(scope="module")
def one_device():
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 1)
    yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
  """A run of every stage with a frozen tower, so that the cache of its features is used too."""
  workdir = tmp_path_factory.mktemp("toy") / "run"
  config = nano.config(**TOY, model__freeze_vision=True, model__feature_cache_gib=0.1)
  main.run(config, workdir, "all")
  return config, workdir


def values(workdir, stage, name):
  lines = metrics.read(workdir / "metrics.jsonl")
  return [line["values"][name] for line in lines if line["stage"] == stage]


def test_it_is_trained_and_evaluated(run):
  config, workdir = run
  losses = values(workdir, "sft", "loss")
  assert len(losses) == config.sft.steps and losses[-1] < losses[0]
  assert np.isfinite(values(workdir, "rl", "loss")).all()
  # The sampler and the update compute the same network.
  ratio = values(workdir, "rl", "sampling/importance_sampling_ratio/mean")
  np.testing.assert_allclose(ratio, 1, atol=1e-3)
  results = [json.loads(path.read_text()) for path in (workdir / "eval").glob("*.json")]
  assert results and (workdir / "report.html").is_file()


def test_its_features_are_kept_and_found_again(run):
  _, workdir = run
  assert values(workdir, "sft", "vision/cache_hits")[0] == 0
  assert max(values(workdir, "rl", "vision/cache_hits")) > 0  # clips that the warm start has seen


def test_what_is_exported_is_what_was_trained(run):
  config, workdir = run
  main.run(config, workdir, "export")
  context = run_context.make_run_context(config, workdir, judged=False)
  found, params = registry.from_pretrained(workdir / "export")
  expected = initialization.load_params(context, workdir / "checkpoints" / "rl")
  assert found.architecture == context.model.architecture
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  again = nano.config(**TOY, model__pretrained=str(workdir / "export"), model__tokenizer="")
  again.data.directory = str(paths.data_directory(config, workdir))
  other = run_context.make_run_context(again, workdir, judged=False)
  jax.tree.map(np.testing.assert_array_equal, initialization.fresh_params(other), expected)


def test_it_answers_a_question_about_a_video(run, tmp_path, capsys):
  _, workdir = run
  video = videos.write(tmp_path / "clip.mp4")
  words = ["vr-jax", "ask", str(video), "Which colour?", "--options=red,blue"]
  assert main.cli([*words, f"--checkpoint={workdir}"]) == 0
  assert "\nOne turn\n" in capsys.readouterr().out


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_it_plays_episodes_of_several_turns(tmp_path, one_device, capsys, trained):
  changes = {**TOY, **TURNS, "model__freeze_vision": not trained}
  config = nano.config("configs/video_mtr.py", **changes)
  main.run(config, tmp_path / "run", "all")
  losses = values(tmp_path / "run", "rl", "loss")
  assert len(losses) == config.rl.steps and np.isfinite(losses).all()
  ratio = values(tmp_path / "run", "rl", "sampling/importance_sampling_ratio/mean")
  np.testing.assert_allclose(ratio, 1, atol=1e-3)
  capsys.readouterr()
  video = videos.write(tmp_path / "clip.mp4")
  words = ["vr-jax", "ask", str(video), "Which colour?", "--options=red,blue"]
  assert main.cli([*words, f"--checkpoint={tmp_path / 'run'}"]) == 0
  assert "\nTurn 1 of 2\n" in capsys.readouterr().out


def test_adapters_train_it_too(tmp_path, one_device, run):
  base, workdir = run
  main.run(base, workdir, "export")
  config = nano.config(
    **{**TOY, "model__lora__rank": 2, "model__lora__text": ("query", "up"), "sft__steps": 2},
    model__lora__base_dtype="float32",  # else the export holds rounded base weights
    model__pretrained=str(workdir / "export"),
    model__tokenizer="",
  )
  config.data.directory = str(paths.data_directory(base, workdir))
  main.run(config, tmp_path / "run", "sft")
  main.run(config, tmp_path / "run", "export")
  assert (tmp_path / "run" / "export-adapter" / "adapter_config.json").is_file()
  _, params = registry.from_pretrained(tmp_path / "run" / "export")
  before = registry.from_pretrained(workdir / "export")[1]
  changed = jax.tree.map(lambda x, y: bool((x != y).any()), params, before)
  names = changed["text"]["layers"]
  assert names["query"].get_value() and names["up"].get_value()
  assert not names["key"].get_value() and not changed["vision"]["cells"].get_value()


@pytest.mark.parametrize(
  ("declared", "matrix"),
  [
    (("query", "key", "value", "out", "up", "down"), ""),
    (("query", "key", "value", "out", "up"), "down"),
    (("query", "key", "value", "out", "up", "down"), "experts"),
  ],
)
def test_integers_are_refused_for_a_matrix_whose_inputs_the_family_does_not_declare(
  tmp_path, monkeypatch, declared, matrix
):
  def with_experts(*args, **options):
    network = toy_vlm.Toy(*args, **options)
    shape = (network.text.layers.up.shape[0], 4, 8, 6)
    network.text.layers.experts = nnx.Param(jnp.zeros(shape), axes=("layers", None, None, None))
    return network

  family = dataclasses.replace(
    toy_vlm.FAMILY,
    make_model=with_experts if matrix == "experts" else toy_vlm.Toy,
    lora_targets=lora.Targets(text=declared, vision=()),
  )
  monkeypatch.setitem(registry._registered, "toy_vlm", family)
  config = nano.config(**TOY, rl__sampler_weights="int8")
  found = [str(problem) for problem in model_checks.problems(config, tmp_path, "rl")]
  assert [problem.split(" are ")[0] for problem in found] == (
    [f"--config.rl.sampler_weights=int8: which axes of text.layers.{matrix}"] if matrix else []
  )
  config.rl.sampler_weights = "as_trained"
  assert not list(model_checks.problems(config, tmp_path, "rl"))


def test_a_model_type_that_nobody_registered_is_named():
  with pytest.raises(Exception, match=r"config\.model\.architecture\.model_type: is 'unknown'"):
    config = nano.config(**TOY)
    config.model.architecture.model_type = "unknown"
    run_context.make_run_context(config, nano.ROOT, judged=False, read=False)
