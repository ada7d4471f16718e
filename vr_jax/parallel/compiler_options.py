"""XLA options by TPU generation, for the programs of a run and those that a plan compiles alike.

A run, and each other command that loads a policy (ask, eval, segment, serve), hands them to libtpu
through LIBTPU_INIT_ARGS, which it reads when JAX starts; so they hold for all programs, and JAX's
compilation cache and the comparison of hosts (train/preflight.py) know of them. A flag that is in
LIBTPU_INIT_ARGS already wins over config.compiler_options, and that over the table below.
launch/plan.py hands the same ones to each compilation. CPUs and GPUs get none.

docs/pods.md has the measurements behind the table (`launch/plan.py --options-sweep`).
"""

from collections.abc import Mapping, Sequence
import glob
import os
from pathlib import Path
import re

from vr_jax import errors

# Collectives as they are, instead of products that pass parts of their operands around. By plan an
# update reads and writes less than half as much with it.
NO_WINDOWED_EINSUM: Mapping[str, str] = {
  "xla_tpu_enable_windowed_einsum_for_all_gather": "false",
  "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false",
}


def scoped_vmem(mebibytes: int) -> dict[str, str]:
  """Vector memory that one fusion may use: larger tiles, so that operands are read less often."""
  return {"xla_tpu_scoped_vmem_limit_kib": str(1024 * mebibytes)}


OPTIONS: Mapping[str, Mapping[str, str]] = {
  "v5e": NO_WINDOWED_EINSUM,
  "v5p": NO_WINDOWED_EINSUM,
  "v6e": NO_WINDOWED_EINSUM,
  # With it libtpu 0.0.42.1 ends the process while it compiles an update (docs/pods.md).
  "tpu7x": {"xla_tpu_enable_sparse_core_collective_offload_all_reduce": "false"},
}
# By a part of JAX's `device_kind` in lower case; the first one that fits counts.
_KINDS = {"v5 lite": "v5e", "v5e": "v5e", "v5": "v5p", "v6": "v6e", "tpu7x": "tpu7x"}
# The chips' ids on the PCI bus. Source: jax/_src/hardware_utils.py.
_PCI_IDS = {"0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e", "0x0076": "tpu7x"}
_PCI_VENDOR = "0x1ae0"


def options_for(device_kind: str, changes: Sequence[str] = ()) -> dict[str, str]:
  """The options of a device, by JAX's name of its kind; {} unless it is a TPU.

  changes: config.compiler_options.

  Raises InputError if one of them is malformed.
  """
  kind = device_kind.lower()
  if not kind.startswith("tpu"):
    return {}
  generation = next((name for part, name in _KINDS.items() if part in kind), "")
  return _changed(OPTIONS.get(generation, {}), changes)


def _changed(options: Mapping[str, str], changes: Sequence[str]) -> dict[str, str]:
  changed = dict(options)
  for change in changes:
    if not re.fullmatch(r"xla_\w+=[^\s=]*", change):
      raise errors.InputError(
        f"--config.compiler_options: {change!r} is not xla_NAME=VALUE, nor xla_NAME= to leave an "
        "option out"
      )
    name, _, value = change.partition("=")
    changed.pop(name, None)
    if value:
      changed[name] = value
  return changed


def check(changes: Sequence[str]) -> None:
  """Raises InputError if an item of config.compiler_options is malformed."""
  _changed({}, changes)


def set_for_machine(changes: Sequence[str], *, pci: str = "/sys/bus/pci/devices") -> None:
  """Adds the options of this machine's TPU to LIBTPU_INIT_ARGS. Call it before JAX starts.

  Flags that LIBTPU_INIT_ARGS has already stay as they are, so a second call changes nothing. No
  effect without a TPU.

  changes: config.compiler_options.
  pci: a directory with the devices on the PCI bus.
  """
  generation = _attached_generation(pci)
  if not generation:
    return
  words = os.environ.get("LIBTPU_INIT_ARGS", "").split()
  given = {word.lstrip("-").partition("=")[0] for word in words}
  options = _changed(OPTIONS.get(generation, {}), changes)
  words += [f"--{name}={value}" for name, value in options.items() if name not in given]
  if words:
    os.environ["LIBTPU_INIT_ARGS"] = " ".join(words)


def _attached_generation(pci: str) -> str:
  """The generation of this machine's TPU chips; "" without any of a known one."""
  for vendor in sorted(glob.glob(f"{pci}/*/vendor")):
    if Path(vendor).read_text().strip() == _PCI_VENDOR:
      device = Path(vendor).with_name("device").read_text().strip()
      if device in _PCI_IDS:
        return _PCI_IDS[device]
  return ""
