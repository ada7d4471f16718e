"""Networks of released widths with few layers: from a directory of theirs to an export, and back.

    PYTHONPATH=.:tests python -m tests.train.real_width --family=tinyllava --workdir=width

The reference writes random weights under released names, beside a tokenizer of the released size.
Adapters are trained on three simulated clips: two updates of the warm start, one step of RL. What
is exported, the reference reads, and its greedy reply to a clip has to be ours, token for token. It
needs torch, transformers and some GB of memory, so it is a command and no test; it prints one line
of JSON, and fails where replies differ.

With `--whole` the network has all its layers, adapters train in the same way, and what is printed
is the memory that this takes. Nothing is exported or compared then.
"""

import argparse
from collections.abc import Mapping
import dataclasses
import json
import multiprocessing
import pathlib
import resource
import time
from typing import Any

from golden import qwen2_5_vl as models_2_5
from golden import qwen2_5_vl_generate as generate_2_5
from golden import qwen3_vl_generate, tinyllava_generate
import jax
import ml_collections
import numpy as np
import tokenizers

from tests.train import exported_cases
from vr_jax import base_config, main, recipe_config
from vr_jax.models import registry
from vr_jax.models.common import prompts
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import initialization, run_context

TEXTS = ("What colour will the star be at 8s?", "At 2s, the circle turns green.", "red blue")
NEW_TOKENS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Width:
  """A release with few layers.

  tokens: of its tokenizer.
  fewer: fields of its config.json with other values; of nested ones by a dotted name.
  """

  size: str
  release: str
  tokens: int
  fewer: Mapping[str, Any]


FAMILIES = {
  "qwen2_5_vl": Width(
    size="3b",
    release="Qwen2.5-VL-3B-Instruct",
    tokens=151_665,
    fewer={
      "num_hidden_layers": 2,
      "vision_config.depth": 2,
      "vision_config.fullatt_block_indexes": [1],
    },
  ),
  "qwen3_vl": Width(
    size="qwen3vl_2b",
    release="Qwen3-VL-2B-Instruct",
    tokens=151_669,
    fewer={
      "text_config.num_hidden_layers": 3,
      "vision_config.depth": 3,
      "vision_config.deepstack_visual_indexes": [0, 1, 2],
    },
  ),
  "tinyllava": Width(
    size="phi2",
    release="TinyLLaVA-Video-Phi2-Naive-16-512",
    tokens=50_295,
    fewer={"text_config.num_hidden_layers": 2, "vision_config.num_hidden_layers": 3},
  ),
}


def write_source(width: Width, model_type: str, directory: pathlib.Path) -> None:
  """Writes config.json, weights and tokenizer as the release has them."""
  family = registry.family(model_type)
  words = family.train_tokenizer(TEXTS, 2000)
  missing = width.tokens - words.get_vocab_size()
  words.add_tokens([tokenizers.AddedToken(f"<unused{i}>") for i in range(missing)])
  fields = json.loads(json.dumps(family.presets[width.release]))
  for name, value in width.fewer.items():
    *half, last = name.split(".")
    (fields[half[0]] if half else fields)[last] = value
  special = family.tokenizer_fields(words)
  del special["vocab_size"]  # a release has more rows than tokens
  fields |= special
  directory.mkdir(parents=True)
  _save_weights(model_type, fields, directory)
  (directory / "config.json").write_text(json.dumps(fields))
  words.save(str(directory / "tokenizer.json"))


def _save_weights(model_type: str, fields: dict[str, Any], directory: pathlib.Path) -> None:
  """Lets the reference draw weights, and writes them in bfloat16."""
  import torch
  import transformers

  torch.manual_seed(0)
  if model_type == "tinyllava":
    from golden import tinyllava_reference
    from safetensors import torch as safetensors

    model = tinyllava_reference.Model(fields).bfloat16()
    torch.nn.init.normal_(model.connector._connector.latents)
    safetensors.save_file(model.state_dict(), directory / "model.safetensors")
    return
  tokens = {"bos_token_id": None, "eos_token_id": None}
  config = transformers.AutoConfig.for_model(**fields, **tokens)
  model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
  model.save_pretrained(directory)


