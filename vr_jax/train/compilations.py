"""Compiled programs: the cache that all runs share, and what is being compiled.

The cache is the first of these:
  1. JAX's own setting, as JAX_COMPILATION_CACHE_DIR;
  2. $XDG_CACHE_HOME/vr_jax/jax/<host>, or ~/.cache/vr_jax/jax/<host>; of several processes, a
     directory in it for this workdir, which has a copy for all hosts (shared_cache.py);
  3. <workdir>/compilations, where the home can't be written.

<host> names the kind of CPU: programs compiled for one kind may not run on another, and homes are
often shared by different machines.
"""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path
import platform
import socket
import sys
import tempfile
import threading
from typing import Any

import jax
from jax import monitoring
import ml_collections

from vr_jax import atomic, durations, errors, plain_json
from vr_jax.parallel import processes
from vr_jax.train import console

SECONDS = "compile_seconds.json"  # in the cache: how long programs took to compile
_WORTH_SAVING = 5.0  # seconds
# A run is told how to need fewer programs after so many of one kind, if they took so many seconds.
_MANY, _LONG = 8, 60.0
_COMPILE = "/jax/core/compile/backend_compile_duration"
# What the time of making a program is made of. Tracing is left out: JAX times a function that is
# traced inside of another one twice.
_PARTS = (_COMPILE, "/jax/core/compile/jaxpr_to_mlir_module_duration")
_CACHE_HIT = "/jax/compilation_cache/cache_hits"

_UPDATE = "the update"
# What the programs are for, by the names of their functions.
PROGRAMS = {
  "_start": "the sampler's pass over prompts",
  "start": "the sampler's pass over prompts",
  "_decode": "the sampler",
  "decode": "the sampler",
  "append_observations": "the sampler's pass over observations",
  "sample_without_compaction": "the sampler",
  "changed_for_decoding": "the sampler's copy of the weights",
  "step": _UPDATE,
  "score": "the log-probs of replies",
  "features": "the vision tower",
  "log_likelihood": "the validation loss",
  "random_params": "the network's random weights",
  "draw": "the adapters' random weights",
  "_values": "the critic's values",
  "compute_advantages": "the advantages",
  "rouge": "the comparison of reasoning steps",
  "dtw": "the alignment of reasoning steps",
  "subsequence_dtw": "the alignment of reasoning steps",
  "_bit_sums": "a checkpoint's checksum",
  "_sums": "the checksum of the vision tower's weights",
}
_OTHER = "a small program"  # one of ours that is not listed, of JAX, or of a user's reward


_main_thread_seconds = 0.0
_hits = _misses = 0


def seconds() -> float:
  """How long this process's main thread has made programs, within `announced`, so far."""
  return _main_thread_seconds


def summary() -> str:
  """A line: how many programs were in the cache so far, and how many, worth it, were not."""
  return f"programs: {_hits} were in the cache, {_misses} were compiled"


def print_summary() -> None:
  """Prints that line on stderr, in every process, if there was any program so far."""
  if _hits or _misses:
    who = f"process {jax.process_index()} on {socket.gethostname()}: "
    line = (who if jax.process_count() > 1 else "") + summary()
    print(line, file=sys.stderr, flush=True)


def use_cache(workdir: Path) -> Path:
  """Points JAX to its compilation cache, see above, and returns it.

  Raises InputError if JAX's own setting is no directory of this host.
  """
  configured = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue] (JAX adds it later)
  if configured and "://" in configured:
    raise errors.InputError(
      f"JAX_COMPILATION_CACHE_DIR={configured}: not a directory; unset it: hosts share compiled "
      "programs through the workdir"
    )
  directory = Path(configured) if configured else _default(workdir)
  if not configured:
    jax.config.update("jax_compilation_cache_dir", str(directory))
  return directory


def network(config: ml_collections.ConfigDict) -> list[Any]:
  """What tells the network of a run from others, as JSON; see `announced`."""
  return [config.model.pretrained, config.model.architecture.to_dict()]


def _default(workdir: Path) -> Path:
  own = workdir.absolute() / "compilations"
  try:
    shared = user_cache() / "jax" / host_kind()
    if jax.process_count() > 1:
      shared /= run_name(workdir)
    shared.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=shared):
      return shared
  except (OSError, RuntimeError):  # there is no home, or it can't be written
    return own


def user_cache() -> Path:
  """What vr_jax keeps for this user on this host. Raises RuntimeError if there is no home."""
  given = os.environ.get("XDG_CACHE_HOME", "")
  return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "vr_jax"


