"""`--mode=export`: other programs read the checkpoint, whatever the number of processes."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any, cast

import jax
import numpy as np
import pytest

from tests.train import nano
from vr_jax import errors, main
from vr_jax.models import qwen2_5_vl
from vr_jax.train import checkpoints, export_stage, initialization, run_context
from vr_jax.train import train_state as train_state_lib

HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))
MESH = (1, 4, 1, 2)


def config(data, **more):
  return nano.config(data__directory=str(data), sft__steps=2, mesh=MESH, **more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
  """A workdir whose warm start wrote a checkpoint at step 2."""
  workdir = tmp_path_factory.mktemp("trained") / "run"
  context = run_context.make_run_context(config(data), workdir)
  optimizer = train_state_lib.make_optimizer(
    context.config.sft, context.abstract_params, context.frozen
  )
  state = train_state_lib.create(initialization.fresh_params(context), optimizer, context.mesh)
  store = checkpoints.Checkpoints(
    workdir / "checkpoints" / "sft", architecture=context.architecture
  )
  store.save(2, state, {})
  store.close()
  return workdir


@pytest.fixture(scope="module")
def exported(trained, data):
  main.run(config(data), trained, "export")
  return trained / "export"


def assert_same(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


def test_what_was_trained_is_what_is_read(exported, trained, data):
  context = run_context.make_run_context(config(data), trained)
  expected = initialization.load_params(context, trained / "checkpoints" / "sft")
  assert_same(qwen2_5_vl.from_pretrained(exported)[1], expected)


def test_a_run_starts_from_an_export_as_from_any_pretrained_model(exported, trained, data):
  again = config(data, model__pretrained=str(exported), model__tokenizer="")
  context = run_context.make_run_context(again, trained)
  before = run_context.make_run_context(config(data), trained)
  assert context.architecture == before.architecture
  assert context.processor.stop_tokens == before.processor.stop_tokens
  assert_same(
    initialization.fresh_params(context),
    initialization.load_params(before, trained / "checkpoints" / "sft"),
  )


@pytest.mark.skipif(not HAS_REFERENCE, reason="torch and transformers not installed")
def test_transformers_reads_model_and_tokenizer(exported, trained, data):
  import transformers

  # A cast, since the annotation does not know output_loading_info.
  load = cast(Any, transformers.AutoModelForImageTextToText.from_pretrained)
  _, problems = load(exported, output_loading_info=True)
  assert not any(problems.values()), problems
  tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
  ours = run_context.make_run_context(config(data), trained).processor
  text = "<|im_start|>user\nAt 6s, the lamp turns <red>.<|im_end|>"
  assert tokenizer(text).input_ids == ours.tokenizer.encode(text).ids
  assert transformers.GenerationConfig.from_pretrained(exported).eos_token_id == list(
    ours.stop_tokens
  )


def test_two_processes_write_the_same_bytes_as_one(exported, trained, data, tmp_path):
  flags = nano.arguments(
    trained,
    f"--config.data.directory={data}",
    "--config.sft.steps=2",
    f"--config.mesh={MESH}",
    f"--config.export.directory={tmp_path / 'together'}",
    mode="export",
  )
  done = subprocess.run(
    [sys.executable, "-m", "launch.local", "--processes=2", "--devices=4", "--", *flags],
    cwd=nano.ROOT,
    env=os.environ,
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  files = sorted(path.name for path in exported.iterdir())
  assert files == sorted(path.name for path in (tmp_path / "together").iterdir())
  for name in files:
    assert (tmp_path / "together" / name).read_bytes() == (exported / name).read_bytes(), name


def test_an_export_that_is_there_is_kept_and_another_is_not_overwritten(
  exported, trained, data, capsys
):
  before = {path.name: path.stat().st_mtime_ns for path in exported.iterdir()}
  export_stage.export(config(data), trained)
  assert "is that of sft step 2" in capsys.readouterr().out
  with pytest.raises(errors.InputError, match="export: is there already"):
    export_stage.export(config(data, export__dtype="bfloat16"), trained)
  assert {path.name: path.stat().st_mtime_ns for path in exported.iterdir()} == before


def test_rl_is_what_counts_where_there_was_rl(trained, data, tmp_path):
  context = run_context.make_run_context(config(data), trained)
  assert export_stage.find_checkpoint(context, trained, "last") == (
    trained / "checkpoints" / "sft",
    2,
  )
  rl = tmp_path / "checkpoints" / "rl"
  rl.parent.mkdir()
  rl.symlink_to(trained / "checkpoints" / "sft")
  assert export_stage.find_checkpoint(context, tmp_path, "last") == (
    tmp_path / "checkpoints" / "rl",
    2,
  )


def test_a_run_without_checkpoints_has_nothing_to_export(data, tmp_path):
  with pytest.raises(errors.InputError, match=r"checkpoints: holds no complete checkpoint; run"):
    export_stage.export(config(data), tmp_path)


def test_an_export_of_an_earlier_checkpoint_of_the_workdir_is_replaced_when_the_new_one_is_whole(
  tmp_path,
):
  target, checkpoints = tmp_path / "export", tmp_path / "run" / "checkpoints"
  earlier, later = ({"checkpoints": str(checkpoints / "rl"), "step": step} for step in (4, 6))
  target.mkdir()
  (target / export_stage.RECORD).write_text(json.dumps(earlier))
  with (
    pytest.raises(OSError, match="full"),
    export_stage._replace_own(target, later) as path,
  ):
    path.mkdir()
    raise OSError("full")
  assert export_stage._record(target) == earlier
  with export_stage._replace_own(target, later) as path:
    path.mkdir()
    (path / export_stage.RECORD).write_text(json.dumps(later))
  assert export_stage._record(target) == later
  (target / "NOTES.md").write_text("mine")
  with (
    pytest.raises(errors.InputError, match=r"export: holds NOTES\.md"),
    export_stage._replace_own(target, {**later, "step": 8}) as path,
  ):
    path.mkdir()
    (path / export_stage.RECORD).write_text("{}")
  assert export_stage._record(target) == later and (target / "NOTES.md").read_text() == "mine"
  (target / "NOTES.md").unlink()
  assert [each.name for each in tmp_path.iterdir()] == ["export"]
  elsewhere = {"checkpoints": str(tmp_path / "other" / "checkpoints" / "rl"), "step": 6}
  for same in (later, elsewhere):  # what is not an earlier one of this workdir is left alone
    with export_stage._replace_own(target, same) as path:
      assert path == target