def make_config(width: Width, source: pathlib.Path) -> ml_collections.ConfigDict:
  """The recipe at the release's size, on simulated clips and one device."""
  config = recipe_config.load(f"configs/moss_chatv.py:{width.size}").unlock()
  base_config.tiny_simulation(config, videos=4, questions_per_video=1)
  config.data.videos = config.data.annotations = ""
  config.data.test_fraction = 0.25
  config.model.pretrained = str(source)
  config.model.dtype = config.export.dtype = "float32"
  config.model.lora.rank = 4
  config.model.resize_backend = "pillow"
  config.sft.steps, config.sft.batch_size, config.sft.learning_rate = 2, 1, 1e-3
  config.sft.warmup_steps, config.sft.max_reply_tokens = 0, 512
  config.rl.steps, config.rl.batch_size, config.rl.num_generations = 1, 1, 2
  config.rl.max_new_tokens = NEW_TOKENS
  config.mesh, config.cpu_devices = (1, 1, 1, 1), 1
  return config


def reference_reply(
  model_type: str, path: pathlib.Path, encoded: prompts.EncodedPrompt
) -> tuple[list[int], float]:
  """The reference's greedy reply with an exported directory, and its least margin."""
  if model_type.startswith("qwen"):  # golden files know the ids of their own tokenizer
    config = registry.read_config(path / "config.json")
    models_2_5.SPECIAL.update({name: getattr(config, name) for name in SPECIAL})
  if model_type != "qwen2_5_vl":
    golden = {"qwen3_vl": qwen3_vl_generate, "tinyllava": tinyllava_generate}[model_type]
    model = golden.reference_model(path)
    return golden.reference_reply(model, golden.reference_inputs(encoded, model))
  import torch

  (grid,) = encoded.grids
  patches = np.stack([frame.vision.patches for frame in encoded.frames if frame.vision is not None])
  part = ("video", grid.frames, grid.height, grid.width)
  inputs = models_2_5.media_inputs(encoded.tokens, [(part, patches)])
  inputs["second_per_grid_ts"] = torch.tensor([grid.seconds])
  return generate_2_5.reference_reply(generate_2_5.reference_model(path), inputs)


SPECIAL = ("image_token_id", "video_token_id")


def train_whole(model_type: str, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains adapters of a network with all its layers; returns what is printed."""
  began, width = time.time(), dataclasses.replace(FAMILIES[model_type], fewer={})
  source = workdir / "source"
  if not source.exists():  # in a process of its own, whose memory does not count
    writer = multiprocessing.get_context("spawn").Process(
      target=write_source, args=(width, model_type, source)
    )
    writer.start()
    writer.join()
  config = make_config(width, source)
  config.rl.num_generations, config.rl.max_new_tokens = 4, 6
  peaks = {}
  for stage in ("data", "sft", "rl"):
    main.run(config, workdir / "run", stage)
    peaks[stage] = _peak_gb()
  return {
    "family": model_type,
    "release": width.release,
    "seconds": round(time.time() - began),
    "peak_gb": peaks,
  }


def _peak_gb() -> float:
  """The most memory that this process has held so far."""
  return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 1)


def run(model_type: str, workdir: pathlib.Path) -> dict[str, Any]:
  """Does all of it; returns what is printed."""
  began, width = time.time(), FAMILIES[model_type]
  source = workdir / "source"
  write_source(width, model_type, source)
  config = make_config(width, source)
  main.run(config, workdir / "run", "data")
  for stage in ("sft", "rl", "export"):
    main.run(config, workdir / "run", stage)
  context = run_context.make_run_context(config, workdir / "run", judged=False)
  context = dataclasses.replace(context, mesh=mesh_lib.make_mesh((1, 1, 1, 1), jax.devices()[:1]))
  params = initialization.load_params(context, workdir / "run" / "checkpoints" / "rl")
  made = exported_cases.Exported(context=context, params=params, path=workdir / "run" / "export")
  frames = np.random.default_rng(0).integers(0, 256, (6, 112, 112, 3), np.uint8)
  encoded = context.processor.encode(TEXTS[0], frames, np.arange(6.0))
  said = exported_cases.replies(made, [encoded])[0]
  theirs, margin = reference_reply(model_type, made.path, encoded)
  return {
    "family": model_type,
    "release": width.release,
    "same": said == theirs,
    "tokens": said,
    "margin": round(margin, 5),
    "seconds": round(time.time() - began),
    "peak_gb": _peak_gb(),
  }


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--family", choices=FAMILIES, required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--whole", action="store_true", help="all layers; print the memory alone")
  arguments = parser.parse_args()
  if arguments.whole:
    print(json.dumps(train_whole(arguments.family, arguments.workdir)))
    raise SystemExit(0)
  found = run(arguments.family, arguments.workdir)
  print(json.dumps(found))
  raise SystemExit(0 if found["same"] else 1)
