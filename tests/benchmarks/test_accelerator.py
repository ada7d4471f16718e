"""The benchmark of an accelerator on a CPU, at toy sizes: the fields of its line, but no times."""

import json

import pytest

from benchmarks import accelerator
from tests.train import nano
from vr_jax.models.qwen2_5_vl import flops
from vr_jax.parallel import accelerators

TOY = {
  **{name: value for name, value in nano.OVERRIDES.items() if name.startswith("model.arch")},
  "rl.batch_size": 8,
  "rl.num_generations": 2,
  "rl.max_new_tokens": 3,
  "data.frames": 4,
  "model.max_pixels": 56 * 56,
  "model.prefix_buckets": (16,),
  "model.frame_buckets": (2,),
  "model.patch_buckets": (16,),
}


def arguments(**more):
  """The command line of the tiny recipe."""
  fields = TOY | {name.replace("__", "."): value for name, value in more.items()}
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  return [f"--config={nano.RECIPE}:tiny", *flags]


@pytest.fixture(autouse=True)
def measured_once(monkeypatch):
  monkeypatch.setattr(accelerator, "REPEATS", 1)


@pytest.mark.parametrize(
  "fields",
  [
    {"model__freeze_vision": True},
    {"model__freeze_vision": False, "rl__num_iterations": 2, "rl__kl_weight": 0.1},
  ],
)
def test_the_line_holds_times_and_what_they_depend_on(capsys, fields):
  assert accelerator.main(arguments(**fields)) == 0
  line = json.loads(capsys.readouterr().out)
  assert line["encoder"]["seconds"] > 0
  for part in ("train", "rollout"):
    assert line[part]["tokens_per_second"] > 0
  assert line["rollout"]["seconds"] > 0
  assert line["train"]["utilisation"] is None  # the peak of a CPU is unknown
  assert {"jax", "jaxlib"} <= line["versions"].keys()
  assert line["machine"]["device"] == "cpu"
  assert line["date"]


@pytest.mark.parametrize(("frozen", "seconds", "passes"), [(True, 6, 1), (False, 4, 3)])
def test_vision_is_counted_and_where_it_is_frozen_its_time_is_added(
  monkeypatch, frozen, seconds, passes
):
  speed = accelerators.Speed(flops=1e6, bandwidth=1e6)
  monkeypatch.setattr(accelerators, "SPEEDS", {"cpu": speed})
  work = accelerator.prepare(arguments(model__freeze_vision=frozen))
  taken = {"encoder": 2.0, "prefill": 1.0, "rollout": 3.0, "update": 4.0}
  line = accelerator.results(work, taken)
  sizes = {"frames": 2, "patches": 16, "prefix": 16, "group": 2, "time": 3}
  one = flops.forward(work.net.model, **sizes)
  count = 8 * (passes * one.vision + 3 * one.text)
  assert line["train"]["seconds"] == seconds
  assert line["train"]["tokens_per_second"] == 48 / seconds
  assert line["train"]["utilisation"] == pytest.approx(count / seconds / 8e6, abs=1e-4)
  bound = accelerator.bytes_of_a_token(work) / 8e6
  assert line["rollout"]["step_over_bandwidth_bound"] == pytest.approx(1 / bound, abs=1e-3)
  assert line["rollout"]["seconds"] == 5


def test_the_load_that_goals_are_stated_for_fits_every_size():
  load = accelerator.prepare(
    [f"--config={nano.RECIPE}:tiny", "--config.rl.batch_size=8"]
  ).step_shapes
  assert (load.frames, load.patches, load.prefix) == (8, 512, 1152)
  assert (load.group, load.time) == (8, 512)


def test_a_recipe_of_several_turns_is_refused_in_one_line(capsys):
  assert accelerator.main(["--config=configs/video_mtr.py:tiny"]) == 2
  message = capsys.readouterr().err
  assert message == (
    "accelerator: --config=configs/video_mtr.py:tiny: has several turns; choose a recipe with one\n"
  )
