"""Checks before the first step: that all processes of a run are able to run it, and run the same.

What differs between hosts shows later as a hang, or not at all. So each process says what it is,
through the coordinator, and all raise the same error, which names the host.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import socket
import tempfile
import time
from typing import Any

import jax
import ml_collections

from vr_jax import buckets, errors
from vr_jax.parallel import absent_tpu, processes
from vr_jax.train import workdir as workdir_lib

CLOCKS = 60.0  # seconds that the clocks of hosts may differ
LEAST_MEMORY = 2**27  # bytes that a host must have free to start


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessFacts:
  """What a process says of itself.

  index: that of its devices.
  config: hash of config and stages; workdir: hash of the workdir's config.json, "" without one.
  clock: seconds since 1970, at about the same moment in all processes.
  unwritable: a directory that it can't write to, and the reason; "" if there is none.
  free: bytes of the host's memory; None if unknown.
  chips: whether the host has TPU chips.
  compiler: the version of the backend, and what environment variables tell XLA.
  """

  host: str
  index: int
  code: str
  config: str
  workdir: str
  clock: float
  unwritable: str
  free: int | None
  chips: bool
  backend: str
  devices: str
  compiler: str


def check(config: ml_collections.ConfigDict, workdir: Path, mode: str, cache: Path) -> None:
  """Checks that this process, and all others of the run, can go on. All call this together.

  cache: directory of compiled programs.

  Raises InputError for the first problem of any process, in all of them.
  """
  seen, joined = jax.process_count(), processes.count_joined()
  if seen > joined == 1:
    raise errors.InputError(
      f"{socket.gethostname()}: is one of {seen} hosts of a slice, but has joined none of them; "
      "leave out --distributed=off"
    )
  if seen != joined:
    raise errors.InputError(
      f"{socket.gethostname()}: has joined a run of {joined} processes, but its devices are of a "
      f"slice of {seen}; start the command once on each host of one slice, and on no other"
    )
  own = _facts(config, workdir, mode, cache)
  texts = processes.gather_texts("preflight", json.dumps(dataclasses.asdict(own)))
  said = [json.loads(text) for text in texts]
  # Other code may say other things, so it is compared first.
  for each in said:
    if each["code"] != said[0]["code"]:
      line = _SAME["code"](each["code"], said[0]["code"], said[0]["host"])
      raise errors.InputError(f"{each['host']}: {line}")
  if problem := next(problems([ProcessFacts(**each) for each in said]), None):
    raise errors.InputError(problem)


def problems(everyone: Sequence[ProcessFacts]) -> Iterator[str]:
  """Yields a line for each problem, with the name of the host. everyone: as they joined."""
  first = everyone[0]
  for place, each in enumerate(everyone):
    if each.index != place:
      yield (
        f"{each.host}: has joined as process {place}, but its devices are those of process "
        f"{each.index}; leave out --process_id, or give each host its number in the slice"
      )
    if each.chips and each.backend == "cpu":
      yield (
        f"{each.host}: has TPU chips, but JAX runs on the CPU: another process holds them, or "
        "libtpu can't be loaded; end that process, or set JAX_PLATFORMS=cpu if it is meant"
      )
    if each.unwritable:
      yield f"{each.host}: {each.unwritable}"
    if each.free is not None and each.free < LEAST_MEMORY:
      yield (
        f"{each.host}: has {each.free / 2**20:.0f} MiB of memory free, less than "
        f"{LEAST_MEMORY / 2**20:.0f}; end what else runs there"
      )
  for name, what in _SAME.items():
    for each in everyone:
      theirs, ours = getattr(each, name), getattr(first, name)
      if theirs != ours:
        yield f"{each.host}: {what(theirs, ours, first.host)}"
  early, late = (pick(everyone, key=lambda each: each.clock) for pick in (min, max))
  if late.clock - early.clock > CLOCKS:
    yield (
      f"{late.host}: its clock is {late.clock - early.clock:.0f} s ahead of that of {early.host}; "
      "synchronise them (NTP)"
    )


# What has to be the same everywhere -> the rest of the line, from (there, on the first, its host).
_SAME: Mapping[str, Callable[[str, str, str], str]] = {
  "code": lambda theirs, ours, first: (
    f"runs {theirs}, but {first} runs {ours}; install the same on all hosts"
  ),
  "config": lambda theirs, ours, first: (
    f"was started with another config or --mode than {first}; start the same command on all hosts"
  ),
  "workdir": lambda theirs, ours, first: (
    f"does not see the config.json that {first} has written; --workdir has to be one directory "
    "that all hosts share"
  ),
  "backend": lambda theirs, ours, first: f"JAX runs on {theirs}, but on {ours} on {first}",
  "devices": lambda theirs, ours, first: f"has {theirs}, but {first} has {ours}",
  "compiler": lambda theirs, ours, first: (
    f"compiles with {theirs}, but {first} with {ours}; have the same everywhere"
  ),
}


def _facts(
  config: ml_collections.ConfigDict, workdir: Path, mode: str, cache: Path
) -> ProcessFacts:
  about = workdir_lib.provenance()
  revision = {"git revision": about["git_revision"], "sources": workdir_lib.source_digest()}
  code = {**revision, **about["versions"]}
  resolved = buckets.as_addresses(json.dumps([config.to_dict(), mode], sort_keys=True))
  written = workdir / "config.json"
  local = jax.local_devices()
  return ProcessFacts(
    host=socket.gethostname(),
    index=jax.process_index(),
    code=", ".join(f"{name} {version}" for name, version in code.items()),
    config=_digest(resolved.encode()),
    workdir=_digest(written.read_bytes()) if written.is_file() else "",
    clock=time.time(),
    unwritable=_unwritable({"--workdir": workdir, "the compilation cache": cache}, workdir),
    free=_free_memory(),
    chips=absent_tpu.has_chips() and not _cpu_is_meant(),
    backend=jax.default_backend(),
    devices=f"{len(local)} x {local[0].device_kind}",
    compiler=", ".join([local[0].client.platform_version, *_compiler_flags(os.environ)]),
  )


def _compiler_flags(environment: Mapping[str, str]) -> list[str]:
  """Flags that change compiled programs; where XLA writes its dumps does not."""
  return [
    f"{name}: {word}"
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    for word in environment.get(name, "").split()
    if not word.startswith("--xla_dump")
  ]


def _cpu_is_meant() -> bool:
  return jax.config.jax_platforms == "cpu"  # pyright: ignore[reportAttributeAccessIssue] JAX adds it


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def _unwritable(directories: Mapping[str, Path], workdir: Path) -> str:
  """What can't be written to, of directories by what they are; "" if there is none.

  In the workdir the first process alone makes directories: a bucket takes each once a second.
  """
  for what, directory in directories.items():
    try:
      if processes.is_first() or not directory.is_relative_to(workdir):
        directory.mkdir(parents=True, exist_ok=True)
      elif not directory.is_dir():
        continue
      with tempfile.TemporaryFile(dir=directory) as probe:
        probe.write(b"probe")
    except OSError as error:
      return f"{what}={directory}: can't be written: {error.strerror}"
  return ""


def _free_memory() -> int | None:
  """Bytes of memory that Linux could give to a new process."""
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
  except OSError:
    return None
  found: dict[str, Any] = dict(line.split(":", 1) for line in lines)
  return int(found["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in found else None
