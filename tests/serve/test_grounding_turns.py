"""ReVSeg behind the endpoint: a key frame, then the box in it, are two turns of one request."""

import json

import pytest

from tests.serve import live_server

about = live_server.about
KEY = [{"frame_idx": 2, "object description": "a mark"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory, root):
  run = live_server.make_run(tmp_path_factory.mktemp("revseg") / "run", "configs/revseg.py")
  with live_server.serving(run, f"--allowed_root={root}") as server:
    yield server


def test_an_episode_without_a_key_frame_ends_after_its_first_turn(served, root):
  found = served.ask(about(root / "clip.mp4", "the mark"), reply="full", temperature=0.0)
  assert len(found.vr_jax["turns"]) == 1
  assert not found.vr_jax["answered"]


def test_the_key_frame_is_shown_in_a_second_turn(served, root, monkeypatch):
  """What the first reply says is the test's, as no random policy says it; the rest is real."""
  environment = served.server.preparer._context.environment
  observe = environment.observe
  said = f"<think>…</think> <answer>{json.dumps(KEY)}</answer>"
  shown = []

  def observe_key(example, pool, texts):
    found = observe(example, pool, (said,) if len(texts) == 1 else texts)
    shown.append(found)
    return found

  alone = served.ask(about(root / "clip.mp4", "the mark"), reply="full", temperature=0.0)
  monkeypatch.setattr(environment, "observe", observe_key)
  found = served.ask(about(root / "clip.mp4", "the mark"), reply="full", temperature=0.0)
  first, second = found.vr_jax["turns"]
  assert first == alone.vr_jax["turns"][0]
  assert second["frames"] == [2] and second["reply"]
  assert found.usage.prompt_tokens > alone.usage.prompt_tokens
  assert live_server.text(found) == f"{first['reply']}\n{second['reply']}"
  _, key_frame = [each for each in shown if each is not None and each.frames]
  assert "a mark" in " ".join(key_frame.texts)
