"""Files that crash or hang the decoder, or want too much: named, and the next file is read.

The workers are real processes. A named pipe hangs one: opening and reading it wait for another
process.
"""

import functools
import json
import os
from pathlib import Path
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
from PIL import Image
import pytest

from tests.data import annotation_files, ffmpeg, videos
from vr_jax.data import decode_worker, guarded_reader, ingest, picture_file, video_file
from vr_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"quality": 90, "max_side": 448}


def read(*paths, **limits):
  limits = guarded_reader.DecodeLimits(**{"processes": 1} | limits)
  return list(guarded_reader.extract_all(paths, fps=1.0, **SIZE, limits=limits))


def workers(parent: int) -> list[int]:
  """Ids of the living readers that a process has started, or that its end left behind.

  A worker of these tests has other children, too: what other files' tests have started.
  """
  found = []
  for path in Path("/proc").glob("[0-9]*/stat"):
    try:
      state, parent_of_it = path.read_text().rpartition(")")[2].split()[:2]
      command = path.with_name("cmdline").read_bytes()
    except OSError:  # it has just ended
      continue
    if int(parent_of_it) == parent and state != "Z" and decode_worker.__name__.encode() in command:
      found.append(int(path.parent.name))
  return found


def wait_for_reader(pipe: Path) -> int:
  """Waits until a process opens the pipe to read; it then reads until the descriptor is closed."""
  deadline = time.monotonic() + 60
  while time.monotonic() < deadline:
    try:
      return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # no reader yet
      time.sleep(0.01)
  raise AssertionError("nobody reads the pipe")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
  return videos.write(tmp_path_factory.mktemp("good") / "good.mp4", frames=24)


@pytest.fixture
def hanging(tmp_path) -> Path:
  os.mkfifo(tmp_path / "hanging.mp4")
  return tmp_path / "hanging.mp4"


def assert_named(error, path: Path, *words: str):
  assert isinstance(error, InputError)
  assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1
  for word in words:
    assert word in str(error)


def test_files_come_in_order_and_as_they_are_read_without_a_worker(good, tmp_path):
  picture = tmp_path / "picture.png"
  Image.fromarray(videos.picture(3)).save(picture)
  paths = [good, picture, tmp_path / "missing.mp4"] * 6  # enough for two processes
  results = read(*paths, processes=2)
  expected = video_file.extract(good, fps=1.0, **SIZE), picture_file.extract(picture, **SIZE)
  for place, result in enumerate(results):
    if place % 3 == 2:
      assert_named(result, paths[2], "cannot be decoded (No such file")
      continue
    same = expected[place % 3]
    assert (result.jpegs, result.duration) == (same.jpegs, same.duration)
    assert (result.height, result.width) == (same.height, same.width)
    np.testing.assert_array_equal(result.timestamps, same.timestamps)
    np.testing.assert_array_equal(result.ends, same.ends)


def test_a_file_that_hangs_the_decoder_is_named(good, hanging):
  before, error, after = read(good, hanging, good, seconds=0.5)
  assert_named(error, hanging, "0.5 s", "config.data.decode.seconds")
  assert len(before.jpegs) == len(after.jpegs) == 3
  assert not workers(os.getpid())


@pytest.mark.parametrize(
  ("number", "says"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGKILL, "lack of memory")]
)
def test_a_file_at_which_the_decoder_ends_is_named(good, hanging, number, says):
  def end() -> None:
    writer = wait_for_reader(hanging)
    (worker,) = workers(os.getpid())
    os.kill(worker, number)
    os.close(writer)

  thread = threading.Thread(target=end)
  thread.start()
  before, error, after = read(good, hanging, good)
  thread.join()
  assert_named(error, hanging, says)
  assert len(before.jpegs) == len(after.jpegs) == 3


@pytest.fixture
def one_core():
  """One thread in FFmpeg, so that what it needs does not depend on the machine."""
  cores = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {min(cores)})
  yield
  os.sched_setaffinity(0, cores)


def large_picture(path: Path) -> Path:
  Image.new("L", (6000, 6000), 128).save(path, compress_level=1)
  return path


def test_a_file_that_needs_too_much_memory_is_named(good, tmp_path, one_core):
  large, video = large_picture(tmp_path / "large.png"), tmp_path / "large.mkv"
  source = "color=gray:s=6000x6000:r=1:d=1"
  ffmpeg.run("-f", "lavfi", "-i", source, "-c:v", "ffv1", "-threads", "1", video)
  limits = {"memory_gib": 0.12}
  before, picture_error, video_error, after = read(good, large, video, good, **limits)
  for path, error in ((large, picture_error), (video, video_error)):
    assert_named(error, path, "needs more than 0.12 GiB", "config.data.decode.memory_gib")
  assert len(before.jpegs) == len(after.jpegs) == 3


