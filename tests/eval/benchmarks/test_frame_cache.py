"""Videos of benchmarks are decoded once, at the rate that a question needs."""

from concurrent import futures

import numpy as np
from PIL import Image
import pytest

from tests.data import videos
from vr_jax.data import guarded_reader
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import frame_cache


@pytest.fixture
def cache(tmp_path):
  videos.write(tmp_path / "sets" / "clips" / "a.mp4", frames=40, size=64)  # 8 frames a second
  return frame_cache.FrameCache(
    videos=tmp_path / "sets",
    cache=tmp_path / "frames",
    quality=90,
    max_side=448,
    limits=guarded_reader.DecodeLimits(processes=1),
  )


def test_a_video_is_decoded_once_for_each_rate(cache, monkeypatch):
  store = cache.open("clips/a.mp4", fps=2.0, frame_rate=None)
  np.testing.assert_allclose(store.timestamps("clips/a.mp4"), np.arange(10) / 2)
  every = cache.open("clips/a.mp4", fps=64.0, frame_rate=None)
  np.testing.assert_allclose(every.timestamps("clips/a.mp4"), np.arange(40) / 8)
  monkeypatch.setattr(guarded_reader, "extract_all", None)
  again = cache.open("clips/a.mp4", fps=2.0, frame_rate=None)
  assert again is store  # for the next question about it
  np.testing.assert_array_equal(again.read("clips/a.mp4", [3]), store.read("clips/a.mp4", [3]))


def test_another_file_of_the_same_name_is_decoded_anew(cache, tmp_path):
  before = cache.open("clips/a.mp4", fps=2.0, frame_rate=None).timestamps("clips/a.mp4")
  videos.write(tmp_path / "sets" / "clips" / "a.mp4", frames=24, size=64)
  after = cache.open("clips/a.mp4", fps=2.0, frame_rate=None).timestamps("clips/a.mp4")
  assert (len(before), len(after)) == (10, 6)


def test_a_folder_of_pictures_is_a_video(cache, tmp_path):
  folder = tmp_path / "sets" / "tvqa" / "clip"
  folder.mkdir(parents=True)
  for number in range(1, 10):
    Image.new("RGB", (64, 48), (number * 20, 0, 0)).save(folder / f"{number:05d}.jpg")
  store = cache.open("tvqa/clip", fps=8.0, frame_rate=3.0)
  np.testing.assert_allclose(store.timestamps("tvqa/clip"), np.arange(9) / 3)
  reds = store.read("tvqa/clip", range(9))[:, 20, 20, 0].astype(int)
  np.testing.assert_allclose(reds, np.arange(1, 10) * 20, atol=3)


def test_a_missing_or_damaged_video_is_named(cache, tmp_path):
  with pytest.raises(InputError, match=r"b\.mp4: no such file"):
    cache.open("clips/b.mp4", fps=2.0, frame_rate=None)
  (tmp_path / "sets" / "clips" / "b.mp4").write_bytes(b"nothing")
  with pytest.raises(InputError, match=r"b\.mp4"):
    cache.open("clips/b.mp4", fps=2.0, frame_rate=None)


@pytest.mark.parametrize(
  ("frames", "seconds", "fps"), [(16, 600.0, 2.0), (16, 8.0, 8.0), (16, 10.0, 8.0), (32, 0.5, 64.0)]
)
def test_short_clips_are_decoded_at_a_higher_rate(frames, seconds, fps):
  assert frame_cache.needed_fps(frames, seconds) == fps


def test_what_a_kill_has_cut_is_decoded_anew_and_two_writers_get_in_nobodys_way(cache, tmp_path):
  store = cache.open("clips/a.mp4", fps=2.0, frame_rate=None)
  (directory,) = (tmp_path / "frames").glob("*/*")
  (directory / "videos.npz").unlink()
  with futures.ThreadPoolExecutor(4) as pool:
    opened = list(pool.map(lambda _: cache.open("clips/a.mp4", fps=2.0, frame_rate=None), range(4)))
  for each in opened:
    np.testing.assert_array_equal(each.timestamps("clips/a.mp4"), store.timestamps("clips/a.mp4"))
  assert len(list((tmp_path / "frames").glob("*/*"))) == 1


def test_a_picture_that_is_replaced_in_a_folder_is_read_anew(cache, tmp_path):
  folder = tmp_path / "sets" / "tvqa" / "clip"
  folder.mkdir(parents=True)
  for number in range(1, 4):
    Image.new("RGB", (64, 48), (200, 0, 0)).save(folder / f"{number:05d}.jpg")
  cache.open("tvqa/clip", fps=8.0, frame_rate=3.0)
  Image.new("RGB", (64, 48), (0, 0, 200)).save(folder / "00002.jpg", quality=80)
  frames = cache.open("tvqa/clip", fps=8.0, frame_rate=3.0).read("tvqa/clip", range(3))
  assert frames[1, 20, 20, 2] > 150 > 50 > frames[0, 20, 20, 2]


def test_frames_that_cannot_be_kept_are_no_fault_of_the_video(cache, tmp_path):
  (tmp_path / "frames").write_bytes(b"a file, where a directory is needed")
  with pytest.raises(OSError):
    cache.open("clips/a.mp4", fps=2.0, frame_rate=None)
