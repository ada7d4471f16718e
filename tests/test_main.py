"""The command line: what it overrides, and what it says of a mistake: one line, and exit code 2."""

import gc
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from vr_jax import config_fields, main, optional_sections, schema
from vr_jax.train import config_checks

ROOT = Path(__file__).resolve().parent.parent
RECIPE = str(ROOT / "configs" / "moss_chatv.py")
CONFIG = f"--config={RECIPE}:tiny"


def _parse(*words):
  return main.parse_flags(["vr-jax", *words])


def _fails(capsys, *words) -> str:
  """The one line that a command ends with."""
  assert main.cli(["vr-jax", *words]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1, lines
  assert lines[0].startswith("vr-jax: ")
  return lines[0]


@pytest.mark.parametrize(
  ("flag", "read", "value"),
  [
    ("--config.rl.learning_rate=2e-6", lambda c: c.rl.learning_rate, 2e-6),
    ("--config.rl.learning_rate=1", lambda c: c.rl.learning_rate, 1.0),
    ("--config.rl.steps=7", lambda c: c.rl.steps, 7),
    ("--config.seed=3", lambda c: c.seed, 3),
    ("--config.data.simulate.world.height=64", lambda c: c.data.simulate.world.height, 64),
    ("--config.model.prefix_buckets=(32, 64)", lambda c: c.model.prefix_buckets, (32, 64)),
    ("--config.mesh=(2,2,1,-1)", lambda c: c.mesh, (2, 2, 1, -1)),
    ("--config.env.process_gate=format", lambda c: c.env.process_gate, "format"),
    ("--config.eval.blind=False", lambda c: c.eval.blind, False),
    (
      "--config.model.architecture.text_config.rope_scaling.mrope_section=(2, 1, 1)",
      lambda c: c.model.architecture.text_config.rope_scaling.mrope_section,
      (2, 1, 1),
    ),
  ],
)
def test_a_field_is_overridden_on_the_command_line(flag, read, value):
  config, workdir, mode = _parse(CONFIG, "--workdir=runs/x", flag)
  assert read(config) == value
  assert (workdir, mode) == (Path("runs/x"), "all")


def test_every_leaf_of_every_size_can_be_overridden():
  for size in ("tiny", "3b", "7b"):
    config = _parse(f"--config={RECIPE}:{size}", "--workdir=x")[0]
    flags = [f"--config.{name}={value}" for name, value in _leaves(config)]
    again = _parse(f"--config={RECIPE}:{size}", "--workdir=x", *flags)[0]
    assert again.to_dict() == config.to_dict()


def _leaves(config, prefix=""):
  for name, value in config.items():
    if hasattr(value, "items"):
      yield from _leaves(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


@pytest.mark.parametrize("mode", main.MODES)
def test_the_mode_is_a_flag(mode):
  assert _parse(CONFIG, "--workdir=x", f"--mode={mode}")[2] == mode


@pytest.mark.parametrize(
  ("flag", "says"),
  [
    ("--workdir=s3://bucket/run", "--workdir=s3://bucket/run: is no path on this machine; give"),
    ("--config.data.videos=s3://b/v", "--config.data.videos=s3://b/v: is no path on this machine"),
    ("--config.log.profile_steps=5", "--config.log.profile_steps=5: needs the first and the last"),
    ("--config.log.profile_steps=7:5", "--config.log.profile_steps=7:5: needs the first and the"),
    ("--config.rl.learning_rat=1", "config.rl.learning_rate"),
    ("--config.rll.steps=1", "config.rl"),
    ("--config.sft.batch_siz=1", "config.sft.batch_size"),
    ("--config.rl.steps.more=1", "config.rl.steps.more"),
    ("--config.rl.steps=many", "many"),
    ("--config.rl.steps=1.5", "1.5"),
    ("--config.rl.learning_rate=fast", "fast"),
    ("--config.eval.blind=perhaps", "perhaps"),
    ("--config.mesh=wide", "config.mesh"),
    ("--config.mesh=(2, 2, 1)", "config.mesh"),
    ("--config.env.process_gate=closed", "config.env.process_gate"),
    ("--config.rl.aggregation=mean", "config.rl.aggregation"),
    ("--config.rl.kl_estimator=k4", "config.rl.kl_estimator"),
    ("--config.sft.schedule=linear", "config.sft.schedule"),
    ("--config.data.on_bad=ignore", "config.data.on_bad"),
    ("--config.rl.top_p=0.0", "config.rl.top_p=0.0: not in (0, 1]"),
    ("--config.rl.top_p=1.5", "config.rl.top_p"),
    ("--config.rl.temperature=0.0", "config.rl.temperature"),
    ("--config.eval.temperature=-1.0", "config.eval.temperature"),
    ("--config.env.alpha=0.0", "config.env.alpha"),
    ("--config.env.instruction=Answer.", "config.env.instruction: does not ask for <think>"),
    ("--config.sft.checkpoint_every=0", "config.sft.checkpoint_every"),
    ("--config.rl.checkpoint_every=0", "config.rl.checkpoint_every"),
    ("--config.rl.steps=-1", "config.rl.steps"),
    ("--config.sft.batch_size=0", "config.sft.batch_size"),
    ("--config.rl.batch_size=0", "config.rl.batch_size"),
    ("--config.rl.num_generations=0", "config.rl.num_generations"),
    ("--config.rl.num_iterations=0", "config.rl.num_iterations"),
    ("--config.rl.microbatches=0", "config.rl.microbatches"),
    ("--config.rl.decode_slot_fractions=half", "config.rl.decode_slot_fractions"),
    ("--config.model.prefix_buckets=()", "config.model.prefix_buckets"),
    ("--config.model.frame_buckets=(0,)", "config.model.frame_buckets"),
    ("--config.eval.batch_size=0", "config.eval.batch_size"),
    ("--config.rl.learning_rate=-1e-6", "config.rl.learning_rate"),
    ("--config.rl.learning_rate=nan", "config.rl.learning_rate"),
    ("--config.data.test_fraction=1.0", "config.data.test_fraction"),
    ("--config.data.validation_fraction=-0.1", "config.data.validation_fraction"),
    ("--mode=train", "train"),
    ("--wrkdir=x", "wrkdir"),
    ("stray", "stray"),
  ],
)
def test_a_mistake_is_one_line_that_names_it(capsys, tmp_path, flag, says):
  line = _fails(capsys, CONFIG, f"--workdir={tmp_path / 'run'}", flag)
  assert says in line
  assert not (tmp_path / "run").exists()


def test_every_described_field_is_that_of_a_config():
  recipes = sorted(Path(RECIPE).parent.glob("*.py"))
  configs = [_parse(f"--config={path}:tiny", "--workdir=x")[0] for path in recipes]
  leaves = {name for config in configs for name, _ in _leaves(config)}
  for section, cls in {"": config_fields.RunConfig, **optional_sections.OPTIONAL}.items():
    for field in schema.fields(cls, f"{section}." if section else ""):
      whole = isinstance(field.default, dict)  # a free section: its fields are those of others
      assert whole or field.name in leaves, field.name
  for config in configs:
    config_checks.check(config)


def test_an_unknown_size_is_named_with_those_that_exist(capsys):
  line = _fails(capsys, f"--config={RECIPE}:huge", "--workdir=x")
  assert "huge" in line
  assert "tiny" in line


def test_a_missing_recipe_is_named(capsys):
  assert "configs/none.py" in _fails(capsys, "--config=configs/none.py:tiny", "--workdir=x")


@pytest.mark.parametrize("words", [(), (CONFIG,), ("--workdir=x",)])
def test_config_and_workdir_are_asked_for(capsys, words):
  line = _fails(capsys, *words)
  assert "--config" in line
  assert "--workdir" in line


@pytest.mark.parametrize(
  ("error", "says"),
  [
    (
      OSError(28, "No space left on device", "runs/x/metrics.jsonl"),
      "runs/x/metrics.jsonl: No spa",
    ),
    (PermissionError(13, "Permission denied", "runs/x/report.html"), "runs/x/report.html: Permis"),
    (OSError(28, "No space left on device"), "vr-jax: No space left on device"),
    (OSError("broken"), "vr-jax: broken"),
  ],
)
def test_a_file_that_can_not_be_written_is_named(capsys, monkeypatch, error, says):
  def run(config, workdir, mode):
    raise error

  monkeypatch.setattr(main, "run", run)
  assert says in _fails(capsys, CONFIG, "--workdir=x")


def test_a_workdir_that_is_a_file_is_named(capsys, tmp_path):
  path = tmp_path / "file"
  path.write_text("")
  assert str(path) in _fails(capsys, CONFIG, f"--workdir={path}", "--mode=eval")


@pytest.mark.parametrize("mode", ["sft", "rl", "eval"])
def test_a_stage_without_data_says_which_stage_comes_first(capsys, tmp_path, mode):
  line = _fails(capsys, CONFIG, f"--workdir={tmp_path}", f"--mode={mode}")
  assert "--mode=data" in line


def test_an_interrupt_that_became_another_error_is_still_an_interrupt(capsys, monkeypatch):
  def interrupted(*_):
    try:
      signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
      raise RuntimeError("INTERNAL: KeyboardInterrupt: ") from error

  monkeypatch.setattr(main, "run", interrupted)
  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
  try:
    assert main.cli(["vr-jax", CONFIG, "--workdir=run"]) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  finally:
    signal.signal(signal.SIGINT, before)
  assert capsys.readouterr().err.startswith("vr-jax: interrupted")


def test_an_interrupt_during_a_garbage_collection_is_still_an_interrupt(capsys, monkeypatch):
  def interrupt(*_):
    gc.callbacks.remove(interrupt)
    signal.raise_signal(signal.SIGINT)  # Python drops the exception

  def collect(*_):
    gc.callbacks.append(interrupt)
    gc.collect()
    time.sleep(60)

  monkeypatch.setattr(main, "run", collect)
  before, hook = signal.signal(signal.SIGINT, signal.default_int_handler), sys.unraisablehook
  try:
    assert main.cli(["vr-jax", CONFIG, "--workdir=run"]) == 130
  finally:
    signal.signal(signal.SIGINT, before)
  assert sys.unraisablehook is hook
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("vr-jax: interrupted")


def test_an_error_of_ours_without_an_interrupt_has_its_traceback(monkeypatch):
  def broken(*_):
    raise RuntimeError("a mistake of ours")

  monkeypatch.setattr(main, "run", broken)
  with pytest.raises(RuntimeError, match="a mistake of ours"):
    main.cli(["vr-jax", CONFIG, "--workdir=run"])


def test_help_speaks_of_the_flags(capsys):
  with pytest.raises(SystemExit) as end:
    main.cli(["vr-jax", "--help"])
  assert end.value.code == 0
  assert "--workdir" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("flag", "says"),
  [("--config.rl.learning_rat=1", "config.rl.learning_rate"), ("--mode=train", "train")],
)
def test_the_process_ends_with_code_2_and_one_line(tmp_path, flag, says):
  done = subprocess.run(
    [sys.executable, "-m", "vr_jax.main", CONFIG, f"--workdir={tmp_path}", flag],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=60,
    check=False,
  )
  assert done.returncode == 2
  assert done.stdout == ""
  assert len(done.stderr.splitlines()) == 1
  assert says in done.stderr
