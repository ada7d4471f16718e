"""The smallest complete run: MOSS-ChatV, two layers, twelve videos, four steps a stage."""

from collections.abc import Mapping
import dataclasses
import functools
import math
import os
from pathlib import Path
import signal
import subprocess
import sys
from typing import Any

from flax import nnx
import jax
import ml_collections
import numpy as np
import pytest

from vr_jax import recipe_config
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import batching, data_stage, initialization, run_context
from vr_jax.train import workdir as workdir_lib

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "configs/moss_chatv.py"

OVERRIDES: Mapping[str, Any] = {
  "data.simulate.videos": 12,
  "data.simulate.questions_per_video": 2,
  "data.simulate.world.height": 64,
  "data.simulate.world.width": 64,
  "data.simulate.world.fps": 4,
  "data.simulate.world.wordings": 3,
  "data.simulate.world.behaviours": ("cycle", "grow"),
  "data.simulate.world.families": ("choice", "name", "visits"),
  "data.simulate.world.shapes": ("circle", "square", "triangle"),
  "data.test_fraction": 0.25,
  "model.feature_cache_gib": 0.0,
  "model.architecture.text_config.hidden_size": 32,
  "model.architecture.text_config.intermediate_size": 48,
  "model.architecture.text_config.num_hidden_layers": 2,
  "model.architecture.text_config.num_attention_heads": 4,
  "model.architecture.text_config.num_key_value_heads": 2,
  "model.architecture.text_config.rope_scaling.mrope_section": (2, 1, 1),
  "model.architecture.vision_config.depth": 2,
  "model.architecture.vision_config.hidden_size": 32,
  "model.architecture.vision_config.intermediate_size": 48,
  "model.architecture.vision_config.num_heads": 2,
  "model.architecture.vision_config.out_hidden_size": 32,
  "model.architecture.vision_config.fullatt_block_indexes": (1,),
  "sft.steps": 4,
  "sft.batch_size": 4,
  "sft.warmup_steps": 1,
  "sft.learning_rate": 2e-3,
  "sft.max_reply_tokens": 80,
  "sft.checkpoint_every": 2,
  "sft.token_bucket_ratio": 0.0,
  "rl.microbatches": 1,
  "rl.steps": 4,
  "rl.batch_size": 4,
  "rl.num_generations": 4,
  "rl.max_new_tokens": 16,
  "rl.decode_slot_fractions": (),
  "rl.token_bucket_ratio": 0.0,  # one program for all lengths
  "rl.warmup_steps": 0,
  "rl.learning_rate": 3e-4,
  "rl.top_p": 1.0,
  "rl.checkpoint_every": 2,
  "eval.examples": 5,
  "eval.batch_size": 4,
  "eval.report_samples": 2,
}

# What a size needs besides to read the data of tiny: the times of Qwen3-VL's frames are text, and
# it may show each of two frames larger than of eight.
ROOM: Mapping[str, Mapping[str, Any]] = {
  "tiny": {},
  "tiny_qwen3vl": {"model__prefix_buckets": (160,), "model__patch_buckets": (16, 64)},
  "tiny_phi2": {},
}

# Of revseg: eight frames, and nothing learned before RL.
SHORT_GROUNDING: Mapping[str, Any] = {
  "data__simulate__videos": 4,
  "data__simulate__world__behaviours": ("approach",),
  "data__simulate__world__families": ("described",),
  "data__frames": 8,
  "env__description_bytes": 16,
  "model__prefix_buckets": (96, 224),
  "model__frame_buckets": (4, 5),
  "turns__episode_buckets": (128,),
  "turns__observation_buckets": (64,),
  "turns__decode_chunk": 16,
  "sft__steps": 0,
  "sft__max_reply_tokens": 112,
  "rl__steps": 1,
  "rl__token_bucket_ratio": 2.0,
}

# Of video_mtr: two turns about eight frames.
SHORT_TURNS: Mapping[str, Any] = {
  "data__simulate__world__behaviours": ("flicker",),
  "data__simulate__world__families": ("moment",),
  "data__simulate__videos": 8,
  "data__frames": 8,
  "env__turns": 2,
  "env__frame_budget": 4,
  "model__prefix_buckets": (256,),
  "model__frame_buckets": (2, 4),
  "turns__frame_buckets": (1, 2),
}


def recipe(size: str, path: str = RECIPE) -> ml_collections.ConfigDict:
  """The config of a recipe at a size, unchanged."""
  return recipe_config.load(f"{ROOT / path}:{size}")


