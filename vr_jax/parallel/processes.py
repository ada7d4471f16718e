"""Coordination between the processes of a run: work for the first one alone, and reductions."""

import collections
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import itertools
import json
import socket
import threading
import time
from typing import Any

import jax
from jax._src import distributed  # JAX has no public name for the coordinator's store
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, Num
import numpy as np

from vr_jax import errors

_DAY = 86_400_000  # milliseconds
WAIT = 600  # seconds to wait for a text of another process
_FAILURES = "vr_jax/failures"
_exchanges = itertools.count()
_handed_over: collections.Counter[tuple[int, ...]] = collections.Counter()
_KEPT = 8  # texts that were handed over; whoever reads them is never so far behind
_waited, _lock = 0.0, threading.Lock()  # seconds, on any thread
_waiters = 0  # threads that wait now
_exchanging: Mesh | None = None  # the devices of all_gather; None: all


def is_first() -> bool:
  """Whether this process writes what a run has once: config, data, metrics, report."""
  return jax.process_index() == 0


def first_alone(name: str, work: Callable[[], None]) -> None:
  """Runs `work` in process 0, while the others wait.

  name: identifies this barrier; the same in all processes, and used nowhere else.

  If `work` fails, the others wait until their launcher ends them (launch/local.py).
  """
  if is_first():
    work()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def first_for_all(kind: str, work: Callable[[], object]) -> None:
  """Runs `work` in process 0, while the others wait; all raise its InputError.

  kind: as in `gather_texts`, whose rules hold.
  """
  failure = None
  if is_first():
    try:
      work()
    except errors.InputError as error:
      failure = error
  problem = gather_texts(kind, str(failure or ""), wait=_DAY / 1000)[0]
  if failure is not None:
    raise failure
  if problem:
    raise errors.InputError(problem)


def count_joined() -> int:
  """How many processes have joined (cluster.py). Unlike jax.process_count it starts no backend."""
  return distributed.global_state.num_processes or 1


def joined_index() -> int:
  """The index with which this process has joined. JAX lets no index join twice.

  That of its devices, jax.process_index, may be another where a TPU's hosts are set up wrongly.
  """
  return distributed.global_state.process_id or 0


def meet_to_end(seconds: float) -> None:
  """Waits until all processes are here, or for so long; no device takes part. Each ends after it.

  The first one returns last: without its coordinator JAX aborts those that are still there.
  """
  state, wait = distributed.global_state, round(1000 * seconds)
  if state.client is None:
    return
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    state.client.wait_at_barrier("vr_jax/end", wait)
    if state.process_id:
      state.client.key_value_set(f"vr_jax/end/{state.process_id}", "leaves")
    else:
      for index in range(1, count_joined()):
        state.client.blocking_key_value_get(f"vr_jax/end/{index}", wait)
  if not state.process_id:
    time.sleep(0.5)  # the others have left but for the few calls that end a process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
  """Why one process ends a run: a line for the user, and the exit code of all."""

  process: int
  host: str
  line: str
  code: int


def tell_failure(line: str, code: int) -> None:
  """Lets all of several processes end soon, with this exit code: they look for it (health.py).

  For what one of them meets, on any thread, while the others wait where only their end helps.
  Where the coordinator is gone nothing is told: JAX ends all for that.
  """
  client = distributed.global_state.client
  if client is not None and count_joined() > 1:
    told = json.dumps([socket.gethostname(), line, code])
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      client.key_value_set(f"{_FAILURES}/{joined_index()}", told, allow_overwrite=True)


def told_failure() -> Failure | None:
  """The failure that was told, this process's own before others'; None if none is known."""
  client = distributed.global_state.client
  if client is None or count_joined() == 1:
    return None
  try:
    values = client.key_value_dir_get(_FAILURES)
  except jax.errors.JaxRuntimeError:  # the coordinator is gone
    return None
  found = []
  for key, value in values:
    host, line, code = json.loads(value)
    process = int(key.rpartition("/")[2])
    found.append(Failure(process=process, host=host, line=line, code=code))
  return min(found, key=lambda each: (each.process != joined_index(), each.process), default=None)


def gather_texts(kind: str, text: str, *, wait: float = WAIT) -> list[str]:
  """The texts of all processes, in order, through the coordinator: no device takes part.

  Every process must call this, on its main thread, in the same order as other exchanges.

  kind: what is exchanged, in a word or two.
  wait: seconds for one that does not come.

  Raises:
    InputError: another process is at another exchange.
    JaxRuntimeError: it does not come, or the coordinator is gone.
  """
  client = distributed.global_state.client
  if client is None:
    return [text]
  number, own = next(_exchanges), joined_index()
  exchange = f"vr_jax/exchange {number}"
  client.key_value_set(f"{exchange}/{own}", json.dumps([kind, text]))
  with _waiting():
    client.wait_at_barrier(exchange, round(1000 * wait))
  if number:  # all have read the exchange before
    client.key_value_delete(f"vr_jax/exchange {number - 1}/{own}")
  values = {key.rpartition("/")[2]: value for key, value in client.key_value_dir_get(exchange)}
  found = [json.loads(values[str(index)]) for index in range(count_joined())]
  for index, (theirs, _) in enumerate(found):
    if theirs != kind:
      raise errors.InputError(
        f"process {index} is at its exchange about {theirs}, but process {own} at one "
        f"about {kind}; the same command, data and code have to be on all hosts"
      )
  return [each for _, each in found]


