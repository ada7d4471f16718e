from concurrent import futures
import dataclasses
import io
import json

import numpy as np
from PIL import Image
import pytest

from tests.data import videos
from vr_jax.data import frame_index, frame_store, video_file
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


def _make_older(directory, store, **changes):
  """Writes the index of a store as format 1 had it; returns its path and that of the times."""
  index = frame_index.read(directory)
  videos_json = {
    name: dataclasses.asdict(entry) | {"shard": f"frames-{entry.shard:05d}.array_record"}
    for name in index
    if (entry := index.find(name))
  }
  content = {"format": 1, "fps": index.fps, "videos": videos_json} | changes
  (directory / "index.json").write_text(json.dumps(content))
  columns = {name: getattr(index, name) for name in ("timestamps", "ends", "checksums")}
  np.savez(directory / "times.npz", **columns)
  for name in ("videos.npz", "timestamps.npy", "ends.npy", "checksums.npy"):
    (directory / name).unlink()
  return directory / "index.json", directory / "times.npz"


def test_a_store_of_the_older_format_reads_as_before(store, tmp_path):
  expected = {name: store.read(name, range(10)) for name in NAMES}
  ends = store.ends("d.mp4")
  _make_older(tmp_path / "store", store)
  opened = frame_store.FrameStore(tmp_path / "store")
  assert (opened.videos, opened.fps) == (NAMES, 2.0)
  for name in NAMES:
    np.testing.assert_array_equal(opened.read(name, range(10)), expected[name])
  np.testing.assert_array_equal(opened.ends("d.mp4"), ends)


def test_in_the_oldest_stores_no_frame_stays_on_the_screen(store, tmp_path):
  timestamps = store.timestamps("d.mp4")
  _, times = _make_older(tmp_path / "store", store)
  with np.load(times) as arrays:
    oldest = {name: arrays[name] for name in ("timestamps", "checksums")}
  np.savez(times, **oldest)
  opened = frame_store.FrameStore(tmp_path / "store")
  np.testing.assert_array_equal(opened.ends("d.mp4"), timestamps)


@pytest.mark.parametrize("name", ["index.json", "times.npz"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\x00"])
def test_a_damaged_index_of_the_older_format_is_named(store, tmp_path, name, content):
  _make_older(tmp_path / "store", store)
  (tmp_path / "store" / name).write_bytes(content)
  with pytest.raises(InputError, match=f"{name}: is damaged"):
    frame_store.FrameStore(tmp_path / "store")


def test_thousands_of_videos_are_found_by_name_whatever_it_is(tmp_path):
  names = [f"{number:x}" for number in range(3000)] + ["b/ü.mp4", "b/\udcff.mp4", "z"]
  columns = [field.name for field in dataclasses.fields(frame_index.StoredVideo)]
  entries = {
    name: frame_index.StoredVideo(
      **dict.fromkeys(columns, 1) | {"first": number, "duration": number / 2}
    )
    for number, name in enumerate(names)
  }
  times = [np.arange(len(names)) / 2]
  frame_index.write(
    tmp_path, entries, fps=2.0, timestamps=times, ends=times, checksums=list(range(len(names)))
  )
  index = frame_index.read(tmp_path)
  assert list(index) == names
  assert all(index.find(name) == entry for name, entry in entries.items())
  assert not any(index.find(name) for name in ("", "a ", "zzz", "b/ü.mp", "b/ü.mp44"))


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
  path = tmp_path / "store" / "videos.npz"
  arrays = dict(np.load(path))
  arrays["videos"]["width"][0] += 2
  np.savez(path, **arrays)
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


@pytest.mark.parametrize("name", ["videos.npz", "timestamps.npy", "ends.npy", "checksums.npy"])
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
  path = tmp_path / "store" / f"{name}.npy"
  np.save(path, np.load(path)[1:])
  with pytest.raises(InputError, match=rf"{name}\.npy: is damaged: not for 36 frames"):
    frame_store.FrameStore(tmp_path / "store")


@pytest.mark.parametrize(
  ("changes", "complaint"),
  [
    ({"order": [0, 0, 2]}, "order"),
    ({"name_ends": [5, 4, 16]}, "names"),
    ({"name_ends": [5, 12, 99]}, "names"),
    ({"names": [97, 97]}, "names"),
    ({"first": [0, 9, 22]}, "do not follow"),
    ({"count": [-1, 12, 14]}, "below its least"),
    ({"duration": [5.0, float("nan"), 7.0]}, "duration"),
    ({"height": [0, 80, 96]}, "below its least"),
  ],
)
def test_an_index_that_contradicts_itself_is_refused(store, tmp_path, changes, complaint):
  path = tmp_path / "store" / "videos.npz"
  arrays = dict(np.load(path))
  for name, value in changes.items():
    if name in arrays:
      arrays[name] = np.array(value, arrays[name].dtype)
    else:
      arrays["videos"][name] = value
  np.savez(path, **arrays)
  with pytest.raises(InputError, match=rf"videos\.npz: is damaged: .*{complaint}"):
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
  path = tmp_path / "store" / "videos.npz"
  arrays = dict(np.load(path))
  arrays["format"] += 97
  np.savez(path, **arrays)
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
