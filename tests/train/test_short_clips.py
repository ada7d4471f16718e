"""Clips with fewer frames than the recipe asks for go through a whole run, beside whole ones."""

import contextlib
import io
import json

import numpy as np
import pytest

from tests.data import ffmpeg
from tests.train import nano
from vr_jax import main, records
from vr_jax.train import check_examples, run_context
from vr_jax.train import workdir as workdir_lib

COLOURS = ("red", "white")
# Seconds and frames a second of each video, what is shown of it, and the times that a clip of at
# most eight frames then has, at one stored frame a second.
VIDEOS = {
  "whole": (10, 8, [0, 8], [0, 1, 2, 3, 4, 5, 6, 7]),
  "five seconds": (5, 8, None, [0, 1, 3, 4]),
  "three seconds": (3, 8, None, [0, 2]),
  "one frame": (1 / 8, 8, None, [0]),
  "slides": (90, "1/30", [35, 65], [35, 60]),
  "one slide": (120, "1/30", [35, 55], [35]),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
  """Flags of a run on such videos, one of each kind in each colour."""
  root = tmp_path_factory.mktemp("short")
  (root / "videos").mkdir()
  records = []
  for kind, (seconds, rate, shown, _) in VIDEOS.items():
    for colour in COLOURS:
      name = f"{kind} {colour}.mp4"
      source = f"color=c={colour}:s=64x64:r={rate}:d={seconds}"
      ffmpeg.run("-f", "lavfi", "-i", source, "-c:v", "libx264", root / "videos" / name)
      question = {"question": "What colour?", "answer": colour, "problem_type": "free-form"}
      fields = {"id": name, "video": name, "steps": [{"text": f"It is {colour}."}], **question}
      records.append({**fields, "shown": shown})
  notes = root / "annotations.jsonl"
  notes.write_text("".join(json.dumps(record) + "\n" for record in records))
  fields = {
    "data.simulate.videos": 0,
    "data.videos": root / "videos",
    "data.annotations": notes,
    "data.test_fraction": 0.5,
    "sft.steps": 2,
    "rl.steps": 1,
    "eval.examples": 0,
    "eval.report_samples": 6,
    "eval.blind": False,
    "eval.shuffled_frames": False,
    "model.freeze_vision": True,
    "model.feature_cache_gib": 1.0,
  }
  return [f"--config.{field}={value}" for field, value in fields.items()]


@pytest.fixture(scope="module")
def run(given, tmp_path_factory):
  """The workdir and the output of a run of all stages."""
  workdir = tmp_path_factory.mktemp("run") / "short"
  recipe = str(nano.ROOT / nano.RECIPE)
  out = io.StringIO()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
    nano.use_devices(patch, 1)
    assert main.cli(["vr-jax", *nano.arguments(workdir, *given, recipe=recipe)]) == 0
  return workdir, out.getvalue()


def read_lines(path):
  """The objects of a file of JSON lines."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_stage_takes_short_clips_and_says_so_once(run):
  workdir, out = run
  (told,) = (line for line in out.splitlines() if "fewer stored frames" in line)
  assert told.startswith("data: 10 questions have fewer stored frames than the 8 of a clip; they")
  assert "show fewer, at least 1 (config.data.required_frames, " in told
  lines = read_lines(workdir / "metrics.jsonl")
  assert [line["stage"] for line in lines] == ["sft", "sft", "rl"]
  losses = [line["values"]["loss"] for line in lines]
  assert np.isfinite(losses).all() and losses[0] > 1


def test_the_report_shows_the_frames_on_the_screen(run):
  workdir, _ = run
  replies = read_lines(workdir / "eval" / "after_rl.jsonl")
  frames = {line["id"]: line["frames"] for line in read_lines(workdir / "eval" / "frames.jsonl")}
  assert len(replies) == len(frames) == 6
  for reply in replies:
    expected = VIDEOS[reply["video"].rpartition(" ")[0]][-1]
    np.testing.assert_allclose(reply["times"], expected, atol=1e-3)
    assert len(frames[reply["id"]]) == len(expected)


def test_prompts_have_the_positions_of_their_times_also_from_the_cache(run):
  workdir, _ = run
  config = workdir_lib.config_of(workdir)
  builder = run_context.make_run_context(config, workdir).builder
  rate = config.model.architecture.vision_config.tokens_per_second
  seen = set()
  for split in ("train", "test"):
    (batch,) = builder.read(split, 6, repeat=False)
    for item in batch.items:
      kind = item.example.video.rpartition(" ")[0]
      times, encoded = VIDEOS[kind][-1], item.encoded
      np.testing.assert_allclose(item.clip.timestamps, times, atol=1e-3)
      is_video = encoded.kind == records.Kind.VIDEO
      start = encoded.positions[is_video].min()
      steps = np.unique(encoded.positions[is_video, 0] - start)
      # Pairs of frames, at the mean distance of the clip's frames; time in whole steps.
      distance = 2 * (times[-1] - times[0]) / max(1, len(times) - 1)
      expected = np.floor(rate * distance * np.arange(max(1, len(times) // 2)) + 1e-3)
      np.testing.assert_array_equal(steps, expected)
      (text,) = check_examples.first_observation(
        builder.environment, item.example, len(times)
      ).texts
      cached = builder.processor.encode_with_features(
        text,
        item.clip.shape,
        item.clip.timestamps,
        features=None,
        question_first=config.model.question_first,
      )
      np.testing.assert_array_equal(cached.positions, encoded.positions)
      seen.add(kind)
  assert seen == set(VIDEOS)


def test_features_of_short_clips_are_cached(run):
  workdir, _ = run
  entries = list(workdir.glob("data/features/*/*.safetensors"))
  # The training split's clips, and the test split's.
  assert len(entries) == 12
