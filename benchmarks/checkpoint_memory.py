"""Measures the host memory of reading a checkpoint by `from_pretrained` on simulated devices.

    python -m benchmarks.checkpoint_memory [--megabytes=3000] [--dtype=bfloat16] [--devices=8] \\
      [--processes=1]

Writes a bfloat16 checkpoint of about that size, with Qwen2.5-VL's vocabulary, into a temporary
directory. Fresh processes, which share the devices, then read it with the shardings of training,
and each measures itself. Prints one JSON line. On a CPU the memory of a device is memory of the
host. So a process may use its own share of the parameters, and 1.5 times the largest tensor of the
files (`limit`, the goal).

`beyond_share` is the highest resident memory during the read, minus that before it, minus the
share. It is Linux's VmHWM, which also counts pages of mapped files while they are mapped. All sizes
are in megabytes (10^6 bytes).
"""

import argparse
from collections.abc import Iterator, Sequence
import functools
import json
import math
import os
from pathlib import Path
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

MEGABYTE = 10**6
LIMIT = 1.5  # times the largest tensor of the files
VOCAB, LAYERS = 152_064, 24
LAYER_WEIGHTS = 17.5  # of a layer below, in units of embed^2
BLOCK = 2**20 - 3  # random numbers, repeated; prime to the sizes, so that no two rows are alike


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the checkpoint, runs the readers, and prints the JSON line."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_memory")
  parser.add_argument("--megabytes", type=int, default=3000)
  parser.add_argument("--dtype", default="bfloat16", help="of the parameters")
  parser.add_argument("--devices", type=int, default=8, help="of all processes together")
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument("--piece-megabytes", type=int, default=64)
  parser.add_argument("--reader", nargs=3, metavar=("DIRECTORY", "ADDRESS", "INDEX"))
  arguments = parser.parse_args(argv)
  if arguments.reader:
    print(json.dumps(read(arguments)))
    return
  with tempfile.TemporaryDirectory() as directory:
    largest = write_checkpoint(Path(directory), arguments.megabytes)
    readers = start_readers(arguments, directory)
    outputs = [reader.communicate()[0] for reader in readers]
  assert not any(reader.returncode for reader in readers), "a reader failed; see above"
  found = [json.loads(output.splitlines()[-1]) for output in outputs]
  result = {
    "benchmark": "checkpoint_memory",
    **{name: getattr(arguments, name) for name in ("dtype", "devices", "processes")},
    "largest_tensor": round(largest / MEGABYTE, 1),
    "limit": round(LIMIT * largest / MEGABYTE, 1),
    "readers": found,
    "met": all(reader["beyond_share"] <= LIMIT * largest / MEGABYTE for reader in found),
  }
  print(json.dumps(result))


def write_checkpoint(directory: Path, megabytes: int) -> int:
  """Writes a checkpoint of random weights; returns the bytes of its largest tensor."""
  import jax.numpy as jnp

  from vr_jax.models import qwen2_5_vl
  from vr_jax.models.common import streaming, weight_mapping
  from vr_jax.models.qwen2_5_vl import config as config_lib

  # 2 VOCAB embed + LAYERS LAYER_WEIGHTS embed^2 weights of two bytes
  a, b, c = LAYERS * LAYER_WEIGHTS, 2 * VOCAB, -megabytes * MEGABYTE / 2
  embed = max(int((-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)) // 128 * 128, 128)
  text = config_lib.TextConfig(
    vocab_size=VOCAB,
    hidden_size=embed,
    intermediate_size=5 * embed,
    num_hidden_layers=LAYERS,
    num_attention_heads=8,
    num_key_value_heads=2,
    mrope_section=(embed // 64, embed // 64, embed // 32),
  )
  vision = config_lib.VisionConfig(
    depth=4, hidden_size=256, intermediate_size=512, num_heads=4, out_hidden_size=embed
  )
  ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
  config = config_lib.Qwen2_5_VLConfig(text=text, vision=vision, **dict.fromkeys(ids, 0))
  family = qwen2_5_vl.FAMILY
  slots = family.weights.slots(config, weight_mapping.flat(family.abstract_params(config)))
  entries = streaming.entries(slots, dict.fromkeys(slots, jnp.dtype("bfloat16")))
  # As bfloat16 all of these are finite.
  block = np.random.default_rng(0).integers(0, 2**14, BLOCK, np.uint16)

  def stream() -> Iterator[np.ndarray]:
    for number, entry in enumerate(entries):
      yield np.resize(np.roll(block, number), entry.shape)

  streaming.write_files(directory, entries, stream(), 10**9)
  fields, _ = family.model_files(config, None)
  (directory / "config.json").write_text(json.dumps(fields))
  return max(entry.bytes for entry in entries)


def start_readers(arguments: argparse.Namespace, directory: str) -> list[subprocess.Popen]:
  """Starts one process for each reader, with its share of the devices."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  devices = arguments.devices // arguments.processes
  platform = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  options = [
    f"--{name.replace('_', '-')}={getattr(arguments, name)}"
    for name in ("dtype", "devices", "processes", "piece_megabytes")
  ]
  return [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "benchmarks.checkpoint_memory", *options),
        *("--reader", directory, address, str(index)),
      ],
      env={**os.environ, **platform},
      stdout=subprocess.PIPE,
      text=True,
    )
    for index in range(arguments.processes)
  ]


def read(arguments: argparse.Namespace) -> dict[str, Any]:
  """Reads the checkpoint in this process and measures its memory."""
  import jax

  from benchmarks import measure
  from vr_jax.models import qwen2_5_vl
  from vr_jax.parallel import mesh as mesh_lib

  directory, address, index = arguments.reader
  if arguments.processes > 1:
    jax.distributed.initialize(address, arguments.processes, int(index))
  mesh = mesh_lib.make_mesh(mesh_shape(arguments.devices, len(mesh_lib.AXES)))
  before = measure.peak_bytes(reset=True)
  begun = time.perf_counter()
  _, params = qwen2_5_vl.from_pretrained(
    directory,
    dtype=arguments.dtype,
    shardings=functools.partial(mesh_lib.param_shardings, mesh=mesh),
    piece_bytes=arguments.piece_megabytes * MEGABYTE,
  )
  seconds = time.perf_counter() - begun
  peak = measure.peak_bytes()
  share = sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards)
  sizes = {"before": before, "share": share, "peak": peak, "beyond_share": peak - before - share}
  rounded = {name: round(value / MEGABYTE, 1) for name, value in sizes.items()}
  return {**rounded, "seconds": round(seconds, 1)}


def mesh_shape(devices: int, axes: int) -> tuple[int, ...]:
  """A mesh shape: two devices on tensor if their number is even, all others on fsdp."""
  tensor = 2 if devices % 2 == 0 else 1
  return (1, devices // tensor, *[1] * (axes - 3), tensor)


if __name__ == "__main__":
  main()
