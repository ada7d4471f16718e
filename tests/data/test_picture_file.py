"""Pictures: clips of one frame in the same frame store as videos."""

import io
import json

import numpy as np
from PIL import EpsImagePlugin, Image
import pytest

from tests.data import annotation_files, ffmpeg, videos
from vr_jax import records
from vr_jax.data import batches, ingest, picture_file, sampling
from vr_jax.errors import InputError

RED = (220, 20, 20)


def write(path, *, size=(60, 40), mode="RGB", colour=RED, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size, colour).save(path, **options)
  return path


def pixels(cut):
  return np.asarray(Image.open(io.BytesIO(cut.jpegs[0])))


@pytest.mark.parametrize("suffix", picture_file.SUFFIXES)
def test_a_picture_is_one_frame_at_once(tmp_path, suffix):
  cut = picture_file.extract(write(tmp_path / f"a{suffix}"), quality=95, max_side=448)
  assert (cut.height, cut.width, cut.duration, cut.timestamps.tolist()) == (40, 60, 0.0, [0.0])
  np.testing.assert_allclose(pixels(cut)[20, 30], RED, atol=6)


def test_a_picture_is_scaled_down_turned_upright_and_laid_on_white(tmp_path):
  large = picture_file.extract(write(tmp_path / "a.png", size=(300, 3)), quality=90, max_side=100)
  assert (large.height, large.width) == (1, 100)
  exif = Image.Exif()
  exif[0x0112] = 6  # Orientation: a quarter turn
  turned = picture_file.extract(write(tmp_path / "b.jpg", exif=exif), quality=90, max_side=448)
  assert (turned.height, turned.width) == (60, 40)
  path = write(tmp_path / "c.png", mode="RGBA", colour=(0, 0, 0, 0))
  clear = picture_file.extract(path, quality=90, max_side=448)
  np.testing.assert_allclose(pixels(clear)[20, 30], (255, 255, 255), atol=2)


def damaged(path):
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
  Image.fromarray(noise).save(path)
  return videos.truncate(path, 0.5)


BROKEN = {
  "truncated.jpg": damaged,
  "truncated.png": damaged,
  "truncated.webp": damaged,
  "text.png": lambda path: path.write_text("no picture"),
  "empty.jpg": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_named(tmp_path, name):
  BROKEN[name](tmp_path / name)
  with pytest.raises(InputError, match=rf"{name}: cannot be read as a picture") as error:
    picture_file.extract(tmp_path / name, quality=90, max_side=448)
  assert "\n" not in str(error.value)


def test_a_file_that_mixes_pictures_and_videos_is_ingested_and_broken_ones_are_counted(tmp_path):
  videos.write(tmp_path / "videos" / "a.mp4")
  write(tmp_path / "videos" / "Chart" / "b.png")
  damaged(tmp_path / "videos" / "c.jpg")
  values = [
    annotation_files.video_r1_record(problem_id=1),
    annotation_files.video_r1_record(problem_id=2, data_type="image", path="./Chart/b.png"),
    annotation_files.video_r1_record(problem_id=3, data_type="image", path="./c.jpg"),
  ]
  notes = tmp_path / "released.json"
  notes.write_text(json.dumps([annotation_files.all_texts(value) for value in values]))
  rule = sampling.UniformRule(frames=4)
  settings = {"fps": 1.0, "rule": rule, "test_fraction": 0.0, "validation_fraction": 0.0}
  with pytest.raises(InputError, match=r"c\.jpg: cannot be read as a picture"):
    config = ingest.IngestConfig(**settings)
    ingest.ingest(tmp_path / "videos", notes, tmp_path / "output", config)
  config = ingest.IngestConfig(**settings, on_bad="skip")
  report = ingest.ingest(tmp_path / "videos", notes, tmp_path / "output", config)
  assert (report.videos, report.skipped_videos, report.skipped_records) == (2, 1, 1)

  source, store = ingest.open_split(tmp_path / "output", "train")
  clips = {example.id: batches.select_clip(example, store, rule) for example in source}
  assert clips["1"].shape == (4, 64, 64)
  still = clips["2"]
  assert still.example.shown == records.Span(start=0.0, end=0.0)
  assert (still.shape, still.timestamps.tolist()) == ((1, 40, 60), [0.0])
  np.testing.assert_allclose(still.frames[0, 20, 30], RED, atol=8)


def test_sixteen_bits_of_grey_keep_their_brightness(tmp_path):
  path = tmp_path / "grey16.png"
  ramp = np.tile(np.linspace(0, 255, 64).round(), (48, 1))
  Image.fromarray((ramp * 257).astype(np.uint16)).save(path)
  shown = ffmpeg.first_picture(path, 64, 48)
  (jpeg,) = picture_file.extract(path, quality=95, max_side=448).jpegs
  found = np.asarray(Image.open(io.BytesIO(jpeg))).astype(float)
  np.testing.assert_allclose(found, shown, atol=3)
  np.testing.assert_allclose(found[..., 0], ramp, atol=3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_no_program_is_started_for_a_picture_that_is_postscript(tmp_path, monkeypatch, name):
  """Pillow starts `gs` for EPS; one that leaves a mark stands for it."""
  programs, mark = tmp_path / "bin", tmp_path / "started"
  programs.mkdir()
  (programs / "gs").write_text(f"#!/bin/sh\ntouch {mark}\n")
  (programs / "gs").chmod(0o755)
  monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
  monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it is looked for once
  Image.new("RGB", (20, 10), RED).save(tmp_path / name, "EPS")
  with pytest.raises(InputError, match="cannot be read as a picture"):
    picture_file.extract(tmp_path / name, quality=90, max_side=448)
  assert not mark.exists()


@pytest.mark.parametrize("name", ["a.webp", "a.png", "really_a_gif.jpg"])
def test_a_picture_that_moves_is_no_still(tmp_path, name):
  frames = [Image.new("RGB", (32, 32), (60 * n, 0, 0)) for n in range(3)]
  format_name = "GIF" if "gif" in name else None
  path = tmp_path / name
  frames[0].save(path, format_name, save_all=True, append_images=frames[1:], duration=500)
  with pytest.raises(InputError, match=rf"{name}: moves \(3 frames\)"):
    picture_file.extract(path, quality=90, max_side=448)


def test_of_a_photo_that_comes_with_others_the_first_is_read(tmp_path):
  path = tmp_path / "phone.jpg"
  others = [Image.new("RGB", (60, 40), (0, 0, 0))]
  Image.new("RGB", (60, 40), RED).save(path, "MPO", save_all=True, append_images=others)
  cut = picture_file.extract(path, quality=95, max_side=448)
  np.testing.assert_allclose(pixels(cut)[20, 30], RED, atol=6)
