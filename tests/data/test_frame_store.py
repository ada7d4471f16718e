from concurrent import futures
import dataclasses
import io
import json

import numpy as np
from PIL import Image
import pytest

from tests.data import videos
from vr_jax.data import frame_store, video_file
from vr_jax.errors import InputError

CUT = {"fps": 2.0, "quality": 90, "max_side": 448}
NAMES = ("a.mp4", "b/c.mp4", "d.mp4")


@pytest.fixture
def store(tmp_path):
  for index, name in enumerate(NAMES):
    videos.write(tmp_path / "videos" / name, frames=40 + 8 * index, size=64 + 16 * index)
  (tmp_path / "store").mkdir()
  pairs = [(name, tmp_path / "videos" / name) for name in NAMES]
  # A shard has room for about two of the videos.
  return frame_store.write(tmp_path / "store", pairs, **CUT, shard_megabytes=0.015)


def decoded(path):
  jpegs = video_file.extract(path, **CUT).jpegs
  return np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in jpegs])


def test_any_frames_of_any_video_are_read_in_the_order_asked_for(store, tmp_path):
  assert store.videos == NAMES
  assert len(list((tmp_path / "store").glob("*.array_record"))) > 1
  for name in reversed(NAMES):
    frames = decoded(tmp_path / "videos" / name)
    for indices in ([0], [3, 0, 3, 9], range(len(frames)), np.array([len(frames) - 1, 1]), []):
      np.testing.assert_array_equal(store.read(name, indices), frames[np.array(indices, int)])


def test_times_and_durations_are_kept(store):
  assert store.fps == 2.0
  for index, name in enumerate(NAMES):
    assert store.duration(name) == 5.0 + index
    np.testing.assert_allclose(store.timestamps(name), np.arange(10 + 2 * index) / 2)
    np.testing.assert_allclose(store.ends(name), store.timestamps(name) + 1 / 8)


def test_in_a_store_of_an_older_version_no_frame_stays_on_the_screen(store, tmp_path):
  times = tmp_path / "store" / "times.npz"
  with np.load(times) as arrays:
    older = {name: arrays[name] for name in ("timestamps", "checksums")}
  np.savez(times, **older)
  opened = frame_store.FrameStore(tmp_path / "store")
  np.testing.assert_array_equal(opened.ends("d.mp4"), store.timestamps("d.mp4"))


def test_threads_may_read_one_store(store):
  expected = {name: store.read(name, range(10)) for name in NAMES}
  fresh = frame_store.FrameStore(store._directory)
  with futures.ThreadPoolExecutor(8) as pool:
    jobs = [(name, pool.submit(fresh.read, name, range(10))) for name in NAMES * 20]
    for name, job in jobs:
      np.testing.assert_array_equal(job.result(), expected[name])


def test_what_is_not_in_the_store_is_an_error(store):
  with pytest.raises(InputError, match=r"no video 'x\.mp4'"):
    store.read("x.mp4", [0])
  for index in (-1, 10):
    with pytest.raises(IndexError):
      store.read("a.mp4", [0, index])


