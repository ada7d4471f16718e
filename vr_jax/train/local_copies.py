"""Copies of the train state on the disk of each host, between two checkpoints.

A checkpoint goes to storage that all hosts share, which takes long for a large model. A copy goes
to each host's own disk, each process its own shards, so it may be made more often. After a crash a
run that is started again on the same hosts goes on from the copy; if one of them has lost its disk,
or the mesh is another one, from the last checkpoint.

A copy belongs to the checkpoint that was the last one when it was made, and is of no use without:
who deletes checkpoints to train anew gets nothing back from a copy.
"""

from collections.abc import Mapping
import functools
import json
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from vr_jax import atomic, plain_json
from vr_jax.parallel import processes
from vr_jax.train import background, checkpoints, compilations, console

_KEPT = 2  # processes may be a copy apart when they are killed
_ABOUT = "about"  # what the file says besides the arrays, as JSON


class LocalCopies:
  """The copies of a stage that this process has.

  store: the checkpoints of the stage.
  every: steps between two copies; 0: none are made or looked for.
  """

  def __init__(
    self, store: checkpoints.Checkpoints, workdir: Path, stage: str, *, every: int
  ) -> None:
    self._store, self._workdir, self._stage, self._every = store, workdir, stage, every
    self._writer = background.BackgroundWriter("local copies") if every else None

  def is_due(self, step: int) -> bool:
    """Whether a copy is to be made after this step."""
    return bool(self._every) and step % self._every == 0 and self._store.identity is not None

  def save(self, step: int, tree: PyTree, loop: Mapping[str, Any]) -> None:
    """Copies the state to the host; a thread writes it. All processes call it together."""
    if self._writer is None:
      return
    flat = checkpoints.flatten(tree)
    about = {
      "step": step,
      "checkpoint": self._store.identity,
      "checksums": checkpoints.sum_bits(flat),
      "loop": dict(loop),
    }
    with console.doing("copying the train state"):
      shards = {
        f"{name}|{place}": shard
        for name, x in self._store.written(flat).items()
        for place, shard in _own_shards(x).items()
      }
    self._writer.submit(self._write, step, shards, json.dumps(about))

  def newest(self, like: PyTree) -> checkpoints.Restored | None:
    """The newest copy that all processes have, if it belongs to the last checkpoint.

    like: as in `Checkpoints.restore`. All processes call it together.
    """
    latest = self._store.latest()
    if not self._every or latest is None:
      return None
    last = self._store.identity_of(latest)
    own = {step: about for step in self._steps() if (about := self._read_about(step, last))}
    common = set.intersection(*map(set, processes.all_gather_json(sorted(own))))
    if not common:
      return None
    step = max(common)
    flat = checkpoints.flatten(like)
    arrays = self._read(step, self._store.written(flat))
    if not all(processes.all_gather_json(arrays is not None)) or arrays is None:
      return None
    flat = {name: arrays.get(name, x) for name, x in flat.items()}
    about = own[step]
    if about["checksums"] != checkpoints.sum_bits(flat):
      console.print_note(f"{self._directory}: the copy of step {step} is damaged; it is not used")
      return None
    self._store.identity = last
    console.print_line(f"going on from the copy of step {step} on the hosts' own disks")
    tree = jax.tree.unflatten(jax.tree.structure(like), list(flat.values()))
    return checkpoints.Restored(step=step, tree=tree, loop=about["loop"])

  def close(self) -> None:
    """Waits until the last copy is written."""
    if self._writer:
      self._writer.close()

  @functools.cached_property
  def _directory(self) -> Path:
    """Where the copies are; asked for only if there are any, as a user may have no home."""
    copies = compilations.user_cache() / "copies" / compilations.run_name(self._workdir)
    return copies / self._stage / f"{jax.process_index()}-of-{jax.process_count()}"

  def _file(self, step: int) -> Path:
    return self._directory / f"{step}.safetensors"

  def _steps(self) -> list[int]:
    return sorted(int(path.stem) for path in self._directory.glob("*.safetensors"))

  def _write(self, step: int, shards: dict[str, np.ndarray], about: str) -> None:
    """Writes a copy. A disk that is full costs the copy, not the run."""
    try:
      self._directory.mkdir(parents=True, exist_ok=True)
      for old in self._steps()[: 1 - _KEPT]:
        self._file(old).unlink()
      with atomic.file(self._file(step)) as partial:
        safetensors_numpy.save_file(shards, partial, metadata={_ABOUT: about})
    except (OSError, safetensors.SafetensorError) as error:
      console.print_note(f"{self._directory}: no copy of step {step}: {error}")

  def _read_about(self, step: int, last: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a copy says of itself, if it belongs to the last checkpoint and is newer."""
    try:
      with safetensors.safe_open(str(self._file(step)), "np") as file:
        about = plain_json.parse((file.metadata() or {})[_ABOUT])
      fits = about["checkpoint"] == last and about["step"] == step > last["step"]
      return about if fits else None
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
      return None

  def _read(self, step: int, like: Mapping[str, Any]) -> dict[str, jax.Array] | None:
    """The arrays of a copy; None if the file lacks one of this process's shards."""
    try:
      found = safetensors_numpy.load_file(self._file(step))
      return {name: _assemble(name, x, found) for name, x in like.items()}
    except (OSError, ValueError, KeyError, safetensors.SafetensorError):
      return None


def _own_shards(x: jax.Array) -> dict[str, np.ndarray]:
  """The bytes of the shards of this process, by their place in the array."""
  found = {str(shard.index): shard.data for shard in x.addressable_shards}
  return {place: _bytes(np.asarray(data)) for place, data in found.items()}


def _bytes(x: np.ndarray) -> np.ndarray:
  return np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8)


def _assemble(name: str, like: jax.Array, found: Mapping[str, np.ndarray]) -> jax.Array:
  """An array of the shape, dtype and sharding of `like`, from the shards of this process."""
  sharding, shards = like.sharding, []
  for device, index in sharding.addressable_devices_indices_map(like.shape).items():
    shape = sharding.shard_shape(like.shape)
    data = found[f"{name}|{index}"].view(like.dtype).reshape(shape)
    shards.append(jax.device_put(data, device))
  return jax.make_array_from_single_device_arrays(like.shape, sharding, shards)
