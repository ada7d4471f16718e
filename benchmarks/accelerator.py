"""Times the train step and the rollout of an RL step on an accelerator, against its limits.

    python -m benchmarks.accelerator [--config=configs/moss_chatv.py:3b] [--config.field=value …]

Random weights, no files: Qwen2.5-VL-3B, frozen vision tower, 4 prompts of 16 frames x 128 tokens,
8 replies of 512 tokens each, bfloat16 activations, on all devices of this machine. It runs the
programs of `vr_jax.train.rl_loop` (launch/programs.py), for recipes with one turn. The stop token
can't be sampled, so every reply has its full length. Prints one JSON line:

- encoder: seconds (median) in which the vision tower encodes all prompts.
- train: seconds of one update, tokens/s of replies, and model FLOPs utilisation: analytic matrix
  FLOPs of forward and backward passes, vision included, no recomputation
  (models/qwen2_5_vl/flops.py), over time and peak. Goal 0.5. A trained tower runs in the update.
  With a frozen one the update takes its features, so the encoder's seconds are added.
- rollout: seconds with the encoder's, sampled tokens/s, and seconds of a decoded token (without the
  prefill) over the time to read the weights and the keys and values once. Goal: at most 1.5.

Ratios to peak or bandwidth are null for a device that `accelerators.SPEEDS` does not list.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import importlib.metadata
import json
import re
import statistics
import sys
import time
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import numpy as np

from benchmarks import measure
from launch import abstract_state, programs
from vr_jax import errors, optional_sections, records
from vr_jax import main as vr_jax
from vr_jax.models.common import flops as flops_lib
from vr_jax.models.common import image_patches
from vr_jax.models.qwen2_5_vl import config as model_config
from vr_jax.models.qwen2_5_vl import flops, vision_inputs, windows
from vr_jax.parallel import accelerators
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import encoder
from vr_jax.train import model_setup, step_shapes
from vr_jax.train import train_state as train_state_lib

REPEATS = 5
FIELDS = {
  "rl.batch_size": 4,
  "rl.num_generations": 8,
  "rl.max_new_tokens": 512,
  "rl.kl_weight": 0.0,  # the reference's pass is not part of a train step
  "data.frames": 16,
  "model.max_pixels": 128 * 28 * 28,
  "model.prefix_buckets": "(1152,)",
  "model.frame_buckets": "(8,)",
  "model.patch_buckets": "(512,)",
}
# Packages besides jax that the times may depend on.
PACKAGES = r"jax-(cuda\d+|rocm\d+)-plugin|nvidia-cu(dnn|blas)-cu\d+|libtpu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcceleratorWork:
  """A model with its state and prompts, the sizes of a step, and the step's programs by name."""

  net: model_setup.ModelSetup
  step_shapes: step_shapes.StepShapes
  programs: dict[str, programs.Program]
  state: train_state_lib.TrainState
  prompt: records.Prompt


def prepare(argv: Sequence[str]) -> AcceleratorWork:
  """Random weights and prompts of a config, on the devices of this machine."""
  recipe = [word for word in argv if word.startswith("--config=")] or [
    "--config=configs/moss_chatv.py:3b"
  ]
  fields = {f"--config.{name}": str(value) for name, value in FIELDS.items()}
  fields |= dict(word.split("=", 1) for word in argv if word.startswith("--config."))
  flags = [f"{name}={value}" for name, value in fields.items()]
  config, _, _ = vr_jax.parse_flags(["accelerator", "--workdir=.", *recipe, *flags])
  if optional_sections.takes_turns(config):
    raise errors.InputError(f"{recipe[-1]}: has several turns; choose a recipe with one")
  model = cast(model_config.Qwen2_5_VLConfig, model_setup.model_of(config))
  mesh = model_setup.make_mesh(config)
  config = model_setup.clamp_microbatches(config, mesh)
  load = step_shapes.make_step_shapes(config, model)
  net = model_setup.ModelSetup(
    config=config,
    mesh=mesh,
    model=model,
    allowed_tokens=jnp.ones(model.text.vocab_size, bool),
    stop_tokens=abstract_state.STOP_TOKENS,
  )
  optimizer = train_state_lib.make_optimizer(config.rl, net.abstract_params, net.frozen)
  return AcceleratorWork(
    net=net,
    step_shapes=load,
    programs={each.name: each for each in programs.programs_of_step(config, model, mesh, load)},
    state=train_state_lib.create(net.draw_params(), optimizer, mesh),
    prompt=mesh_lib.put_batch(random_prompt(model, load), mesh),
  )