def gather_numbers(
  kind: str, numbers: Int[np.ndarray, "numbers"]
) -> Int[np.ndarray, "processes numbers"]:
  """As `all_gather`, but without the devices, which may be at work for long; see `gather_texts`.

  It waits a day for another process, as devices would: `log.hang_timeout` ends what hangs.
  """
  texts = gather_texts(kind, json.dumps(numbers.tolist()), wait=_DAY / 1000)
  return np.array([json.loads(text) for text in texts], numbers.dtype)


def hand_over(make: Callable[[], str], among: tuple[int, ...]) -> str:
  """A text that one process makes for others, through the coordinator: no device takes part.

  These processes call it on their main threads, in the same order as other calls among them.

  among: the processes; the first one makes it.

  Raises the first one's InputError; JaxRuntimeError if it makes none in a day.
  """
  client = distributed.global_state.client
  if client is None:
    return make()
  number = _handed_over[among]
  _handed_over[among] += 1
  key = f"vr_jax/handed over/{' '.join(map(str, among))}/"
  if among[0] != joined_index():
    with _waiting():
      problem, text = json.loads(client.blocking_key_value_get(f"{key}{number}", _DAY))
    if problem:
      raise errors.InputError(problem)
    return text
  if number >= _KEPT:
    client.key_value_delete(f"{key}{number - _KEPT}")
  try:
    text = make()
  except errors.InputError as error:
    client.key_value_set(f"{key}{number}", json.dumps([str(error), ""]))
    raise
  client.key_value_set(f"{key}{number}", json.dumps(["", text]))
  return text


def all_gather_json(value: Any) -> list[Any]:
  """The values of all processes, in order; every process must call this. value: JSON."""
  if jax.process_count() == 1:
    return [value]
  own = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = all_gather(np.array([len(own)]))[:, 0]
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: len(own)] = own
  texts = all_gather(padded)
  return [
    json.loads(text[:size].tobytes()) for size, text in zip(sizes.tolist(), texts, strict=True)
  ]


def all_max(number: int) -> int:
  """Maximum over processes. Every process must call this."""
  return int(all_gather(np.array([number])).max())


def all_min(number: int) -> int:
  """Minimum over processes. Every process must call this."""
  return int(all_gather(np.array([number])).min())


def all_sum(
  numbers: Float[np.ndarray, "numbers"], *, copies: int = 1
) -> Float[np.ndarray, "numbers"]:
  """Sum over processes. Every process must call this.

  copies: how many processes hold each value.
  """
  return all_gather(numbers).sum(axis=0) / copies


def all_gather(numbers: Num[np.ndarray, "numbers"]) -> Num[np.ndarray, "processes numbers"]:
  """Stacks the numbers of all processes, in order. Every process must call this."""
  if jax.process_count() == 1:
    return numbers[None]
  with _waiting():
    if _exchanging is not None:
      return _gather_on(_exchanging, numbers)
    return np.asarray(multihost_utils.process_allgather(numbers))


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
  """Counts the time within as spent waiting for other processes."""
  global _waited, _waiters
  begun = time.monotonic()
  with _lock:
    _waiters += 1
  try:
    yield
  finally:
    with _lock:
      _waiters -= 1
      _waited += time.monotonic() - begun


@contextlib.contextmanager
def exchanging_on(mesh: Mesh) -> Iterator[None]:
  """Lets `all_gather` use these devices alone: then it waits for no program on the others.

  All processes must do so together. mesh: has as many devices of each process.
  """
  global _exchanging
  of_process = [
    [device for device in mesh.devices.flat if device.process_index == index]
    for index in range(jax.process_count())
  ]
  before, _exchanging = _exchanging, Mesh(np.array(of_process), ("processes", "devices"))
  try:
    yield
  finally:
    _exchanging = before


def _gather_on(mesh: Mesh, numbers: Num[np.ndarray, "numbers"]) -> Num[np.ndarray, "..."]:
  sharding = NamedSharding(mesh, PartitionSpec("processes"))
  stacked = jax.make_array_from_process_local_data(sharding, numbers[None])
  return np.asarray(_replicate(mesh)(stacked).addressable_data(0))


@functools.cache
def _replicate(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def is_waiting() -> bool:
  """Whether a thread of this process waits for the others now, to exchange something."""
  return _waiters > 0


def seconds_waited() -> float:
  """Seconds that this process has waited for others so far, to exchange something."""
  return _waited
