"""Joins the processes of a run: on Cloud TPU, GKE and Slurm by themselves, elsewhere by flags."""

from collections.abc import Mapping
import os
from pathlib import Path
import socket
import sys
import threading
from typing import NoReturn

import jax

from vr_jax import errors
from vr_jax.parallel import absent_tpu, asked_backend, cluster_flags, preemption

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
LOOK = 5.0  # seconds between two looks for the file that STOPPED names, in a bucket mostly
_HINT = (
  "run the command on all hosts, each with another --process_id where that is given, and let the "
  "firewall pass that port (--coordinator_address chooses another)"
)
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")


def join(cluster: cluster_flags.Cluster) -> None:
  """Connects this process to the others of its run, if there are any. Call it before JAX starts.

  If they don't come together in time, or one of them has ended for good (the file that
  VR_JAX_STOPPED names), it prints a line and ends the process, as JAX would abort it without one.
  The exit code is 75: a host may still come, and the same command is worth a new try.

  Raises InputError if the flags don't say enough, or this machine lacks the backend.
  """
  asked_backend.choose(cluster.backend)
  missing = [f"--{name}" for name in cluster_flags.PLACE if getattr(cluster, name) is None]
  known = _find_kind(os.environ)
  if not cluster.automatic or not (known or len(missing) < len(cluster_flags.PLACE)):
    return
  if missing and not known:
    raise errors.InputError(f"{', '.join(missing)}: missing; JAX does not find it on this machine")
  address = cluster.coordinator_address
  # The coordinator listens on this machine alone if all processes are here.
  host = (address or "").rpartition(":")[0]
  late = threading.Timer(cluster.timeout, _give_up, (cluster,))
  late.daemon = True
  late.start()
  joined = threading.Event()
  threading.Thread(target=_look_for_end, args=(cluster, joined), daemon=True).start()
  try:
    jax.distributed.initialize(
      address,
      cluster.num_processes,
      cluster.process_id,
      initialization_timeout=cluster.timeout + 60,
      coordinator_bind_address=address if host in LOOPBACK else None,
    )
  except (RuntimeError, ValueError, OSError) as error:
    if known == "tpu" and str(error) == "coordinator_address should be defined.":
      if (cluster.num_processes or 1) == 1:
        return  # a TPU machine that is alone
      raise errors.InputError(
        f"{socket.gethostname()}: --num_processes={cluster.num_processes}, but this machine knows "
        "of no other; give --coordinator_address and --process_id as well"
      ) from error
    if isinstance(error, ValueError):
      raise errors.InputError(f"{socket.gethostname()}: {_reason(error)}") from error
    _end(cluster, _reason(error))
  finally:
    late.cancel()
    joined.set()


def _give_up(cluster: cluster_flags.Cluster) -> None:
  """Ends this process, which has waited for the others long enough."""
  _end(cluster, f"not all processes are there after {cluster.timeout} s")


def _look_for_end(cluster: cluster_flags.Cluster, joined: threading.Event) -> None:
  """Ends this process as soon as another host has ended for good: it would wait in vain."""
  path = Path(os.environ.get(cluster_flags.STOPPED, ""))
  if not path.name:
    return
  while not joined.wait(LOOK):
    try:
      said = errors.printable(path.read_text(encoding="utf-8", errors="replace").strip())
    except OSError:
      continue  # it is not there
    if not said:
      continue  # it is being written
    if not joined.is_set():
      _end(cluster, f"the job has stopped ({said})", "start it again on all hosts")


def _end(cluster: cluster_flags.Cluster, reason: str, hint: str = _HINT) -> NoReturn:
  where = cluster.coordinator_address or "the coordinator that JAX found"
  which = "" if cluster.process_id is None else f", process {cluster.process_id}"
  host = socket.gethostname()
  line = f"vr-jax: {host}{which}: can't join the others at {where}: {reason}; {hint}"
  print(line, file=sys.stderr, flush=True)
  os._exit(preemption.EXIT_CODE)


def _find_kind(environment: Mapping[str, str]) -> str:
  """Names the kind of cluster in which JAX finds the other processes; "" if there is none."""
  several = environment.get("SLURM_NTASKS", "1") != "1"
  if several and all(name in environment for name in _SLURM):
    return "slurm"
  platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue] JAX adds it
  return "tpu" if absent_tpu.has_chips() and platforms != "cpu" else ""


def _reason(error: Exception) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[0][:200] if lines else type(error).__name__