def random_prompt(
  model: model_config.Qwen2_5_VLConfig, load: step_shapes.StepShapes
) -> records.Prompt:
  """Prompts without padding: all media tokens first, then text; pixels and words at random."""
  rng = np.random.default_rng(0)
  vision, shape = model.vision, (load.prompts, load.prefix)
  tokens, merge = load.patches // vision.merge_unit, vision.spatial_merge_size
  height = max(n for n in range(1, tokens + 1) if tokens % n == 0 and n**2 <= tokens)
  rows = image_patches.patch_rows(height * merge, tokens // height * merge, merge=merge)
  window = windows.patch_windows(rows, vision)
  slot = windows.window_slots(window, vision)
  media, place = load.frames * tokens, np.arange(load.prefix)
  patches = (load.prompts, load.frames, load.patches)
  return records.Prompt(
    tokens=rng.integers(1, model.text.vocab_size, shape).astype(np.int32),
    kind=np.broadcast_to(
      np.where(place < media, records.Kind.VIDEO, records.Kind.TEXT), shape
    ).astype(np.int32),
    positions=np.broadcast_to(place, (3, *shape)).transpose(1, 2, 0).astype(np.int32),
    next_position=np.full(load.prompts, load.prefix, np.int32),
    media_index=np.broadcast_to(np.where(place < media, place, -1), shape).astype(np.int32),
    vision=vision_inputs.VisionInputs(
      patches=rng.integers(0, 256, (*patches, vision.patch_dim), np.uint8),
      rows=np.broadcast_to(rows, (*patches, 2)).astype(np.int32),
      window=np.broadcast_to(window, patches),
      slot=np.broadcast_to(slot, patches),
    ),
  )


def timings(work: AcceleratorWork) -> dict[str, float]:
  """Seconds of encoder, prefill (with one token), rollout and update, without compilation."""
  net, step_shapes, state = work.net, work.step_shapes, work.state
  rollout, train = work.programs["rollout"], work.programs["train step"]
  stops = jnp.array(net.stop_tokens)

  def sample(length: int) -> records.Rollout:
    decoding = dataclasses.replace(rollout.keywords["decoding"], max_new_tokens=length)
    allowed_tokens, key = net.allowed_tokens.at[stops].set(False), jax.random.key(0)
    return rollout.function(
      net.graphdef, state.params, encoded, allowed_tokens, key, decoding=decoding
    )

  encoding, encoded = median_seconds(
    functools.partial(encoder.encode, net.graphdef, state.params, work.prompt)
  )
  prefill, _ = median_seconds(lambda: sample(1))
  whole, replies = median_seconds(lambda: sample(step_shapes.time))
  prompt = encoded if net.tower_frozen else work.prompt
  advantages = jax.random.normal(jax.random.key(1), replies.log_probs.shape)
  group_mask = jnp.ones(step_shapes.prompts, bool)
  # Log-probs of old policy and reference; None where the recipe does without.
  others = [None if x is None else replies.log_probs for x in train.arguments[-2:]]

  def update() -> PyTree:
    nonlocal state
    state, metrics = train.function(state, prompt, replies, advantages, group_mask, *others)
    return metrics

  return {
    "encoder": encoding,
    "prefill": prefill,
    "rollout": whole,
    "update": median_seconds(update)[0],
  }


def median_seconds(run: Callable[[], PyTree]) -> tuple[float, PyTree]:
  """Median seconds of a few runs after a first one, and the result of the last."""
  jax.block_until_ready(run())
  taken = []
  for _ in range(REPEATS):
    begun = time.perf_counter()
    found = jax.block_until_ready(run())
    taken.append(time.perf_counter() - begun)
  return statistics.median(taken), found


def results(work: AcceleratorWork, seconds: dict[str, float]) -> dict[str, dict[str, float | None]]:
  """The fields of the JSON line that these timings give."""
  step_shapes, counted, (peak, bandwidth) = work.step_shapes, model_flops(work), limits()
  tokens = step_shapes.prompts * step_shapes.group * step_shapes.time
  train = seconds["update"] + (seconds["encoder"] if work.net.tower_frozen else 0)
  rollout = seconds["encoder"] + seconds["rollout"]
  step = (seconds["rollout"] - seconds["prefill"]) / (step_shapes.time - 1)
  bound = bandwidth and bytes_of_a_token(work) / bandwidth
  return {
    "encoder": {"seconds": round(seconds["encoder"], 4)},
    "train": {
      "seconds": round(train, 4),
      "tokens_per_second": round(tokens / train, 1),
      "model_flops": counted,
      "utilisation": peak and round(counted / train / peak, 4),
      "goal": 0.5,
    },
    "rollout": {
      "seconds": round(rollout, 4),
      "tokens_per_second": round(tokens / rollout, 1),
      "step_over_bandwidth_bound": bound and round(step / bound, 3),
      "goal": 1.5,
    },
  }


def model_flops(work: AcceleratorWork) -> float:
  """FLOPs of one update and of the vision tower's pass."""
  step_shapes, net = work.step_shapes, work.net
  one = flops.forward(
    cast(model_config.Qwen2_5_VLConfig, net.model),
    frames=step_shapes.frames,
    patches=step_shapes.patches,
    prefix=step_shapes.prefix,
    group=step_shapes.group,
    time=step_shapes.time,
  )
  return step_shapes.prompts * flops_lib.training(
    one, vision_frozen=net.tower_frozen, base_frozen=net.adapters is not None
  )


def bytes_of_a_token(work: AcceleratorWork) -> float:
  """Bytes that decoding must read for one token of every reply, halfway through the replies.

  These are the text weights, the keys and the values.
  """
  model, step_shapes = cast(model_config.Qwen2_5_VLConfig, work.net.model), work.step_shapes
  text = model.text
  layers = jax.tree.leaves(work.net.abstract_params["text"]["layers"])
  weights = sum(x.size for x in layers) + text.vocab_size * text.hidden_size
  kept = step_shapes.prompts * (step_shapes.prefix + step_shapes.group * step_shapes.time / 2)
  numbers = 2 * kept * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
  return jnp.dtype(model.dtype).itemsize * (weights + numbers)


def limits() -> tuple[float | None, float | None]:
  """FLOP/s and bytes/s of all devices together; None where they are not known."""
  kind, count = jax.devices()[0].device_kind, len(jax.devices())
  speed = accelerators.find_speed(kind)
  return (speed.flops * count, speed.bandwidth * count) if speed else (None, None)


def main(argv: Sequence[str]) -> int:
  """Runs the benchmark and prints its line."""
  names = {found.name for found in importlib.metadata.distributions()}
  about = measure.About(*sorted(name for name in names if re.fullmatch(PACKAGES, name)))
  try:
    work = prepare(argv)
  except errors.InputError as error:
    print(f"accelerator: {error}", file=sys.stderr)
    return 2
  found = {"benchmark": "accelerator", "devices": len(jax.devices())}
  print(json.dumps({**found, **results(work, timings(work)), **about.fields()}))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
