"""Flags of a process, not of its run: which one it is, of how many; without JAX.

    --distributed=auto            join where there are several processes (default); off: never
    --coordinator_address=H:PORT  process 0, which the others connect to
    --num_processes=N             how many processes there are
    --process_id=I                which one this is, 0 to N - 1
    --initialization_timeout=S    seconds to wait for the others
    --backend=tpu                 what JAX has to run on: tpu, gpu or cpu (default: what it finds)
    --log_format=text             how lines are printed; json: as objects (vr_jax/json_lines.py)

On a cluster that JAX knows, a flag that is not given is what JAX finds there.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from absl import flags

from vr_jax import errors

PLACE = ("coordinator_address", "num_processes", "process_id")
LOG_FORMATS = ("text", "json")
# Of the environment: a file that is there once another host has ended for good, and says why.
STOPPED = "VR_JAX_STOPPED"
TIMEOUT = 1800  # seconds; a large slice takes longer than JAX's 300 to start again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
  """What the command line says about the processes of a run. None: not given.

  automatic: whether to join the processes of a cluster that is found.
  coordinator_address: host:port of process 0.
  timeout: seconds to wait for the other processes.
  backend: what JAX has to run on; "": what it finds.
  """

  automatic: bool = True
  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  timeout: int = TIMEOUT
  backend: str = ""

  @classmethod
  def from_flags(cls, values: flags.FlagValues) -> "Cluster":
    """Reads the flags of `define_flags`; raises InputError if they contradict each other."""
    place: dict[str, Any] = {name: values[name].value for name in PLACE}
    found = cls(
      automatic=values["distributed"].value == "auto",
      timeout=int(values["initialization_timeout"].value or TIMEOUT),
      backend=values["backend"].value or "",
      **place,
    )
    given = [name for name, value in place.items() if value is not None]
    if given and not found.automatic:
      raise errors.InputError(f"--{given[0]}: has no effect with --distributed=off")
    host, _, port = (found.coordinator_address or "host:1").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
      at = f"--coordinator_address={found.coordinator_address}"
      raise errors.InputError(f"{at}: needs a host and a port, as 10.0.0.2:8476")
    count, index = found.num_processes, found.process_id
    if count is not None and index is not None and index >= count:
      raise errors.InputError(f"--process_id={index}: is none of 0 to {count - 1}")
    return found


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags above."""
  flags.DEFINE_enum(
    "distributed",
    "auto",
    ("auto", "off"),
    "auto: join the other processes on Cloud TPU, GKE and Slurm, or as the flags below say.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "coordinator_address", None, "Host and port of process 0.", flag_values=values
  )
  flags.DEFINE_integer(
    "num_processes", None, "Number of processes.", lower_bound=1, flag_values=values
  )
  flags.DEFINE_integer(
    "process_id", None, "Index of this process, from 0.", lower_bound=0, flag_values=values
  )
  flags.DEFINE_integer(
    "initialization_timeout",
    TIMEOUT,
    "Seconds to wait for the other processes.",
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_enum(
    "backend",
    None,
    ("tpu", "gpu", "cpu"),
    "What JAX has to run on: without it a run ends with a line. Default: what JAX finds.",
    flag_values=values,
  )
  flags.DEFINE_enum(
    "log_format",
    "text",
    LOG_FORMATS,
    "json: each line is an object with time, severity, process, host and stage.",
    flag_values=values,
  )


def parse(words: Sequence[str]) -> Cluster:
  """Reads the flags above from a command line, whose other words have been checked elsewhere."""
  values = flags.FlagValues()
  define_flags(values)
  values(list(words), known_only=True)
  return Cluster.from_flags(values)
