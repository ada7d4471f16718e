"""Videos of benchmarks are decoded once, at the rate that a question needs."""

from concurrent import futures
import functools
import re

import numpy as np
from PIL import Image
import pytest

from tests.data import videos
from vr_jax import records
from vr_jax.data import guarded_reader, video_file
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import frame_cache, frame_choice

AS_DATA = {"quality": 90, "max_side": 448}


@pytest.fixture
def cache(tmp_path):
  videos.write(tmp_path / "sets" / "clips" / "a.mp4", frames=40, size=64)  # 8 frames a second
  return frame_cache.FrameCache(
    videos=tmp_path / "sets",
    cache=tmp_path / "frames",
    limits=guarded_reader.DecodeLimits(processes=1),
  )


def test_a_video_is_decoded_once_for_each_rate(cache, monkeypatch):
  store = cache.open("clips/a.mp4", fps=2.0, frame_rate=None, **AS_DATA)
  np.testing.assert_allclose(store.timestamps("clips/a.mp4"), np.arange(10) / 2)
  every = cache.open("clips/a.mp4", fps=64.0, frame_rate=None, **AS_DATA)
  np.testing.assert_allclose(every.timestamps("clips/a.mp4"), np.arange(40) / 8)
  monkeypatch.setattr(guarded_reader, "extract_all", None)
  again = cache.open("clips/a.mp4", fps=2.0, frame_rate=None, **AS_DATA)
  assert again is store  # for the next question about it
  np.testing.assert_array_equal(again.read("clips/a.mp4", [3]), store.read("clips/a.mp4", [3]))


def test_another_file_of_the_same_name_is_decoded_anew(cache, tmp_path):
  before = cache.open("clips/a.mp4", fps=2.0, frame_rate=None, **AS_DATA).timestamps("clips/a.mp4")
  videos.write(tmp_path / "sets" / "clips" / "a.mp4", frames=24, size=64)
  after = cache.open("clips/a.mp4", fps=2.0, frame_rate=None, **AS_DATA).timestamps("clips/a.mp4")
  assert (len(before), len(after)) == (10, 6)


def test_a_folder_of_pictures_is_a_video(cache, tmp_path):
  folder = tmp_path / "sets" / "tvqa" / "clip"
  folder.mkdir(parents=True)
  for number in range(1, 10):
    Image.new("RGB", (64, 48), (number * 20, 0, 0)).save(folder / f"{number:05d}.jpg")
  store = cache.open("tvqa/clip", fps=8.0, frame_rate=3.0, **AS_DATA)
  np.testing.assert_allclose(store.timestamps("tvqa/clip"), np.arange(9) / 3)
  reds = store.read("tvqa/clip", range(9))[:, 20, 20, 0].astype(int)
  np.testing.assert_allclose(reds, np.arange(1, 10) * 20, atol=3)


def test_a_missing_or_damaged_video_is_named(cache, tmp_path):
  with pytest.raises(InputError, match=r"b\.mp4: no such file"):
    cache.open("clips/b.mp4", fps=2.0, frame_rate=None, **AS_DATA)
  (tmp_path / "sets" / "clips" / "b.mp4").write_bytes(b"nothing")
  with pytest.raises(InputError, match=r"b\.mp4"):
    cache.open("clips/b.mp4", fps=2.0, frame_rate=None, **AS_DATA)


def test_what_a_kill_has_cut_is_decoded_anew_and_two_writers_get_in_nobodys_way(cache, tmp_path):
  store = cache.open("clips/a.mp4", fps=2.0, frame_rate=None, **AS_DATA)
  (directory,) = (tmp_path / "frames").glob("*/*")
  (directory / "videos.npz").unlink()
  with futures.ThreadPoolExecutor(4) as pool:
    opened = list(
      pool.map(lambda _: cache.open("clips/a.mp4", fps=2.0, frame_rate=None, **AS_DATA), range(4))
    )
  for each in opened:
    np.testing.assert_array_equal(each.timestamps("clips/a.mp4"), store.timestamps("clips/a.mp4"))
  assert len(list((tmp_path / "frames").glob("*/*"))) == 1


def test_a_picture_that_is_replaced_in_a_folder_is_read_anew(cache, tmp_path):
  folder = tmp_path / "sets" / "tvqa" / "clip"
  folder.mkdir(parents=True)
  for number in range(1, 4):
    Image.new("RGB", (64, 48), (200, 0, 0)).save(folder / f"{number:05d}.jpg")
  cache.open("tvqa/clip", fps=8.0, frame_rate=3.0, **AS_DATA)
  Image.new("RGB", (64, 48), (0, 0, 200)).save(folder / "00002.jpg", quality=80)
  frames = cache.open("tvqa/clip", fps=8.0, frame_rate=3.0, **AS_DATA).read("tvqa/clip", range(3))
  assert frames[1, 20, 20, 2] > 150 > 50 > frames[0, 20, 20, 2]


