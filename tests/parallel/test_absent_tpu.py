"""Where libtpu is installed without a TPU, commands for the CPU print nothing of it."""

from importlib import metadata, util
import os
import subprocess
import sys

import jax
import pytest

from tests.train import nano
from vr_jax.parallel import absent_tpu

# What starts JAX in a run; and in `vr-jax ask`, `segment` and `serve`.
COMMANDS = (
  "from vr_jax.parallel import mesh; print(mesh.make_mesh((-1, 1, 1, 1)).devices)",
  "import jax; from vr_jax.train import console\nwith console.heartbeat(): print(jax.devices())",
)


@pytest.mark.skipif(util.find_spec("libtpu") is None, reason="libtpu is for Linux on x86-64")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_cpu_prints_nothing_of_libtpu(command):
  chosen = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
  # Another process that has loaded libtpu would keep this one from it, and thus quiet.
  env = {**chosen, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
  words = [sys.executable, "-c", command]
  done = subprocess.run(words, cwd=nano.ROOT, env=env, capture_output=True, text=True, check=True)
  assert "CpuDevice(id=0)" in done.stdout
  assert done.stderr == ""


@pytest.fixture
def platforms(monkeypatch):
  """What JAX is told of platforms; it is told nothing at first."""
  told = {}
  before = jax.config.jax_platforms
  monkeypatch.setattr(absent_tpu.util, "find_spec", lambda name: name)
  monkeypatch.setattr(absent_tpu.metadata, "entry_points", lambda group: ())
  monkeypatch.setattr(absent_tpu, "CHIPS", ())
  jax.config.update("jax_platforms", None)
  monkeypatch.setattr(absent_tpu.jax.config, "update", told.__setitem__)
  yield told
  monkeypatch.undo()
  jax.config.update("jax_platforms", before)


def test_without_a_chip_jax_uses_the_cpu(platforms):
  absent_tpu.leave_out()
  assert platforms == {"jax_platforms": "cpu"}


@pytest.mark.parametrize("there", ["a chip", "a plugin", "no libtpu", "a wish"])
def test_jax_is_left_alone_where_an_accelerator_may_be(platforms, monkeypatch, tmp_path, there):
  if there == "a chip":
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(absent_tpu, "CHIPS", (f"{tmp_path}/accel*",))
  elif there == "a plugin":
    plugin = metadata.EntryPoint("cuda", "jax_cuda", "jax_plugins")
    monkeypatch.setattr(absent_tpu.metadata, "entry_points", lambda group: (plugin,))
  elif there == "no libtpu":
    monkeypatch.setattr(absent_tpu.util, "find_spec", lambda name: None)
  else:
    monkeypatch.setenv("JAX_FORCE_TPU_INIT", "1")
  absent_tpu.leave_out()
  assert not platforms