def test_a_file_that_declares_too_many_pixels_is_named(good, tmp_path):
  picture, video, beyond = (tmp_path / name for name in ("a.png", "b.avi", "c.avi"))
  Image.fromarray(videos.picture(3)).save(picture)
  data = bytearray(picture.read_bytes())
  data[16:24] = struct.pack(">II", 30_000, 30_000)
  data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
  picture.write_bytes(data)
  for path, side in ((video, 12_000), (beyond, 30_000)):
    ffmpeg.run("-f", "lavfi", "-i", "testsrc=s=64x64:r=8:d=1", "-c:v", "rawvideo", path)
    data = bytearray(path.read_bytes())
    place = data.index(b"strf") + 12
    data[place : place + 8] = struct.pack("<ii", side, side)
    path.write_bytes(data)
  errors = read(picture, video, beyond)
  assert_named(errors[0], picture, "30000 x 30000", "config.data.decode.megapixels")
  assert_named(errors[1], video, "12000 x 12000", "config.data.decode.megapixels")
  assert_named(errors[2], beyond, "cannot be decoded")  # FFmpeg itself refuses such a size
  assert isinstance(read(good, megapixels=0.004)[0], InputError)
  assert isinstance(read(good, megapixels=0.005)[0], video_file.ExtractedVideo)


def write_playlist(path: Path, end: str = "") -> Path:
  """Writes a list of one piece of video. Without its end FFmpeg waits for more, as live."""
  videos.write(path.with_suffix(".ts"), frames=8)
  lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:9", "#EXTINF:1,", f"{path.stem}.ts", end)
  path.write_text("\n".join(lines))
  return path


def test_what_breaks_a_limit_stops_an_ingestion_or_is_listed(good, tmp_path, one_core):
  folder, output = tmp_path / "videos", tmp_path / "output"
  folder.mkdir()
  (folder / "a.mp4").write_bytes(good.read_bytes())
  large, endless = large_picture(folder / "b.png"), write_playlist(folder / "c.m3u8")
  spans = {"shown": [0, 2], "masked": None, "relevant": None, "steps": None}
  names = ("a.mp4", "b.png", "c.m3u8")
  values = [annotation_files.record(id=name, video=name, **spans) for name in names]
  notes = annotation_files.write(tmp_path / "notes.jsonl", *values)
  limits = guarded_reader.DecodeLimits(memory_gib=0.12, seconds=1.0)
  with pytest.raises(InputError, match=r"b\.png: needs more than 0.12 GiB"):
    ingest.ingest(folder, notes, output, ingest.IngestConfig(fps=1.0), limits=limits)
  assert not list(tmp_path.glob("output*"))
  skip = ingest.IngestConfig(fps=1.0, on_bad="skip")
  report = ingest.ingest(folder, notes, output, skip, limits=limits)
  assert (report.videos, report.skipped_videos, report.skipped_records) == (1, 2, 2)
  lines = [json.loads(line) for line in (output / "bad_records.jsonl").read_text().splitlines()]
  listed = {line["where"]: line["problem"] for line in lines}
  assert list(listed) == [str(large), str(endless), f"{notes}:2", f"{notes}:3"]
  assert listed[str(large)].startswith("needs more than 0.12 GiB of memory")
  assert listed[str(endless)].startswith("keeps the decoder busy for 1 s")
  assert not workers(os.getpid())


def test_a_list_of_files_is_no_video(tmp_path):
  path = write_playlist(tmp_path / "a.m3u8", "#EXT-X-ENDLIST")
  assert_named(read(path)[0], path, "is not a video (FFmpeg reads it as hls)")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_reader_that_is_ended_leaves_no_worker_behind(hanging, number):
  code = "import sys; from pathlib import Path; from vr_jax.data import guarded_reader as reader; "
  code += "reader.extract(Path(sys.argv[1]), fps=1.0, quality=90, max_side=448, "
  code += "limits=reader.DecodeLimits())"
  command = [sys.executable, "-c", code, str(hanging)]
  reader = subprocess.Popen(
    command,
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
    # A test run in the background of a script ignores SIGINT, and its children would inherit that.
    preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
  )
  writer = wait_for_reader(hanging)
  (worker,) = workers(reader.pid)
  reader.send_signal(number)
  _, errors = reader.communicate(timeout=60)
  assert reader.returncode == -number
  assert errors.count("Traceback") == (number == signal.SIGINT)  # that of the reader alone
  deadline = time.monotonic() + 20
  while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not Path(f"/proc/{worker}").exists()
  os.close(writer)


def test_modules_in_the_current_directory_are_not_taken_for_those_of_a_worker(good, tmp_path):
  (tmp_path / "queue.py").write_text("raise RuntimeError('not the right one')")
  code = "import sys; sys.path.pop(0); from pathlib import Path; "
  code += "from vr_jax.data import guarded_reader as reader; "
  code += "print(len(reader.extract(Path(sys.argv[1]), fps=1.0, quality=90, max_side=448, "
  code += "limits=reader.DecodeLimits()).jpegs))"
  command = [sys.executable, "-c", code, str(good)]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
  )
  assert (done.stdout, done.stderr) == ("3\n", "")
