"""One compilation cache for all runs; compilations are announced, with the time that is known."""

import contextlib
import json
import re
import time

import jax
import jax.numpy as jnp
import pytest

from vr_jax import errors
from vr_jax.train import compilations, console


@pytest.fixture
def unset(monkeypatch, tmp_path):
  """No cache is configured; the home is an empty directory."""
  configured = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  yield tmp_path
  jax.config.update("jax_compilation_cache_dir", configured)


def test_all_workdirs_share_one_cache(unset):
  found = compilations.use_cache(unset / "a")
  assert found.parent == unset / "home" / ".cache" / "vr_jax" / "jax"
  assert jax.config.jax_compilation_cache_dir == str(found)
  jax.config.update("jax_compilation_cache_dir", None)
  assert compilations.use_cache(unset / "b") == found


@pytest.mark.parametrize("given", ["elsewhere", "relative"])
def test_the_standard_variable_moves_it_if_it_is_a_whole_path(unset, monkeypatch, given):
  elsewhere = given == "elsewhere"
  monkeypatch.setenv("XDG_CACHE_HOME", str(unset / given) if elsewhere else given)
  found = compilations.use_cache(unset / "run")
  root = unset / given if elsewhere else unset / "home" / ".cache"
  assert found.parent == root / "vr_jax" / "jax"


def test_a_configured_cache_that_is_no_directory_is_refused(unset, monkeypatch):
  monkeypatch.chdir(unset)
  jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
  with pytest.raises(errors.InputError, match="JAX_COMPILATION_CACHE_DIR=gs://bucket/cache: not a"):
    compilations.use_cache(unset / "run")
  assert not (unset / "gs:").exists()


def test_a_configured_cache_is_left_alone(unset):
  jax.config.update("jax_compilation_cache_dir", str(unset / "own"))
  assert compilations.use_cache(unset / "run") == unset / "own"


def test_where_the_home_can_not_be_written_the_workdir_has_it(unset, monkeypatch):
  (unset / "home").write_text("a file, no directory")
  assert compilations.use_cache(unset / "run") == unset / "run" / "compilations"


def test_several_processes_have_a_cache_for_each_workdir_on_their_own_disk(unset, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  found = compilations.use_cache(unset / "run")
  assert found.parent.parent == unset / "home" / ".cache" / "vr_jax" / "jax"
  assert compilations.is_of_run(found, unset / "run")
  assert not compilations.is_of_run(found, unset / "other")
  assert not compilations.is_of_run(unset / "own", unset / "run")


@pytest.fixture
def impatient(monkeypatch):
  """What takes a fiftieth of a second is announced, and a sixth is worth remembering."""
  monkeypatch.setattr(console, "MINUTE", 0.2)
  monkeypatch.setattr(console, "_ANNOUNCE_AFTER", 0.02)
  monkeypatch.setattr(compilations, "_WORTH_SAVING", 0.15)


def _compile(name, number):
  """Compiles a new program of a function of this name, slowly."""

  def slow(scalar_event, value, **about):
    if scalar_event.endswith("backend_compile_duration"):
      time.sleep(0.2)

  def function(x):
    return x * number

  function.__name__ = name
  with contextlib.ExitStack() as stack:
    jax.monitoring.register_scalar_listener(slow)
    stack.callback(jax.monitoring.unregister_scalar_listener, slow)
    jax.jit(function)(jnp.ones(3))


def test_what_is_compiled_is_announced_and_the_next_time_how_long_it_took(
  impatient, tmp_path, capsys
):
  for number, network in enumerate(("mine", "mine", "another")):
    with console.heartbeat(), compilations.announced(tmp_path, network):
      _compile("_decode", 3.5 + number)
  said = re.findall(r"^vr-jax: (compiling the sampler.*)$", capsys.readouterr().err, re.MULTILINE)
  first = "compiling the sampler (once for each size)"
  again = "compiling the sampler (once for each size; 0 s the last time)"
  assert [one for one in said if "so far" not in one] == [first, again, first]
  kept = json.loads((tmp_path / compilations.SECONDS).read_text())
  assert [times["the sampler"] >= 0.2 for times in kept.values()] == [True, True]


def test_a_damaged_file_of_times_does_no_harm(impatient, tmp_path, capsys):
  (tmp_path / compilations.SECONDS).write_text('{"half')
  with console.heartbeat(), compilations.announced(tmp_path, "mine"):
    _compile("step", 7.25)
  assert "vr-jax: compiling the update (once for each size)\n" in capsys.readouterr().err


def test_a_program_without_a_name_for_users_is_not_called_by_its_private_one(
  impatient, tmp_path, capsys
):
  with console.heartbeat(), compilations.announced(tmp_path, "mine"):
    _compile("_helper_of_ours", 9.25)
  said = capsys.readouterr().err
  assert "compiling a small program" in said and "_helper" not in said


def test_a_run_that_compiles_many_updates_is_told_once_how_to_need_fewer(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(compilations, "_MANY", 2)
  monkeypatch.setattr(compilations, "_LONG", 0.3)
  said = []
  with compilations.announced(tmp_path, "mine"):
    for number in range(3):
      _compile("step", 11.5 + number)
      said.append(capsys.readouterr().err)
  assert [text.count("token_bucket_ratio") for text in said] == [0, 2, 0]
