"""A run that is told its backend runs on no other, nor alone where it is one of several."""

from importlib import metadata
import socket

import jax
import pytest

from tests.train import nano
from vr_jax import errors
from vr_jax.parallel import absent_tpu, asked_backend


def run(tmp_path, *words):
  """Exit code of a run, what it says in its last lines, and what it has written."""
  workdir = tmp_path / "run"
  process = nano.start(nano.arguments(workdir, *words, mode="data"))
  said = process.communicate(timeout=120)[1]
  lines = [line for line in said.splitlines() if "vr-jax: " in line]
  return process.returncode, lines, workdir.exists()


def test_a_host_of_a_pod_without_chips_refuses_to_run_alone(tmp_path):
  assert not absent_tpu.has_chips()
  code, lines, written = run(tmp_path, "--backend=tpu", "--num_processes=2")
  (line,) = lines
  assert (code, written) == (2, False)
  assert line.startswith(f"vr-jax: {socket.gethostname()}: --backend=tpu, but ")


def test_without_a_gpu_a_run_on_gpus_does_not_fall_back_to_the_cpu(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
  code, lines, written = run(tmp_path)
  assert (code, written) == (75, False)
  (line,) = lines
  assert line.startswith(f"vr-jax: {socket.gethostname()}: JAX runs on cpu, not on gpu: no device")


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """A machine with libtpu, a chip and CUDA; changes of JAX's configuration are noted."""
  told = {}
  plugin = metadata.EntryPoint("xla_cuda12", "jax_cuda12_plugin", "jax_plugins")
  (tmp_path / "accel0").touch()
  monkeypatch.setattr(asked_backend.util, "find_spec", lambda name: name)
  monkeypatch.setattr(asked_backend.metadata, "entry_points", lambda group: (plugin,))
  monkeypatch.setattr(absent_tpu, "CHIPS", (f"{tmp_path}/accel*",))
  monkeypatch.setattr(asked_backend.jax.config, "update", told.__setitem__)
  return told


@pytest.mark.parametrize(("backend", "platforms"), [("tpu", "tpu,cpu"), ("gpu", "cuda,cpu")])
def test_the_cpu_stays_beside_what_is_asked_for(machine, backend, platforms):
  asked_backend.choose(backend)
  assert machine == {"jax_platforms": platforms}


@pytest.mark.parametrize(
  ("backend", "missing", "line"),
  [
    ("tpu", "libtpu", "libtpu is not installed; install vr_jax[tpu]"),
    ("tpu", "chip", "no chip is seen"),
    ("gpu", "cuda", "JAX has no plugin for CUDA; install vr_jax[cuda]"),
  ],
)
def test_what_a_backend_lacks_is_named(machine, monkeypatch, backend, missing, line):
  if missing == "libtpu":
    monkeypatch.setattr(asked_backend.util, "find_spec", lambda name: None)
  elif missing == "chip":
    monkeypatch.setattr(absent_tpu, "CHIPS", ())
  else:
    monkeypatch.setattr(asked_backend.metadata, "entry_points", lambda group: ())
  with pytest.raises(errors.InputError, match=line.replace("[", r"\[")) as caught:
    asked_backend.choose(backend)
  assert str(caught.value).startswith(f"{socket.gethostname()}: --backend={backend}, but ")
  assert not machine


def test_a_backend_that_can_not_start_is_told_with_the_host(monkeypatch):
  def fail():
    raise RuntimeError("Unable to initialize backend 'tpu': ABORTED: it is\nin use by process 41")

  monkeypatch.setattr(jax, "default_backend", fail)
  with pytest.raises(errors.Unready) as caught:
    asked_backend.start()
  assert str(caught.value).startswith(f"{socket.gethostname()}: JAX can't start: Unable to")
  assert "\n" not in str(caught.value)
