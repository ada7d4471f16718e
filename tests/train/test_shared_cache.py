"""What process 0 compiles is there for hosts that start later."""

import os

import jax
from jax._src import compilation_cache
import jax.numpy as jnp
import pytest

from vr_jax.parallel import processes
from vr_jax.train import compilations, shared_cache


def entry(program: bytes) -> bytes:
  """As JAX writes it."""
  return compilation_cache.compress_executable(
    compilation_cache.combine_executable_and_time(program, 1)
  )


@pytest.fixture
def hosts(tmp_path, monkeypatch):
  """Several processes; `hosts(number)` is a host with an empty disk, and its cache."""
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  configured = jax.config.jax_compilation_cache_dir

  def host(number):
    monkeypatch.setattr(processes, "is_first", lambda: number == 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"host-{number}"))
    jax.config.update("jax_compilation_cache_dir", None)
    return compilations.use_cache(tmp_path / "run")

  yield host
  jax.config.update("jax_compilation_cache_dir", configured)


def test_programs_of_process_0_reach_a_host_that_starts_later(hosts, tmp_path):
  workdir = tmp_path / "run"
  first = hosts(0)
  with shared_cache.synchronized(first, workdir):
    (first / "step-1a-cache").write_bytes(entry(b"program"))
    (first / "step-1a-atime").write_bytes(b"now")
  assert [path.name for path in shared_cache.directory(workdir).iterdir()] == ["step-1a-cache"]
  later = hosts(1)
  with shared_cache.synchronized(later, workdir):
    assert (later / "step-1a-cache").read_bytes() == entry(b"program")
    (later / "own-cache").write_bytes(entry(b"JAX writes in process 0 alone"))
  assert len([*shared_cache.directory(workdir).iterdir()]) == 1


def test_they_are_copied_while_the_run_goes_on_once_they_are_whole(hosts, tmp_path, monkeypatch):
  monkeypatch.setattr(shared_cache, "PERIOD", 0.05)
  monkeypatch.setattr(shared_cache, "_SETTLED", 1000.0)
  cache, workdir = hosts(0), tmp_path / "run"
  with shared_cache.synchronized(cache, workdir):
    (cache / "new-cache").write_bytes(entry(b"being written"))
    (cache / "old-cache").write_bytes(entry(b"whole"))
    os.utime(cache / "old-cache", (1.0, 1.0))
    copy = shared_cache.directory(workdir) / "old-cache"
    for _ in range(200):
      if copy.exists():
        break
      shared_cache.threading.Event().wait(0.05)
    assert copy.read_bytes() == entry(b"whole")
    assert not (shared_cache.directory(workdir) / "new-cache").exists()


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_an_entry_that_jax_has_not_finished_reaches_no_other_host(tmp_path, kept):
  cache, shared = tmp_path / "cache", tmp_path / "shared"
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  configured = {name: getattr(jax.config, name) for name in names}
  compilation_cache.reset_cache()
  try:
    for name, value in zip(names, (str(cache), 0.0), strict=True):
      jax.config.update(name, value)
    jax.jit(lambda x: jnp.sort(x * kept + 3))(jnp.arange(7.0)).block_until_ready()
  finally:
    compilation_cache.reset_cache()
    for name, value in configured.items():
      jax.config.update(name, value)
  paths = sorted(cache.glob("*-cache"))
  whole = paths[0].read_bytes()
  paths[0].write_bytes(whole[: int(kept * len(whole))])
  assert shared_cache.copy_missing(cache, shared) == len(paths) - 1
  assert not (shared / paths[0].name).exists()
  paths[0].write_bytes(whole)
  assert shared_cache.copy_missing(cache, shared) == 1
  assert (shared / paths[0].name).read_bytes() == whole
  # Nor does one that is cut in the workdir reach this host.
  (shared / paths[0].name).write_bytes(whole[:-1])
  assert shared_cache.copy_missing(shared, tmp_path / "host") == len(paths) - 1


def test_a_cache_of_other_runs_is_not_copied(hosts, tmp_path):
  hosts(0)
  own = tmp_path / "own"
  own.mkdir()
  with shared_cache.synchronized(own, tmp_path / "run"):
    (own / "a-cache").write_bytes(entry(b"x"))
  assert not (tmp_path / "run").exists()


def test_programs_of_other_devices_are_kept_apart(hosts, tmp_path, monkeypatch):
  hosts(0)
  before = shared_cache.directory(tmp_path)
  devices = jax.devices()
  monkeypatch.setattr(jax, "devices", lambda: devices + devices)
  assert shared_cache.directory(tmp_path) != before
