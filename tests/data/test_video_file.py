import io
from pathlib import Path
import struct

import av
import numpy as np
from PIL import Image
import pytest

from tests.data import videos
from vr_jax.data import video_file
from vr_jax.errors import InputError

FASTSTART = {"movflags": "faststart"}


def cut(path, *, fps=1.0, max_side=448):
  return video_file.extract(path, fps=fps, quality=90, max_side=max_side)


def pixels(jpeg):
  return np.asarray(Image.open(io.BytesIO(jpeg)))


def greys(result):
  """The index of each frame in its video file, read from the grey at its lower right."""
  return [round((pixels(jpeg)[-8:, -8:].mean() - 10) / 3) for jpeg in result.jpegs]


def test_frames_are_kept_at_every_tick_of_the_rate_with_their_times(tmp_path):
  result = cut(videos.write(tmp_path / "a.mp4"), fps=2.0)
  np.testing.assert_allclose(result.timestamps, np.arange(20) / 2)
  assert greys(result) == list(range(0, 80, 4))
  assert (result.height, result.width, result.duration) == (64, 64, 10.0)


def test_a_rate_that_does_not_divide_the_videos_takes_the_first_frame_after_each_tick(tmp_path):
  result = cut(videos.write(tmp_path / "a.mp4"), fps=3.0)
  assert greys(result)[:6] == [
    0,
    3,
    6,
    8,
    11,
    14,
  ]  # ticks at 0, 1/3, 2/3, 1, ... of 8 frames a second


def test_a_video_slower_than_the_rate_keeps_every_frame_once(tmp_path):
  result = cut(videos.write(tmp_path / "a.mp4", frames=10, fps=1), fps=4.0)
  assert greys(result) == list(range(10))


def test_uneven_frame_times_are_kept_as_they_are(tmp_path):
  times = [0.0, 0.3, 0.9, 1.1, 1.2, 3.5, 3.9, 4.0]
  result = cut(videos.write(tmp_path / "a.mkv", frames=8, times=times))
  # The frame at 1.2 s stays on the screen for longer than a tick.
  np.testing.assert_allclose(result.timestamps, [0.0, 1.1, 1.2, 3.5, 4.0], atol=2e-3)


def test_times_count_from_the_first_frame(tmp_path):
  result = cut(videos.write(tmp_path / "a.ts", start=3.0))
  np.testing.assert_allclose(result.timestamps, np.arange(10), atol=1e-3)
  assert result.duration == pytest.approx(10.0, abs=1e-3)


def test_large_frames_are_scaled_down_and_small_ones_left(tmp_path):
  path = videos.write(tmp_path / "a.mp4", frames=8)
  assert pixels(cut(path, max_side=32).jpegs[0]).shape == (32, 32, 3)
  assert pixels(cut(path, max_side=500).jpegs[0]).shape == (64, 64, 3)


def test_frames_stand_upright_where_the_file_says_that_it_was_filmed_on_its_side(tmp_path):
  wide = [videos.picture(index)[:32] for index in range(24)]
  path = videos.write(tmp_path / "a.mp4", frames=24, pictures=wide)
  upright = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
  quarter_turn_clockwise = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
  data = path.read_bytes()
  track = data.index(b"tkhd")
  assert data.count(upright, track, track + 100) == 1
  path.write_bytes(data[:track] + data[track:].replace(upright, quarter_turn_clockwise, 1))
  result = cut(path)
  assert (result.height, result.width) == (64, 32)
  assert [pixels(jpeg).shape for jpeg in result.jpegs] == [(64, 32, 3)] * 3
  image = pixels(result.jpegs[2]).astype(int)
  reddest = {
    corner: image[rows, columns, 0].mean() - image[rows, columns, 2].mean()
    for corner, (rows, columns) in {
      "upper left": (slice(0, 8), slice(0, 8)),
      "upper right": (slice(0, 8), slice(-8, None)),
      "lower left": (slice(-8, None), slice(0, 8)),
    }.items()
  }
  assert max(reddest, key=lambda corner: reddest[corner]) == "upper right"


