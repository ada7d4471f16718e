"""What EgoSchema's server gets: the index that each reply chooses, and nothing that is guessed."""

import dataclasses
import json

from tests.eval import benchmark_items
from vr_jax.eval.benchmarks import answer_submission, protocols, reply_store


def test_the_file_has_the_index_of_each_answer_that_was_read(tmp_path):
  options = ("a", "b", "c", "d", "e")
  one = benchmark_items.question("", options=options, benchmark="egoschema")
  said = {
    "none": "I can't tell.",
    "first": "(A)",
    "last": "The answer is E.",
    "public": "<think>A?</think>B",
    "cut": "B",
  }
  items = [dataclasses.replace(one, id=name) for name in (*said, "lost", "failed")]
  items[3] = dataclasses.replace(items[3], answer="A")  # its answer is public: it is sent, too
  replies = {
    name: reply_store.StoredReply(id=name, reply=text, truncated=name == "cut")
    for name, text in said.items()
  }
  replies["failed"] = reply_store.StoredReply(id="failed", problem="no video")
  assert answer_submission.is_needed(items) and not answer_submission.is_needed(items[3:4])
  path = tmp_path / "submission.json"
  for name, more in (("egoschema@recipe", {}), ("egoschema@official", {"cut": 1})):
    count = answer_submission.write(path, protocols.get(name), items, replies)
    assert json.loads(path.read_text()) == {"first": 0, "last": 4, "public": 1, **more}
    assert count == 3 + len(more)
  other = dataclasses.replace(one, benchmark="longvideobench")
  assert not answer_submission.is_needed([other])
