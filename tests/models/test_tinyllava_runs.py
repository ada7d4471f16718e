"""Several turns with TinyLLaVA-Video: each frame that a turn asks for is a video of one image."""

import ml_collections
import numpy as np
import pytest

from tests.models import test_toy_family as toy
from tests.train import nano
from vr_jax import main
from vr_jax.models.common import weight_mapping
from vr_jax.train import initialization, metrics, run_context

CHANGES = {
  **toy.TURNS,
  "model__architecture": ml_collections.ConfigDict(
    {
      "model_type": "tinyllava",
      "connector_type": "naiveresampler",
      "num_queries": 6,
      "num_resampler_layers": 1,
      "tokenizer_model_max_length": 1024,
      "text_config": {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
      },
      "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
      },
    }
  ),
  "model__min_pixels": 28 * 28,
  "model__max_pixels": 28 * 28,
  "model__frame_buckets": (8,),
  "model__patch_buckets": (4,),
  "model__freeze_vision": True,
  "model__train_connector": True,
  "sft__steps": 0,
  "mesh": (1, 1, 1, 1),
  "cpu_devices": 0,
}


def test_it_plays_episodes_of_several_turns_and_trains_the_connector_alone_of_its_tower(
  tmp_path, monkeypatch
):
  nano.use_devices(monkeypatch, 1)
  config = nano.config("configs/video_mtr.py", **CHANGES)
  workdir = tmp_path / "run"
  for stage in ("data", "rl"):
    main.run(config, workdir, stage)
  lines = metrics.read(workdir / "metrics.jsonl")
  steps = [line["values"] for line in lines if line["stage"] == "rl"]
  assert len(steps) == config.rl.steps and all(np.isfinite(step["loss"]) for step in steps)
  # The sampler, token by token and turn by turn, and the update compute the same network.
  for step in steps:
    assert step["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-3)
  context = run_context.make_run_context(config, workdir, judged=False)
  start = weight_mapping.flat(initialization.fresh_params(context))
  end = weight_mapping.flat(initialization.load_params(context, workdir / "checkpoints" / "rl"))
  moved = {name for name, one in start.items() if np.any(one.get_value() != end[name].get_value())}
  assert {name for name in moved if name.startswith("vision.")} >= {
    "vision.connector.latents",
    "vision.connector.layers.key_value",
  }
  assert not any(name.startswith("vision.") and ".connector." not in name for name in moved)
