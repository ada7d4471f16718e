"""Replies on disk: killed writers lose no line that is whole, and different replies don't mix."""

import pytest

from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import reply_store

ONE = reply_store.StoredReply(id="1", reply="<answer>A</answer>", tokens=9, frames=4, times=(0.5,))
TWO = reply_store.StoredReply(id="2", problem="v.mp4: no such file")


@pytest.fixture
def store(tmp_path):
  store = reply_store.ReplyStore(directory=tmp_path / "mvbench@official")
  store.begin({"policy": "runs/a, rl step 3", "sizes": (1, 2)})
  return store


def test_replies_of_all_processes_come_back(store):
  for process, reply in enumerate((ONE, TWO)):
    with store.writer(process) as writer:
      writer.add([reply])
  assert store.read() == {"1": ONE, "2": TWO}


def test_hosts_that_mount_a_bucket_elsewhere_go_on(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  own = tmp_path / ".cache" / "vr_jax" / "gcs" / "mine"
  store = reply_store.ReplyStore(directory=tmp_path / "replies")
  for root in (own, "/gcs/mine", "gs://mine"):
    about = {"policy": f"{root}/runs/a, rl step 3", "config": {"model.pretrained": f"{root}/qwen"}}
    store.begin(about)
  assert store.about()["policy"] == "gs://mine/runs/a, rl step 3"
  with pytest.raises(InputError, match="has replies with config="):
    store.begin(about | {"config": {"model.pretrained": "/gcs/others/qwen"}})


def test_a_line_that_a_kill_has_cut_is_asked_again(store):
  with store.writer(0) as writer:
    writer.add([ONE, TWO])
  path = store.directory / "replies-00000.jsonl"
  path.write_bytes(path.read_bytes()[:-5])
  assert store.read() == {"1": ONE}
  with store.writer(0) as writer:
    writer.add([TWO])
  assert store.read() == {"1": ONE, "2": TWO}
  assert path.read_bytes().count(b"\n") == 2


def test_a_damaged_line_is_named(store):
  with store.writer(0) as writer:
    writer.add([ONE])
  path = store.directory / "replies-00000.jsonl"
  path.write_bytes(b'{"id": 3}\n' + path.read_bytes())
  with pytest.raises(InputError, match=r"replies-00000\.jsonl, line 1: is damaged"):
    store.read()


def test_replies_of_another_policy_are_not_mixed_in(store):
  store.begin({"sizes": [1, 2], "policy": "runs/a, rl step 3"})
  with pytest.raises(InputError, match="has replies with policy='runs/a, rl step 3', now 'b'"):
    store.begin({"policy": "b", "sizes": (1, 2)})


@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_a_damaged_description_is_named(store, content):
  (store.directory / "about.json").write_bytes(content)
  with pytest.raises(InputError, match=r"about\.json: is damaged"):
    store.about()


def test_a_directory_without_replies_is_named(tmp_path):
  with pytest.raises(InputError, match=r"about\.json: no such file"):
    reply_store.ReplyStore(directory=tmp_path).about()
