"""Chat completions of a real server with the official client: replies, streams, media, settings."""

import pytest

from tests.data import videos
from tests.serve import live_server
from tests.train import nano
from vr_jax import errors, main


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp("allowed")
  videos.write(folder / "clip.mp4")
  return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory, root):
  run = live_server.make_run(tmp_path_factory.mktemp("single") / "run", rl__max_new_tokens=40)
  with live_server.serving(run, f"--allowed_root={root}") as server:
    yield server


def _ask(served, content, **fields):
  extra = {name: fields.pop(name) for name in list(fields) if name in EXTRA}
  return served.client().chat.completions.create(
    model="run", messages=[{"role": "user", "content": content}], extra_body=extra, **fields
  )


EXTRA = ("top_k", "reply", "video_start", "video_end", "media_io_kwargs", "mm_processor_kwargs")


def _video(root, text="Which colour?", name="clip.mp4"):
  return [
    {"type": "video_url", "video_url": {"url": f"file://{root}/{name}"}},
    {"type": "text", "text": text},
  ]


def _text(completion) -> str:
  return completion.choices[0].message.content


def test_the_reply_is_that_of_vr_jax_ask_about_the_same_clip(served, root, capsys):
  flags = [f"--checkpoint={served.run}", "--seed=3", "--config.eval.temperature=0.9"]
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 1)
    assert main.cli(["vr-jax", "ask", str(root / "clip.mp4"), "Which colour?", *flags]) == 0
  printed = capsys.readouterr().out
  reply = _ask(served, _video(root), temperature=0.9, seed=3)
  assert len(_text(reply)) > 10
  assert f"\n{errors.printable(_text(reply))}\n" in printed