def is_of_run(cache: Path, workdir: Path) -> bool:
  """Whether a cache that `use_cache` gave is on this host, for this workdir alone."""
  return cache.name == run_name(workdir)


def run_name(workdir: Path) -> str:
  """Names a workdir in directories of a host that all runs share."""
  return hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]


@functools.cache
def host_kind() -> str:
  """Names the kind of this machine's CPU: its architecture and a hash of its features."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    features = next(line for line in lines if line.lower().startswith(("flags", "features")))
  except (OSError, StopIteration):
    features = platform.processor()
  return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def announced(directory: Path, network: Any) -> Iterator[None]:
  """Announces programs whose compilation takes longer, and how long it took the last time.

  directory: the cache, where these times are kept.
  network: what identifies the network, as JSON: times are those of the same network and devices.
  """
  devices = jax.devices()
  about = json.dumps([devices[0].device_kind, len(devices), network], sort_keys=True)
  watch = _Watch(directory / SECONDS, hashlib.sha256(about.encode()).hexdigest()[:16])
  monitoring.register_scalar_listener(watch.begin)
  monitoring.register_event_listener(watch.note_hit)
  monitoring.register_event_duration_secs_listener(watch.end)
  try:
    yield
  except BaseException as error:  # preempted, say: the next start should find these programs
    if not isinstance(error, errors.InputError):  # of which one line is all
      print_summary()
    raise
  finally:
    monitoring.unregister_scalar_listener(watch.begin)
    monitoring.unregister_event_listener(watch.note_hit)
    monitoring.unregister_event_duration_listener(watch.end)


class _Watch:
  """Listens to JAX's events about compilations, which come on the thread that compiles."""

  def __init__(self, path: Path, key: str) -> None:
    self._path, self._key = path, key
    self._thread = threading.local()
    self._updates: list[float] = []  # seconds of each program of the update

  def begin(self, event: str, value: float, **about: Any) -> None:
    """A compilation begins."""
    if event != _COMPILE:
      return
    del value
    program = _program(about)
    before = self._read().get(self._key, {}).get(program)
    times = f"; {durations.as_text(before)} the last time" if before else ""
    self._thread.hit = False
    text = f"compiling {program} (once for each size{times})"
    self._thread.activity = console.begin(text, announce=True)

  def note_hit(self, event: str, **about: Any) -> None:
    """The program was in the cache."""
    global _hits
    if event == _CACHE_HIT:
      _hits += 1
      self._thread.hit = True

  def end(self, event: str, duration_secs: float, **about: Any) -> None:
    """A compilation, or a part of the work before it, has ended."""
    global _main_thread_seconds, _misses
    if event in _PARTS and threading.current_thread() is threading.main_thread():
      _main_thread_seconds += duration_secs
    activity = getattr(self._thread, "activity", None)
    if event != _COMPILE or activity is None:
      return
    self._thread.activity = None
    console.end(activity)
    if self._thread.hit:
      return
    worth_it = jax.config.jax_persistent_cache_min_compile_time_secs  # pyright: ignore[reportAttributeAccessIssue] (JAX adds it later)
    _misses += duration_secs >= worth_it
    program = _program(about)
    if duration_secs >= _WORTH_SAVING and processes.is_first():
      with contextlib.suppress(OSError):
        self._save(program, duration_secs)
    if program == _UPDATE:
      self._note_update(duration_secs)

  def _note_update(self, seconds: float) -> None:
    """Says once how a run that compiles many updates needs fewer of them."""
    self._updates.append(seconds)
    if len(self._updates) == _MANY and sum(self._updates) >= _LONG:
      console.print_note(
        f"vr-jax: {_UPDATE} was compiled for {_MANY} sizes of batches so far, in "
        f"{durations.as_text(sum(self._updates))}; fewer sizes, with more padding: raise "
        "config.rl.token_bucket_ratio and config.sft.token_bucket_ratio (1.5, say; 0: one size), "
        "or give fewer config.model.prefix_buckets"
      )

  def _save(self, program: str, seconds: float) -> None:
    known = self._read()
    known.setdefault(self._key, {})[program] = round(seconds, 1)
    with atomic.file(self._path) as partial:
      partial.write_text(json.dumps(known, indent=2) + "\n")

  def _read(self) -> dict[str, dict[str, float]]:
    try:
      known = plain_json.parse(self._path.read_bytes())
    except (OSError, ValueError):
      return {}
    hint = dict[str, dict[str, float]]
    return known if plain_json.has_type(known, hint) else {}


def _program(about: dict[str, Any]) -> str:
  name = str(about.get("fun_name", "a program")).removeprefix("jit(").removesuffix(")")
  return PROGRAMS.get(name, _OTHER)
