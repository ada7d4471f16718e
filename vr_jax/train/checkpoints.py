"""Checkpoints of a stage: everything that a run needs to go on as if it had never stopped.

The checkpoint of a step has two parts:
  state: the train state, flat, name -> array. Orbax writes it asynchronously, each process its own
    shards.
  loop: a JSON object: the data iterator, the reward state, and the model's architecture.

Once it is complete, the checksums of its files are written beside them (checksums.py). A training
loop that finds its last checkpoint damaged sets it aside and goes on from the one before; what
only reads takes the one before.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
from pathlib import Path
import shutil
import threading
import traceback
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import numpy as np
import orbax.checkpoint as ocp

from vr_jax import atomic, errors
from vr_jax.models.common import stored_weights
from vr_jax.parallel import processes
from vr_jax.train import checkpoint_manager, checksums, console

_GO_BACK = "delete it to go back to the one before"
# Seconds; a week. Orbax measures them with a clock that may be set, and a bucket may be slow. What
# hangs, the watch ends (health.py).
_LONGEST_WRITE = 604_800
# Seconds in which processes that end with an error can complete a checkpoint together.
PATIENCE = 30.0
_ASIDE = ".damaged"  # suffix of a checkpoint that was set aside
_MOVING = "is not whole: its run gives it its name, or does when it is started again"
# What Orbax raises.
_UNREADABLE = (ValueError, KeyError, OSError, TypeError, AttributeError, OverflowError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
  """A checkpoint that was read. loop: the JSON part, as it was saved."""

  step: int
  tree: PyTree
  loop: dict[str, Any]


class Checkpoints:
  """The checkpoints under one directory.

  A checkpoint that can't be written (a full disk) raises InputError from the next call of `save`,
  `wait` or `close`; PassingError if it may be written later (a mount that was gone). With several
  processes, which would wait for each other, it ends all of them within some seconds (health.py).

  architecture: sizes of the model; to restore a checkpoint with another one is an error.
  left_out: names of arrays, or of subtrees, that are not written. To restore, the caller passes
    them in; their checksums must be the saved ones.
  keep: number of checkpoints to keep.

  identity: tells the checkpoint that was saved or read last from all others; None before that.
  """

  def __init__(
    self,
    directory: Path,
    *,
    architecture: Mapping[str, Any],
    left_out: Sequence[str] = (),
    keep: int = 2,
  ) -> None:
    self._directory = directory.absolute()
    self._architecture = json.loads(json.dumps(dict(architecture)))
    self._left_out = tuple(f"{name}." for name in left_out)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      create=True,
      enable_async_checkpointing=True,
      async_options=ocp.AsyncOptions(timeout_secs=_LONGEST_WRITE),
      temporary_path_class=checkpoint_manager.MarkedPath,
    )
    self._checksums = checksums.ChecksumWriter()
    self._keep = keep
    self._damage: dict[int, str] = {}  # of the steps whose files were compared
    self._passed: set[int] = set()  # steps that are damaged and stay where they are
    self._saved: set[int] = set()  # steps of this process, which may still be written
    self.identity: dict[str, Any] | None = None
    try:
      self._manager = checkpoint_manager.StepwiseManager(
        self._directory,
        on_failure=self._tell,
        options=options,
        item_handlers={
          # Trained floats don't get smaller, and to compress them takes most of a save's work.
          "state": ocp.PyTreeCheckpointHandler(use_compression=False),
          "loop": ocp.JsonCheckpointHandler(),
        },
      )
    except (*_UNREADABLE, RecursionError) as error:  # it reads what each step says of itself
      raise errors.InputError(
        f"{self._directory}: a checkpoint in it can't be read: {_reason(error)}; {_GO_BACK}"
      ) from error

  def latest(self) -> int | None:
    """The last complete step, or None. A step counts once its save has begun."""
    whole = filter(self._is_whole, self._manager.all_steps())
    return max((step for step in whole if step not in self._passed), default=None)

  def save(self, step: int, tree: PyTree, loop: Mapping[str, Any]) -> None:
    """Starts writing a checkpoint; the arrays are copied first, so the caller may donate them."""
    flat = flatten(tree)
    about = {"architecture": self._architecture, "checksums": sum_bits(flat)}
    with self._writing(), _saving():
      self._checksums.leave(self._keep - 1)
      self._damage.pop(step, None)
      self._passed.discard(step)
      self._saved.add(step)
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(self.written(flat)), loop=ocp.args.JsonSave({**loop, **about})
        ),
      )
      self._checksums.begin(self._path(step))
    self.identity = {"step": step, "checksums": about["checksums"]}

  def delete(self, step: int) -> None:
    """Deletes a checkpoint, so that another one of the same step can be saved."""
    self._checksums.leave(0)  # or it might write into the directory meanwhile
    self._saved.discard(step)
    self._manager.delete(step)

  def wait(self) -> None:
    """Waits until all saved checkpoints are on disk."""
    with self._writing(), _saving():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits like `wait`, and for the checksums, then frees the writers' threads."""
    with self._writing(), _saving():
      try:
        self._manager.close()
      finally:
        self._checksums.close()

  @contextlib.contextmanager
  def closing(self) -> Iterator[None]:
    """Closes them after the block.

    If the block fails in one of several processes, it does not wait long: a checkpoint that is not
    complete needs the others, which may wait for this one and its next step. What ends all
    processes together leaves them the time that they need.
    """
    try:
      yield
    except (errors.Preempted, errors.Diverged):
      self.close()
      raise
    except BaseException:
      if jax.process_count() == 1:
        self.close()
      else:
        thread = threading.Thread(target=self._close_quietly, daemon=True)
        thread.start()
        thread.join(PATIENCE)
      raise
    self.close()

  def _close_quietly(self) -> None:
    with contextlib.suppress(Exception):  # the error of the block is the first one
      self.close()

  def set_damaged_aside(self) -> None:
    """Renames the last checkpoints whose files are damaged, so that the one before is the last.

    All processes call it together, before they ask for the last step. It prints a line for each.
    Calls `finish_moves` first.

    Raises InputError if all are damaged: whether to begin anew is the user's choice.
    """
    self.finish_moves()
    damaged = self._damaged_last()
    for step, damage in damaged.items():
      path = self._path(step)
      aside = path.with_name(f"{step}{_ASIDE}")
      processes.first_alone(f"{path} is damaged", functools.partial(_replace, path, aside))
      console.print_note(f"{path}: {damage}; renamed to {aside.name}, to go on from the one before")
    if damaged:
      self._manager.reload()

  def finish_moves(self) -> None:
    """Gives a checkpoint its name that a kill left on the way to it.

    All processes of a training loop call it together, before they ask for the last step.
    """
    processes.first_alone(f"{self._directory}: moves", self._finish_moves)
    self._manager.reload()

  def pass_over_damaged(self, known: dict[int, str]) -> None:
    """Makes the last checkpoint that is not damaged the last one; for readers, who rename nothing.

    All processes call it together. It prints a line for each that is damaged, or not whole, and not
    in `known`.

    known: damage by step, found earlier; it is kept up to date. Damaged checkpoints are compared
      again, as a loop may have replaced them.

    Raises InputError if all are damaged.
    """
    noted, self._damage = dict(known), known
    for step in [step for step, damage in noted.items() if damage]:
      del known[step]
    damaged = self._damaged_last()
    self._passed |= damaged.keys()
    if (last := self.latest()) is not None:
      damaged |= dict.fromkeys((step for step in self._moving() if step > last), _MOVING)
    self._passed |= damaged.keys()
    known |= damaged
    for step, damage in damaged.items():
      if noted.get(step) != damage:
        console.print_note(f"{self._path(step)}: {damage}; the one before is used")

  def _moving(self) -> list[int]:
    """The steps of checkpoints on the way to their names."""
    names = [mark.stem for mark in self._directory.glob(f"*{atomic.MOVING}")]
    return sorted(int(name) for name in names if name.isdecimal())

  def _damaged_last(self) -> dict[int, str]:
    """The damage of the last checkpoints, the last one first, up to one without.

    Raises InputError if all are damaged.
    """
    damaged: dict[int, str] = {}
    for step in sorted(filter(self._is_whole, self._manager.all_steps()), reverse=True):
      if not (damage := self._find_damage(step)):
        return damaged
      damaged[step] = damage
    for step, damage in damaged.items():
      raise errors.InputError(
        f"{self._path(step)}: {damage}, and no other checkpoint is whole; delete "
        f"{self._directory} to begin the stage anew"
      )
    return damaged

  def _is_whole(self, step: int) -> bool:
    """Whether a kill has not left it on the way to its name."""
    return step in self._saved or atomic.is_whole(self._path(step))

  def _find_damage(self, step: int) -> str:
    """Compares the files of a checkpoint with their checksums, once."""
    if step not in self._damage:
      with console.doing(f"checking the files of {self._path(step)}"):
        self._damage[step] = checksums.find_damage(self._path(step))
    return self._damage[step]

  def _finish_moves(self) -> None:
    with self._writing():
      for mark in self._directory.glob(f"*{atomic.MOVING}"):
        atomic.finish_move(mark.with_suffix(""))

  def _path(self, step: int) -> Path:
    return self._directory / str(step)

  def restore(self, like: PyTree, *, step: int | None = None) -> Restored:
    """Reads a checkpoint into the structure, dtypes and shardings of `like`.

    like: a tree with the names of the saved one, or with some of them (only the parameters, say).
      The arrays that are left out of checkpoints are taken from it as they are.
    step: default: the last one.

    Raises:
      InputError: there is no checkpoint; it is damaged or of another architecture; or the arrays
        that are left out are not those of the save.
    """
    step = self.latest() if step is None else step
    if step is None:
      raise errors.InputError(f"{self._directory}: holds no complete checkpoint")
    if step in self._saved:
      self.wait()
    where = str(self._path(step))
    if damage := self._find_damage(step):
      raise errors.InputError(f"{where}: {damage}; {_GO_BACK}")
    loop = self.loop(step)
    saved = loop.get("checksums", {})
    if not all(isinstance(each, dict) for each in (loop.get("architecture"), saved)):
      raise errors.InputError(f"{where}: can't be read: its record is damaged; {_GO_BACK}")
    if loop["architecture"] != self._architecture:
      names = _differences(loop["architecture"], self._architecture)
      raise errors.InputError(f"{where}: a checkpoint of another architecture: {names}")
    wanted = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
      for name, x in self.written(flatten(like)).items()
    }
    read = self._read(
      where,
      step,
      state=ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
      ),
    ).state
    flat = {name: read[name] if name in wanted else x for name, x in flatten(like).items()}
    if absent := [name for name in wanted if isinstance(flat[name], jax.ShapeDtypeStruct)]:
      raise errors.InputError(f"{where}: can't be read: it lacks {absent[0]}; {_GO_BACK}")
    found = sum_bits(flat)
    saved = saved or found
    if differ := [name for name in flat if saved.get(name) != found[name]]:
      what = (
        f"{differ[0]} is damaged; {_GO_BACK}"
        if differ[0] in wanted
        else f"was trained beside another {differ[0].removesuffix('.value')}; "
        "restore config.model.pretrained"
      )
      raise errors.InputError(f"{where}: {what}")
    self.identity = self.identity_of(step)
    tree = jax.tree.unflatten(jax.tree.structure(like), list(flat.values()))
    return Restored(step=step, tree=tree, loop=loop)

  def written(self, flat: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays that are written: all but those left out."""
    return {n: x for n, x in flat.items() if not f"{n}.".startswith(self._left_out)}

  def identity_of(self, step: int) -> dict[str, Any]:
    """The identity of a step's checkpoint. Raises InputError if its JSON part is damaged."""
    return {"step": step, "checksums": self.loop(step).get("checksums")}

  def loop(self, step: int) -> dict[str, Any]:
    """Reads the JSON part of a step's checkpoint. Raises InputError if it is damaged."""
    where = f"{self._directory}/{step}"
    loop = self._read(where, step, loop=ocp.args.JsonRestore()).loop
    if not isinstance(loop, dict):
      raise errors.InputError(f"{where}: can't be read: its record is damaged; {_GO_BACK}")
    return loop

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns the system's write errors into InputError."""
    try:
      yield
    except (OSError, ValueError) as error:
      self._tell(error)
      if (reason := checkpoint_manager.system_reason(error)) is None:
        raise
      kind = errors.InputError if checkpoint_manager.is_lasting(reason) else errors.PassingError
      raise kind(self._unwritten(reason)) from error

  def _unwritten(self, reason: str) -> str:
    try:
      whole = [s for s in self._manager.all_steps() if atomic.is_whole(self._path(s))]
      last = str(max(whole, default="none"))
    except OSError:  # the storage is gone for reading, too
      last = "unknown"
    return (
      f"{self._directory}: a checkpoint can't be written ({reason}); the last complete one is "
      f"{last}, from which the same command goes on"
    )

  def _tell(self, error: Exception) -> None:
    """Ends all processes, which would wait for this one's part. Any thread may call it."""
    if processes.count_joined() == 1 or checkpoint_manager.is_of_another(error):
      return
    reason = checkpoint_manager.system_reason(error)
    if reason is None:
      traceback.print_exception(error)
    line = self._unwritten(_reason(error) if reason is None else reason)
    processes.tell_failure(line, 2 if reason and checkpoint_manager.is_lasting(reason) else 1)

  def _read(self, where: str, step: int, **items: Any) -> Any:
    try:
      with console.doing(f"reading the checkpoint {where}", announce=True):
        return self._manager.restore(step, args=ocp.args.Composite(**items))
    except (*_UNREADABLE, RecursionError) as error:
      raise errors.InputError(f"{where}: can't be read: {_reason(error)}; {_GO_BACK}") from error


def _reason(error: BaseException) -> str:
  """The first line of an error of Orbax."""
  return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _replace(old: Path, new: Path) -> None:
  shutil.rmtree(new, ignore_errors=True)
  atomic.move_directory(old, new)


def _saving() -> contextlib.AbstractContextManager[None]:
  return console.doing("saving a checkpoint")


def flatten(tree: PyTree) -> dict[str, Any]:
  """The arrays of a tree by their dotted names."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def sum_bits(flat: Mapping[str, Any]) -> dict[str, int]:
  """Sums each array's bits as integers. Orbax itself does not notice a flipped bit."""
  if jax.default_backend() == "cpu" and all(
    getattr(x, "is_fully_addressable", True) for x in flat.values()
  ):
    return {name: _host_bit_sum(x) for name, x in flat.items()}
  sums = jax.device_get(_bit_sums(dict(flat)))
  return {name: int(value) for name, value in sums.items()}


def _host_bit_sum(x: jax.Array | np.ndarray) -> int:
  """The sum of `_bit_sums` without the copy of the array that XLA makes on CPUs."""
  is_host = isinstance(x, np.ndarray)
  shards = [x] if is_host else [s.data for s in x.addressable_shards if s.replica_id == 0]
  bits = (np.ravel(np.asarray(shard)).view(f"u{shard.dtype.itemsize}") for shard in shards)
  return sum(int(each.sum(dtype=np.uint32)) for each in bits) % 2**32


@jax.jit
def _bit_sums(flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
  def bit_sum(bits: jax.Array, _: jax.Array) -> jax.Array:
    return bits.sum(dtype=jnp.uint32)

  return {name: stored_weights.sum_bits(bit_sum, x) for name, x in flat.items()}


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
  names = sorted({*saved, *wanted})
  differ = [n for n in names if saved.get(n) != wanted.get(n)]
  return ", ".join(f"{n}={saved.get(n)!r} there, {wanted.get(n)!r} here" for n in differ[:3])
