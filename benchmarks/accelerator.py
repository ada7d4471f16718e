"""An RL step on an accelerator: how long its train step and its rollout take, and how far that is from the hardware's limits.

    python -m benchmarks.accelerator [--config=configs/moss_chatv.py:3b] [--config.field=value …]

Random weights, no files: Qwen2.5-VL-3B, frozen vision tower, 4 prompts of 16 frames x 128 tokens, 8 replies of 512 tokens each,
bfloat16 activations, on all devices of this machine. It runs the programs that `vr_jax.train.rl_loop` runs (train/programs.py).
Every reply runs to its end, since the stop token can't be sampled. Prints one JSON line:

- train: seconds of one update (median), tokens/s of replies, model FLOPs utilisation: analytic matrix FLOPs of forward and
  backward, nothing counted twice (models/qwen2_5_vl/flops.py), over time and peak. Goal 0.5. The frozen tower has run before:
  update and rollout take its features.
- rollout: seconds, sampled tokens/s, and seconds of a decoded token (those of the prefill taken off) over the time that the
  weights and the keys and values take to be read once. Goal: at most 1.5.

Where peak or bandwidth of a device are not in the table below, its shares are null.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import numpy as np

from vr_jax import errors, records
from vr_jax import main as vr_jax
from vr_jax.models.qwen2_5_vl import config as model_config
from vr_jax.models.qwen2_5_vl import flops, positions
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import encoder
from vr_jax.train import loads, network, outline, programs
from vr_jax.train import state as state_lib

REPEATS = 5
FIELDS = {
  "rl.prompts": 4,
  "rl.group": 8,
  "rl.max_new_tokens": 512,
  "rl.kl_weight": 0.0,  # the reference's pass is no part of a train step
  "data.frames": 16,
  "model.max_pixels": 128 * 28 * 28,
  "model.prefix_buckets": "(1152,)",
  "model.frame_buckets": "(8,)",
}
# bfloat16 FLOP/s without sparsity and bytes/s of main memory, by what a device's kind holds. Source: NVIDIA's data sheets.
DEVICES = {
  "H200": (989e12, 4.8e12),
  "H100": (989e12, 3.35e12),
  "A100": (312e12, 2.04e12),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """What is measured: a model, the sizes of its arrays, the programs of a step and their real arguments."""

  model: model_config.Config
  load: loads.Load
  rollout: programs.Program
  train: programs.Program
  state: state_lib.TrainState
  prompt: records.Prompt


def prepare(argv: Sequence[str]) -> Work:
  """Random weights and prompts of a config, on the devices of this machine."""
  given = [word for word in argv if word.startswith("--config=")] or [
    "--config=configs/moss_chatv.py:3b"
  ]
  fields = {f"--config.{name}": str(value) for name, value in FIELDS.items()}
  fields |= dict(word.split("=", 1) for word in argv if word.startswith("--config."))
  flags = [f"{name}={value}" for name, value in fields.items()]
  config, _, _ = vr_jax.parse_flags(["accelerator", "--workdir=.", *given, *flags])
  model = programs.model_of(config)
  load = loads.load_of(config, model)
  mesh = mesh_lib.make_mesh(config.mesh)
  _, rollout, *_, train = programs.of_config(config, model, mesh, load)
  net = network.Network(
    config=config,
    mesh=mesh,
    model=model,
    allowed=jnp.ones(model.text.vocab_size, bool),
    stop_tokens=outline.STOP_TOKENS,
  )
  shardings = jax.tree.map(lambda x: x.sharding, net.abstract_params)
  params = jax.jit(net.random_params, out_shardings=shardings)()
  optimizer = state_lib.make_optimizer(config.rl, net.abstract_params, net.frozen)
  prompt = mesh_lib.put_batch(random_prompt(model, load), mesh)
  return Work(
    model=model,
    load=load,
    rollout=rollout,
    train=train,
    state=state_lib.create(params, optimizer, mesh),
    prompt=encoder.encode(net.graph, params, prompt),
  )


def random_prompt(model: model_config.Config, load: loads.Load) -> records.Prompt:
  """Prompts without padding: all media tokens first, then text; pixels and words at random."""
  rng = np.random.default_rng(0)
  vision, shape = model.vision, (load.prompts, load.prefix)
  tokens, merge = load.patches // vision.merge_unit, vision.spatial_merge_size
  height = max(n for n in range(1, tokens + 1) if tokens % n == 0 and n**2 <= tokens)
  rows = positions.patch_rows(height * merge, tokens // height * merge, vision)
  window = positions.patch_windows(rows, vision)
  media, place = load.frames * tokens, np.arange(load.prefix)
  patches = (load.prompts, load.frames, load.patches)
  return records.Prompt(
    tokens=rng.integers(1, model.text.vocab_size, shape).astype(np.int32),
    kind=np.broadcast_to(
      np.where(place < media, records.Kind.VIDEO, records.Kind.TEXT), shape
    ).astype(np.int32),
    positions=np.broadcast_to(place, (3, *shape)).astype(np.int32),
    next_position=np.full(load.prompts, load.prefix, np.int32),
    media_index=np.broadcast_to(np.where(place < media, place, -1), shape).astype(np.int32),
    vision=records.Vision(
      patches=rng.normal(size=(*patches, vision.patch_dim)).astype(np.float32),
      rows=np.broadcast_to(rows, (*patches, 2)).astype(np.int32),
      window=np.broadcast_to(window, patches).astype(np.int32),
    ),
  )


def measure(work: Work) -> dict[str, dict[str, float | None]]:
  """Both programs, after a first run that compiles."""
  graph, _, _, _, _ = work.rollout.arguments
  load, decoding = work.load, work.rollout.keywords["decoding"]
  allowed = jnp.ones(work.model.text.vocab_size, bool).at[jnp.array(outline.STOP_TOKENS)].set(False)

  def sample(length: int) -> records.Rollout:
    cut = dataclasses.replace(decoding, max_new_tokens=length)
    key = jax.random.key(0)
    return work.rollout.function(graph, work.state.params, work.prompt, allowed, key, decoding=cut)

  replies = sample(load.time)
  whole = seconds(lambda: sample(load.time))
  prefill = seconds(lambda: sample(1))
  advantages = jax.random.normal(jax.random.key(1), replies.log_probs.shape)
  signal = jnp.ones(load.prompts, bool)
  state = work.state

  def update() -> PyTree:
    nonlocal state
    state, metrics = work.train.function(
      state, work.prompt, replies, advantages, signal, None, None
    )
    return metrics

  train = seconds(update)
  tokens = load.prompts * load.group * load.time
  peak, bandwidth = limits()
  counted = model_flops(work)
  step = (whole - prefill) / (load.time - 1)
  return {
    "train": {
      "seconds": round(train, 4),
      "tokens_per_second": round(tokens / train, 1),
      "model_flops": counted,
      "utilisation": peak and round(counted / train / peak, 4),
      "goal": 0.5,
    },
    "rollout": {
      "seconds": round(whole, 4),
      "tokens_per_second": round(tokens / whole, 1),
      "step_over_bandwidth_bound": bandwidth
      and round(step / (bytes_of_a_token(work) / bandwidth), 3),
      "goal": 1.5,
    },
  }


def seconds(run: Callable[[], PyTree]) -> float:
  """Median of a few runs, the first one left out."""
  jax.block_until_ready(run())
  taken = []
  for _ in range(REPEATS):
    begun = time.perf_counter()
    jax.block_until_ready(run())
    taken.append(time.perf_counter() - begun)
  return statistics.median(taken)


def model_flops(work: Work) -> float:
  """Of one update, which runs no vision tower."""
  load = work.load
  one = flops.forward(
    work.model,
    frames=0,
    patches=0,
    prefix=load.prefix,
    group=load.group,
    time=load.time,
  )
  return load.prompts * flops.training(one, vision_frozen=True)


def bytes_of_a_token(work: Work) -> float:
  """What decoding must read for one token of every reply: text weights, keys and values, halfway through the replies."""
  text, load = work.model.text, work.load
  size = jnp.dtype(work.model.dtype).itemsize
  layers = jax.tree.leaves(work.state.params["text"]["layers"])
  weights = sum(x.size for x in layers) + text.vocab_size * text.hidden_size
  kept = load.prompts * (load.prefix + load.group * load.time / 2)
  numbers = 2 * kept * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
  return size * (weights + numbers)


def limits() -> tuple[float | None, float | None]:
  """FLOP/s and bytes/s of all devices together; None where they are not known."""
  kind, count = jax.devices()[0].device_kind, len(jax.devices())
  found = [limit for name, limit in DEVICES.items() if name in kind]
  return (found[0][0] * count, found[0][1] * count) if found else (None, None)


def main(argv: Sequence[str]) -> int:
  """Runs the benchmark and prints its line."""
  try:
    work = prepare(argv)
  except errors.InputError as error:
    print(f"accelerator: {error}", file=sys.stderr)
    return 2
  about = {
    "benchmark": "accelerator",
    "device": jax.devices()[0].device_kind,
    "devices": len(jax.devices()),
    "jax": jax.__version__,
  }
  print(json.dumps({**about, **measure(work)}))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
