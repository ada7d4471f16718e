"""Times a sum over devices: of many small arrays, of one as large as all of them, and of tiny ones.

    python -m benchmarks.small_exchanges

An update of `moss_chatv:tiny` on four CPU devices sums 202 arrays, 10.8 MB, in each of its four
micro-batches. It is done by four processes with a device each (Gloo, over loopback), and by one
process with four devices. Prints a JSON line for each: median milliseconds of a sum, and of the CPU
time that the first process spends on it.
"""

import json
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from launch import local

DEVICES = 4
SUMS = 9
# Name -> (arrays, numbers in each).
CASES = {"many": (202, 13_384), "one": (1, 202 * 13_384), "tiny": (202, 10)}


def time_sums() -> dict[str, dict[str, float]]:
  """Milliseconds of a sum of each case, and of CPU time."""
  mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  split, whole = (jax.sharding.PartitionSpec(*names) for names in (("data",), ()))
  add = jax.jit(
    jax.shard_map(lambda xs: jax.lax.psum(xs, "data"), mesh=mesh, in_specs=split, out_specs=whole)
  )
  found = {}
  for name, (arrays, numbers) in CASES.items():
    shape, place = (DEVICES, numbers), jax.NamedSharding(mesh, split)
    xs = [jnp.ones(shape, device=place) for _ in range(arrays)]
    jax.block_until_ready(add(xs))
    walls, works = [], []
    for _ in range(SUMS):
      wall, work = time.perf_counter(), time.process_time()
      jax.block_until_ready(add(xs))
      walls.append(time.perf_counter() - wall)
      works.append(time.process_time() - work)
    found[name] = {
      "ms": round(1e3 * statistics.median(walls), 1),
      "cpu_ms": round(1e3 * statistics.median(works), 1),
    }
  return found


def main(words: list[str]) -> None:
  """Without words: starts the processes of each case. words: count, index and port of one."""
  if not words:
    for count in (DEVICES, 1):
      port = local.free_port()
      commands = (
        [sys.executable, "-m", "benchmarks.small_exchanges", *map(str, (count, index, port))]
        for index in range(count)
      )
      started = [subprocess.Popen(command) for command in commands]
      for process in started:
        process.wait()
    return
  count, index, port = map(int, words)
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", DEVICES // count)
  if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, index)
  found = time_sums()
  if index == 0:
    print(json.dumps({"processes": count, **found}), flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