def config(path: str = RECIPE, size: str = "tiny", **overrides: Any) -> ml_collections.ConfigDict:
  """The nano config of a recipe. Overrides have two underscores for a dot: rl__steps=2.

  size: one other than tiny keeps its network.
  """
  made = recipe(size, path)
  dotted: dict[str, Any] = {name.replace("__", "."): value for name, value in overrides.items()}
  for name, value in {**OVERRIDES, **dotted}.items():
    if size != "tiny" and name.startswith("model.architecture."):
      continue
    *sections, field = name.split(".")
    section = made
    for each in sections:
      section = section[each]
    section[field] = value
  return made


def arguments(workdir: Path, *more: str, mode: str = "all", recipe: str = RECIPE) -> list[str]:
  """The nano config as a command line; `more` are further flags."""
  fields = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
  return [f"--config={recipe}:tiny", f"--workdir={workdir}", f"--mode={mode}", *fields, *more]


def start(
  arguments: list[str], *, module: str = "vr_jax.main", devices: int = 1
) -> subprocess.Popen:
  """Starts `python -m vr_jax.main` (or another module) on `devices` CPU devices."""
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  return subprocess.Popen(
    [sys.executable, "-m", module, *arguments],
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": flags},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    # A test run in the background of a script ignores SIGINT, and its children would inherit that.
    preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
  )


def make_data(directory: Path, recipe: str = RECIPE, **overrides: Any) -> Path:
  """Simulates and ingests videos; returns the directory, for `data.directory`."""
  data_stage.prepare(config(recipe, data__directory=str(directory), **overrides), directory)
  return directory


def untrained_run(
  config: ml_collections.ConfigDict, workdir: Path
) -> tuple[run_context.RunContext, Any]:
  """Makes a run with data whose warm start ended with random weights; returns these, too."""
  workdir_lib.claim(workdir, config, "data")
  data_stage.prepare(config, workdir)
  context = run_context.make_run_context(config, workdir, judged=False)
  store = initialization.open_checkpoints(context, workdir / "checkpoints" / "sft")
  params = sharpened(initialization.fresh_params(context))
  ended = {"recent": [], "validation": [1.0, 0]}
  store.save(config.sft.steps, {"params": params}, ended)
  store.close()
  return context, params


def build(
  data: Path,
  *,
  mesh: tuple[int, int, int, int] = (1, 1, 1, 1),
  recipe: str = RECIPE,
  **overrides: Any,
) -> run_context.RunContext:
  """Makes the context of a run on data of `make_data`, on as many devices as the mesh needs."""
  context = run_context.make_run_context(
    config(recipe, data__directory=str(data), **overrides), data
  )
  devices = jax.devices()[: math.prod(mesh)]
  return dataclasses.replace(context, mesh=mesh_lib.make_mesh(mesh, devices))


@dataclasses.dataclass(frozen=True)
class Difference:
  """The largest difference of two sets of arrays, relative to the largest entry of each array."""

  name: str
  value: float


def largest_difference(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> Difference:
  """Compares arrays by name; the difference from an array of zeros is absolute."""
  assert actual.keys() == expected.keys()
  found = [
    Difference(
      name,
      float(np.abs(np.asarray(actual[name]) - np.asarray(expected[name])).max())
      / (float(np.abs(np.asarray(expected[name])).max()) or 1.0),
    )
    for name in expected
  ]
  return max(found, key=lambda difference: difference.value)


def use_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
  """Makes the loops use only the first `count` devices."""
  make = functools.partial(mesh_lib.make_mesh, devices=jax.devices()[:count])
  monkeypatch.setattr(mesh_lib, "make_mesh", make)


def merge(context: run_context.RunContext, params: Any) -> Any:
  """Makes the model with these parameters."""
  return nnx.merge(context.graphdef, params)


def ragged_items(context: run_context.RunContext, count: int) -> list[batching.BatchItem]:
  """Items of different lengths: with eight frames, four, two and none, in turn."""
  clips = [item.clip for item in next(context.builder.read("train", count)).items]
  items = []
  for index, clip in enumerate(clips):
    frames = (8, 4, 2, 0)[index % 4]
    shown = dataclasses.replace(
      clip,
      timestamps=clip.timestamps[:frames],
      frame_indices=clip.frame_indices[:frames],
    )
    items.append(context.builder.item(shown, view="whole" if frames else "blind"))
  return items


def sharpened(params: Any, factor: float = 3.0) -> Any:
  """Scales parameters so that token probabilities differ; fresh ones give nearly uniform ones."""
  return jax.tree.map(lambda x: x * factor if x.ndim > 1 else x, params)
