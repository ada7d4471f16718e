"""Compiler options by generation: what a run hands to libtpu, and what the compiler takes."""

import os

import pytest

from tests.train import nano
from vr_jax import ask, errors
from vr_jax.parallel import compiler_options
from vr_jax.serve import command
from vr_jax.train import console, run_context

TABLE = {"v6e": {"xla_a": "1", "xla_b": "2"}}


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """A directory of PCI devices with a v6e chip behind another maker's device."""
  for place, vendor, device in (("0", "0x8086", "0x006f"), ("1", "0x1ae0", "0x006f")):
    (tmp_path / place).mkdir()
    (tmp_path / place / "vendor").write_text(f"{vendor}\n")
    (tmp_path / place / "device").write_text(f"{device}\n")
  monkeypatch.setattr(compiler_options, "OPTIONS", TABLE)
  monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
  return tmp_path


def test_the_device_kind_decides_and_the_config_goes_before_the_table(monkeypatch):
  monkeypatch.setattr(compiler_options, "OPTIONS", TABLE)
  changes = ("xla_a=", "xla_b=3", "xla_c=4")
  assert compiler_options.options_for("TPU v6 lite") == {"xla_a": "1", "xla_b": "2"}
  assert compiler_options.options_for("TPU v6 lite", changes) == {"xla_b": "3", "xla_c": "4"}
  assert compiler_options.options_for("TPU v5", changes) == {"xla_b": "3", "xla_c": "4"}
  assert compiler_options.options_for("NVIDIA H100 80GB HBM3", changes) == {}
  assert compiler_options.options_for("cpu", changes) == {}


def test_a_run_hands_the_options_of_its_chips_to_libtpu_and_leaves_given_flags(
  machine, monkeypatch
):
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_a=9 --other")
  compiler_options.set_for_machine(("xla_c=4",), pci=str(machine))
  assert os.environ["LIBTPU_INIT_ARGS"] == "--xla_a=9 --other --xla_b=2 --xla_c=4"


def test_a_machine_without_a_tpu_is_left_alone(machine):
  compiler_options.set_for_machine(("xla_c=4",), pci=str(machine / "0"))
  assert "LIBTPU_INIT_ARGS" not in os.environ


@pytest.mark.parametrize("change", ["a=1", "xla_a", "xla_a=1 --xla_b=2", "--xla_a=1"])
def test_a_malformed_option_is_bad_input(change):
  with pytest.raises(errors.InputError, match=r"config.compiler_options: .*xla_NAME=VALUE"):
    compiler_options.options_for("TPU v6 lite", (change,))
  with pytest.raises(errors.InputError, match=r"config.compiler_options"):
    compiler_options.check((change,))


@pytest.mark.parametrize("start", [ask.ask, command.serve], ids=["ask", "serve"])
def test_commands_that_load_a_policy_hand_the_options_over_before_jax_starts(
  machine, monkeypatch, tmp_path, start
):
  """The heartbeat is the first to ask JAX something."""
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_b=9")
  monkeypatch.setattr(compiler_options, "_attached_generation", lambda pci: "v6e")
  seen = []

  def begin(**_):
    seen.append(os.environ["LIBTPU_INIT_ARGS"])
    raise errors.InputError("seen")

  monkeypatch.setattr(console, "heartbeat", begin)
  video = tmp_path / "clip.mp4"
  video.write_bytes(b"is not read")
  words = [str(video), "What?"] if start is ask.ask else ["--port=0"]
  words += ["--config=grpo:3b", f"--checkpoint={tmp_path}"]
  words += ["--config.compiler_options=('xla_b=3', 'xla_c=4')"]
  with pytest.raises(errors.InputError, match=r"^seen$"):
    start(["", *words])
  assert seen == ["--xla_b=9 --xla_a=1 --xla_c=4"]  # what is there already wins


def test_a_context_that_is_made_again_adds_no_option_twice(machine, data, monkeypatch):
  monkeypatch.setattr(compiler_options, "_attached_generation", lambda pci: "v6e")
  config = nano.config(data__directory=str(data), compiler_options=("xla_b=",))
  for _ in range(2):
    run_context.make_run_context(config, data, judged=False, read=False)
    assert os.environ["LIBTPU_INIT_ARGS"] == "--xla_a=1"