def bad_files(directory):
  def jpeg(path):
    Image.fromarray(videos.picture(0)).save(path, "JPEG")

  # A file that ends between two packets has no damaged packet.
  cases = {
    "missing.mp4": lambda path: None,
    "zero.mp4": lambda path: path.write_bytes(b""),
    "text.mp4": lambda path: path.write_text("no video at all\n" * 99),
    "text.txt": lambda path: path.write_text("no video at all\n" * 99),
    "picture.mp4": jpeg,
    "picture.jpg": jpeg,
    "audio.mp4": videos.write_audio,
    "directory.mp4": lambda path: path.mkdir(),
    "damaged.mp4": lambda path: videos.damage(
      videos.write(path, container_options=FASTSTART), start=0.6, length=300
    ),
  }
  for percent in (1, 10, 50, 90, 95):
    cases |= {
      f"cut{percent}.mp4": lambda path, percent=percent: videos.truncate(
        videos.write(path), percent / 100
      ),
      f"faststart{percent}.mp4": lambda path, percent=percent: videos.truncate(
        videos.write(path, container_options=FASTSTART), percent / 100
      ),
    }
  for percent in (1, 10, 50, 90):
    cases[f"cut{percent}.mkv"] = lambda path, percent=percent: videos.truncate(
      videos.write(path), percent / 100
    )
  return cases


@pytest.mark.parametrize("name", bad_files(None))
def test_a_bad_file_is_an_error_of_one_line_that_names_it(tmp_path, name):
  bad_files(tmp_path)[name](tmp_path / name)
  with pytest.raises(InputError) as error:
    cut(tmp_path / name)
  assert str(error.value).startswith(f"{tmp_path / name}: ")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [40, 77, 78, 79])
def test_a_frame_that_cannot_be_decoded_is_never_passed_over(tmp_path, number):
  path = videos.write(tmp_path / "a.mp4")
  with av.open(str(path)) as container:
    packet = [each for each in container.demux(video=0) if each.size][number]
  data = bytearray(path.read_bytes())
  data[packet.pos : packet.pos + 4] = b"\x7f\xff\xff\xff"  # the size of a part of the frame
  path.write_bytes(data)
  with pytest.raises(InputError, match=r"a\.mp4: cannot be decoded"):
    cut(path)


def test_a_file_with_a_track_for_frames_but_none_in_it_is_bad(tmp_path, monkeypatch):
  path = videos.write(tmp_path / "a.mp4")
  monkeypatch.setattr(video_file, "_decode_stream", lambda *_: iter(()))
  with pytest.raises(InputError, match=r"a\.mp4: the video has no frames"):
    cut(path)


@pytest.mark.parametrize("name", ["12:30.mp4", "concat:b.mp4", "100%03d #1 é.mp4", "-i.mp4"])
def test_any_name_of_a_file_is_a_name_and_no_address(tmp_path, monkeypatch, name):
  videos.write(tmp_path / name, frames=8)
  monkeypatch.chdir(tmp_path)
  assert len(cut(Path(name)).jpegs) == 1


def test_a_missing_or_empty_directory_is_named(tmp_path):
  with pytest.raises(InputError, match="nowhere: there is no such directory"):
    video_file.find(tmp_path / "nowhere")
  (tmp_path / "empty" / "deeper").mkdir(parents=True)
  with pytest.raises(InputError, match="empty: the directory holds no videos"):
    video_file.find(tmp_path / "empty")


def test_videos_are_found_in_sub_directories(tmp_path):
  for name in ("b.mp4", "a/c.mp4"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  assert video_file.find(tmp_path) == ("a/c.mp4", "b.mp4")


def test_videos_are_found_in_linked_directories_and_a_loop_ends(tmp_path):
  elsewhere, videos_directory = tmp_path / "elsewhere", tmp_path / "videos"
  (elsewhere / "deep").mkdir(parents=True)
  (elsewhere / "deep" / "a.mp4").touch()
  videos_directory.mkdir()
  for name in ("one", "two"):
    (videos_directory / name).symlink_to(elsewhere, target_is_directory=True)
  (elsewhere / "deep" / "up").symlink_to(elsewhere, target_is_directory=True)
  (videos_directory / "b.mp4").symlink_to(elsewhere / "deep" / "a.mp4")
  assert video_file.find(videos_directory) == ("b.mp4", "one/deep/a.mp4", "two/deep/a.mp4")