def test_frames_that_cannot_be_kept_are_no_fault_of_the_video(cache, tmp_path):
  (tmp_path / "frames").write_bytes(b"a file, where a directory is needed")
  with pytest.raises(OSError):
    cache.open("clips/a.mp4", fps=2.0, frame_rate=None, **AS_DATA)


def test_only_the_chosen_frames_of_a_clip_are_kept_at_their_own_size(cache, tmp_path, monkeypatch):
  videos.write(tmp_path / "sets" / "b.mp4", frames=240, fps=30, size=96)
  choice, clip = frame_choice.FrameChoice(count=8), records.Span(start=2.0, end=4.0)
  ask = {"clip": clip, "frame_rate": None}
  store = cache.open_chosen("b.mp4", choice, pixels=10_000, **ask)
  times = store.timestamps("b.mp4")
  np.testing.assert_allclose(times, np.linspace(60, 119.99, 8).astype(int) / 30, atol=1e-3)
  assert store.size("b.mp4") == (96, 96) and abs(store.duration("b.mp4") - 8) < 0.01
  greys = store.read("b.mp4", range(8))[:, 60, 60, 0].astype(int)
  np.testing.assert_allclose(greys, 10 + 3 * (np.round(times * 30) % 80), atol=3)
  smaller = cache.open_chosen("b.mp4", choice, pixels=24 * 24, **ask)
  assert smaller.size("b.mp4") == (48, 48)
  monkeypatch.setattr(guarded_reader, "extract_chosen", None)
  assert cache.open_chosen("b.mp4", choice, pixels=10_000, **ask) is store


def test_all_frames_that_were_asked_for_are_shown_of_any_clip_of_a_long_video(cache, tmp_path):
  """Reference: for each of the rule's times, the last frame that has come, within the clip."""
  dense = 600 + np.arange(40) / 4  # the others stay for ten seconds
  came = np.concatenate([np.arange(0, 600, 10), dense, np.arange(610, 1200, 10)])
  videos.write(tmp_path / "sets" / "b.mp4", frames=len(came), times=came.tolist(), size=32)
  choice = frame_choice.FrameChoice(count=16)
  for start, end in ((600.0, 610.0), (601.1, 606.0), (0.0, 1200.0)):
    clip = None if end == 1200.0 else records.Span(start=start, end=end)
    store = cache.open_chosen("b.mp4", choice, pixels=10_000, clip=clip, frame_rate=None)
    end = min(end, store.duration("b.mp4"))
    times = store.timestamps("b.mp4")
    last = min(round(end * 30), round(store.duration("b.mp4") * 30) - 1)
    wanted = np.linspace(round(start * 30), last, 16).astype(int) / 30 + 0.005
    indices = np.searchsorted(came, np.minimum(wanted, end - 0.005), side="right") - 1
    np.testing.assert_allclose(times, came[indices])
    assert len(set(times)) == 16
    greys = store.read("b.mp4", range(16))[:, 20, 20, 0].astype(int)
    np.testing.assert_allclose(greys, 10 + 3 * (indices % 80), atol=3)


def test_a_clip_of_fewer_frames_than_asked_for_shows_each_of_them_once(cache):
  choice, clip = frame_choice.FrameChoice(count=32), records.Span(start=1.05, end=2.0)
  store = cache.open_chosen("clips/a.mp4", choice, pixels=10_000, clip=clip, frame_rate=None)
  np.testing.assert_allclose(store.timestamps("clips/a.mp4"), np.arange(8, 16) / 8)


def test_the_frame_on_the_screen_is_shown_though_the_next_is_nearer(cache, tmp_path):
  videos.write(tmp_path / "sets" / "b.mp4", frames=4, fps=1, size=32)
  choice = frame_choice.FrameChoice(count=4, placement="inside")  # at 0.8, 1.6, 2.4 and 3.2 s
  store = cache.open_chosen("b.mp4", choice, pixels=10_000, clip=None, frame_rate=None)
  np.testing.assert_allclose(store.timestamps("b.mp4"), [0, 1, 2, 3])