def test_a_flipped_byte_is_an_error_that_names_shard_and_record_and_spares_the_others(
  store, tmp_path
):
  shard = tmp_path / "store" / "frames-00000.array_record"
  data = bytearray(shard.read_bytes())
  jpeg = video_file.extract(tmp_path / "videos" / "a.mp4", **CUT).jpegs[4]
  data[data.index(jpeg) + len(jpeg) // 2] ^= 1
  shard.write_bytes(data)
  damaged = frame_store.FrameStore(tmp_path / "store")
  with pytest.raises(InputError, match=r"frames-00000\.array_record: record 4 is damaged"):
    damaged.read("a.mp4", range(10))
  assert damaged.read("a.mp4", [3, 5]).shape == (2, 64, 64, 3)
  assert damaged.read("b/c.mp4", [0]).shape == (1, 80, 80, 3)


def test_a_record_that_is_whole_but_not_the_one_written_is_an_error(store, tmp_path):
  """For example a shard copied from another ingestion: ArrayRecord's own checksums agree."""
  (tmp_path / "other").mkdir()
  videos.write(tmp_path / "other.mp4", frames=40, times=[index / 8 for index in range(1, 41)])
  name = tmp_path / "videos" / "d.mp4"
  pairs = [("a.mp4", name), ("b/c.mp4", name), ("d.mp4", name)]
  frame_store.write(tmp_path / "other", pairs, **CUT, shard_megabytes=0.015)
  shard = "frames-00000.array_record"
  (tmp_path / "store" / shard).write_bytes((tmp_path / "other" / shard).read_bytes())
  with pytest.raises(
    InputError, match=r"frames-00000\.array_record: record 1 is damaged: its checksum"
  ):
    frame_store.FrameStore(tmp_path / "store").read("a.mp4", [1])


def test_a_frame_of_another_size_than_the_index_says_is_an_error(store, tmp_path):
  path = tmp_path / "store" / "index.json"
  index = json.loads(path.read_text())
  index["videos"]["a.mp4"]["width"] += 2
  path.write_text(json.dumps(index))
  with pytest.raises(InputError, match=r"record 2 has size \(64, 64\), unlike the index"):
    frame_store.FrameStore(tmp_path / "store").read("a.mp4", [2])


@pytest.mark.parametrize("content", [b"", b"no shard" * 20_000, "half"])
def test_a_shard_that_is_cut_off_is_named(store, tmp_path, content):
  shard = tmp_path / "store" / "frames-00000.array_record"
  data = shard.read_bytes()
  shard.write_bytes(data[: len(data) // 2] if content == "half" else content)
  with pytest.raises(InputError, match=r"frames-00000\.array_record: record 2 is damaged") as error:
    frame_store.FrameStore(tmp_path / "store").read("a.mp4", [2])
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["index.json", "times.npz"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\x00", "half"])
def test_a_damaged_index_is_named(store, tmp_path, name, content):
  path = tmp_path / "store" / name
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2] if content == "half" else content)
  with pytest.raises(InputError, match=f"{name}: is damaged") as error:
    frame_store.FrameStore(tmp_path / "store")
  assert "\n" not in str(error.value)


def test_a_missing_shard_is_named_before_it_is_read(store, tmp_path):
  (tmp_path / "store" / "frames-00001.array_record").unlink()
  with pytest.raises(InputError, match=r"frames-00001\.array_record: is missing"):
    frame_store.FrameStore(tmp_path / "store")


@pytest.mark.parametrize("name", ["timestamps", "ends", "checksums"])
def test_times_that_are_not_those_of_all_frames_are_refused(store, tmp_path, name):
  path = tmp_path / "store" / "times.npz"
  with np.load(path) as arrays:
    changed = dict(arrays) | {name: arrays[name][1:]}
  np.savez(path, **changed)
  with pytest.raises(InputError, match=r"times\.npz: is damaged: not for 36 frames"):
    frame_store.FrameStore(tmp_path / "store")


def test_neither_two_videos_of_a_name_nor_frames_without_times_are_stored(tmp_path):
  videos.write(tmp_path / "a.mp4", frames=8, size=64)
  cut = video_file.extract(tmp_path / "a.mp4", **CUT)
  writer = frame_store.FrameStoreWriter(tmp_path, fps=2.0, shard_megabytes=1.0)
  with pytest.raises(ValueError, match="numbers of frames and times"):
    writer.add("a.mp4", dataclasses.replace(cut, jpegs=cut.jpegs[1:]))
  writer.add("a.mp4", cut)
  with pytest.raises(ValueError, match=r"a\.mp4: was added before"):
    writer.add("a.mp4", cut)
  writer.close()
  assert frame_store.FrameStore(tmp_path).videos == ("a.mp4",)


def test_a_store_of_another_format_is_refused(store, tmp_path):
  path = tmp_path / "store" / "index.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
  with pytest.raises(InputError, match="format 99"):
    frame_store.FrameStore(tmp_path / "store")


def test_a_directory_without_a_store_is_named(tmp_path):
  with pytest.raises(InputError, match="holds no frame store"):
    frame_store.FrameStore(tmp_path)


def test_a_bad_video_stops_the_writing(tmp_path):
  (tmp_path / "bad.mp4").write_bytes(b"")
  (tmp_path / "store").mkdir()
  with pytest.raises(InputError, match=r"bad\.mp4"):
    frame_store.write(
      tmp_path / "store", [("bad.mp4", tmp_path / "bad.mp4")], **CUT, shard_megabytes=1.0
    )
