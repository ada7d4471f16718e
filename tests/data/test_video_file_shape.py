"""Pixels that are not square, and pictures that change their shape: what FFmpeg's player shows."""

import io

import numpy as np
from PIL import Image
import pytest

from tests.data import ffmpeg
from vr_jax import records
from vr_jax.data import frame_store, sampling, video_clip, video_file

CUT = {"fps": 1.0, "quality": 95, "max_side": 448}
SQUARE = "scale=iw*sar:ih"


def write(path, size, aspect, *options, seconds=1):
  corners = "drawbox=0:0:iw/4:ih/3:red:fill,drawbox=iw*3/4:0:iw/4:ih/3:lime:fill"
  source = f"color=c=gray:size={size}:rate=8:duration={seconds},{corners},setsar={aspect}"
  plain = ("-c:v", "libx264", "-qp", "4", "-g", "8", "-bf", "0", "-pix_fmt", "yuv420p")
  ffmpeg.run("-f", "lavfi", "-i", source, *plain, *options, path)
  return path


def pixels(jpeg):
  return np.asarray(Image.open(io.BytesIO(jpeg))).astype(float)


def assert_same_picture(jpeg, expected, tolerance=4):
  found = pixels(jpeg)
  assert found.shape == expected.shape
  assert np.abs(found - expected).mean() < tolerance


@pytest.mark.parametrize(
  ("size", "aspect", "shown", "options"),
  [
    ("176x144", "12/11", (192, 144), ()),
    ("144x96", "8/9", (128, 96), ()),
    ("176x144", "0", (176, 144), ()),  # unknown
    ("176x144", "1", (176, 144), ()),
    ("176x144", "12/11", (288, 144), ("-aspect", "2")),  # the container says something else
  ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_picture_has_the_shape_in_which_it_is_shown(
  tmp_path, size, aspect, shown, options, suffix
):
  path = write(tmp_path / f"a{suffix}", size, aspect, *options)
  result = video_file.extract(path, **CUT)
  assert (result.width, result.height) == shown
  assert_same_picture(result.jpegs[0], ffmpeg.first_picture(path, *shown, SQUARE))


def test_the_longer_side_as_shown_is_scaled_to_the_limit_in_every_path(tmp_path):
  path = write(tmp_path / "wide.mp4", "720x576", "16/11")  # 1047 x 576
  store_directory = tmp_path / "store"
  store_directory.mkdir()
  store = frame_store.write(store_directory, [("wide.mp4", path)], **CUT, shard_megabytes=1)
  assert store.size("wide.mp4") == (246, 448)
  (stored,) = store.jpegs("wide.mp4", [0])
  expected = ffmpeg.first_picture(path, 448, 246, f"{SQUARE},scale=448:246:flags=area")
  assert_same_picture(stored, expected)
  cut = video_file.extract(path, **CUT)
  span = records.Span(start=0.0, end=cut.duration)
  asked = video_clip.take(cut, span, sampling.PoolRule(frames=1), where=str(path))
  assert asked.jpegs == (stored,)


def test_a_turned_picture_is_stretched_in_the_width_that_it_was_recorded_in(tmp_path):
  path = write(tmp_path / "a.mp4", "176x144", "12/11")
  ffmpeg.write_matrix(path, 0, 1, -1, 0)
  result = video_file.extract(path, **CUT)
  assert (result.width, result.height) == (144, 192)
  assert_same_picture(result.jpegs[0], ffmpeg.first_picture(path, 144, 192, "scale=144:192"))


@pytest.mark.parametrize(
  ("size", "aspect", "inside"),
  [("176x144", "6/11", "96:144"), ("96x144", "1", "96:144"), ("192x96", "1", "192:96")],
)
def test_a_picture_that_changes_its_shape_gets_black_bars(tmp_path, size, aspect, inside):
  first = write(tmp_path / "1.ts", "176x144", "12/11")
  second = write(tmp_path / "2.ts", size, aspect, "-mpegts_flags", "initial_discontinuity")
  joined = tmp_path / "joined.ts"
  joined.write_bytes(first.read_bytes() + second.read_bytes())
  result = video_file.extract(joined, **CUT)
  assert len(result.jpegs) == 2
  assert_same_picture(result.jpegs[0], ffmpeg.first_picture(first, 192, 144, SQUARE))
  bars = f"scale={inside},pad=192:144:(ow-iw)/2:(oh-ih)/2"
  assert_same_picture(result.jpegs[1], ffmpeg.first_picture(second, 192, 144, bars))


def test_a_picture_that_changes_its_size_alone_fills_the_first_ones(tmp_path):
  first = write(tmp_path / "1.ts", "176x144", "12/11")
  second = write(tmp_path / "2.ts", "64x48", "1", "-mpegts_flags", "initial_discontinuity")
  joined = tmp_path / "joined.ts"
  joined.write_bytes(first.read_bytes() + second.read_bytes())
  result = video_file.extract(joined, **CUT)
  expected = ffmpeg.first_picture(second, 192, 144, "scale=192:144")
  assert_same_picture(result.jpegs[1], expected)