def test_the_chosen_pictures_of_a_folder_are_shown(cache, tmp_path):
  folder = tmp_path / "sets" / "tvqa" / "clip"
  folder.mkdir(parents=True)
  for number in range(30):
    Image.new("RGB", (64, 48), (number * 8, 0, 0)).save(folder / f"{number:05d}.jpg")
  choice, clip = frame_choice.FrameChoice(count=4), records.Span(start=3.0, end=6.0)
  store = cache.open_chosen("tvqa/clip", choice, pixels=10_000, clip=clip, frame_rate=3.0)
  np.testing.assert_allclose(store.timestamps("tvqa/clip"), np.array([9, 12, 15, 17]) / 3)
  reds = store.read("tvqa/clip", range(4))[:, 20, 20, 0].astype(int)
  np.testing.assert_allclose(reds, np.array([9, 12, 15, 17]) * 8, atol=3)


def test_a_still_of_one_frame_is_shown_once(cache, tmp_path):
  videos.write(tmp_path / "sets" / "b.mp4", frames=1, fps=2, size=32)
  choice = frame_choice.FrameChoice(count=16)
  store = cache.open_chosen("b.mp4", choice, pixels=10_000, clip=None, frame_rate=None)
  assert store.timestamps("b.mp4").tolist() == [0.0]


def _joined_recordings(path):
  """Two recordings in one file, whose clocks both start at 0: packets tell half the length."""
  first, second = path.with_name("1.ts"), path.with_name("2.ts")
  videos.write(first, frames=40, size=64)
  again = {"mpegts_flags": "initial_discontinuity"}
  videos.write(second, frames=40, size=64, container_options=again)
  path.write_bytes(first.read_bytes() + second.read_bytes())


@pytest.mark.parametrize(
  ("name", "write", "decodes"),
  [
    ("a.mp4", lambda path: videos.write(path, frames=37, size=64), 1),
    ("a.mkv", lambda path: videos.write(path, frames=37, size=64, start=2.5), 1),
    ("a.ts", lambda path: videos.write(path, frames=37, size=64), 1),
    ("a.mp4", lambda path: videos.write(path, frames=4, times=[0.0, 0.1, 7.0, 7.5], size=64), 1),
    ("a.ts", _joined_recordings, 2),
  ],
)
@pytest.mark.parametrize("clip", [None, records.Span(start=1.5, end=4.0)])
def test_a_video_is_decoded_once_where_its_file_tells_its_length(
  tmp_path, monkeypatch, name, write, decodes, clip
):
  """Reference: decoded for its length first."""
  path = tmp_path / name
  write(path)
  requests = []
  request = guarded_reader._Worker.request

  def noted(worker, place, path, settings):
    requests.append("length_only" not in settings)
    request(worker, place, path, settings)

  monkeypatch.setattr(guarded_reader._Worker, "request", noted)
  cache = frame_cache.FrameCache(
    videos=tmp_path, cache=tmp_path / "frames", limits=guarded_reader.DecodeLimits(processes=1)
  )
  choice = frame_choice.FrameChoice(count=6)
  store = cache.open_chosen(name, choice, pixels=10_000, clip=clip, frame_rate=None)
  assert sum(requests) == (decodes if clip is None else 1)  # a clip's times are known
  how = {"fps": 1.0, "quality": 95, "max_side": 448}
  duration = video_file.extract(path, **how).duration
  shown = frame_choice.shown_part(clip, duration, where=name)
  times = frame_choice.choose_times(choice, duration, shown)
  expected = video_file.extract(path, at=times.tolist(), **how)
  assert store.duration(name) == duration
  np.testing.assert_array_equal(store.timestamps(name), expected.timestamps)
  assert store.jpegs(name, range(len(expected.jpegs))) == list(expected.jpegs)


def test_a_clip_behind_the_end_and_a_damaged_video_are_named_as_before(cache, tmp_path):
  choice = frame_choice.FrameChoice(count=4)
  open_chosen = functools.partial(cache.open_chosen, choice=choice, pixels=10_000, frame_rate=None)
  with pytest.raises(InputError, match=r"a\.mp4: ends at 5 s, its clip begins at 6 s"):
    open_chosen("clips/a.mp4", clip=records.Span(start=6.0, end=7.0))
  path = videos.write(tmp_path / "sets" / "b.mkv", frames=80, size=64)
  videos.truncate(path, 0.7)
  with pytest.raises(InputError) as alone:
    video_file.extract(path, fps=1.0, quality=95, max_side=448)
  with pytest.raises(InputError, match=re.escape(str(alone.value))):
    open_chosen("b.mkv", clip=None)
