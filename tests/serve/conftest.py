"""One server of a tiny policy for all tests of the room, and the videos that it may read."""

from pathlib import Path

from PIL import Image
import pytest

from tests.data import videos
from tests.serve import live_server

SIZES = {"model__prefix_buckets": (128,), "model__frame_buckets": (4, 8)}


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
  """A directory with a video of ten seconds, another one, a picture and a damaged video."""
  folder = tmp_path_factory.mktemp("allowed")
  whole = videos.write(folder / "clip.mp4").read_bytes()
  videos.write(folder / "other.mp4", mark=200)
  Image.fromarray(videos.picture(7)).save(folder / "picture.png")
  (folder / "damaged.mp4").write_bytes(whole[: len(whole) // 2])
  return folder


@pytest.fixture(scope="session")
def served(tmp_path_factory, root):
  """A server with room for long replies."""
  where = tmp_path_factory.mktemp("single") / "run"
  run = live_server.make_run(where, rl__max_new_tokens=40, **SIZES)
  with live_server.serving(run, f"--allowed_root={root}", "--max_tokens=1500") as server:
    yield server
