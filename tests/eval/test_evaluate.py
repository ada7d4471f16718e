"""Evaluation of a rigged policy: numbers match a count by hand, and each example counts once."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.eval import rigged
from tests.train import nano
from vr_jax.eval import evaluate, evaluated_episode, evaluated_replies, intervals, stage
from vr_jax.rollout import sampler
from vr_jax.train import batching

BATCH = 4  # the test split has six examples: its second batch is half full


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  # No answers of one word: their ROUGE-2 is 0, so free-form ones could not score fully.
  families = {"data__simulate__world__families": ("choice", "visits")}
  return nano.make_data(tmp_path_factory.mktemp("nano"), **families)


@pytest.fixture
def context(data):
  return nano.build(data, eval__examples=0, eval__batch_size=BATCH, rl__max_new_tokens=90)


def _items(context):
  return [
    item for batch in context.builder.read("test", BATCH, repeat=False) for item in batch.items
  ]


def test_a_policy_that_gives_the_reference_scores_full_marks(context, monkeypatch):
  rigged.rig(monkeypatch, lambda item, **_: item.reply)
  result = evaluate.evaluate(context, {}, name="test")
  metrics = result["metrics"]
  assert result["examples"] == 6
  for name in ("accuracy", "process_reward", "format", "trace_consistency", "blind_accuracy"):
    assert metrics[name] == pytest.approx(1, abs=1e-6), name
  assert metrics["think_answer_mismatch"] == 0
  interval = result["intervals"]["accuracy"]  # three videos of two questions each
  assert (interval["low"], interval["high"]) == pytest.approx((0.43850, 1), abs=1e-5)
  assert (interval["questions"], interval["videos"], interval["effective"]) == (6, 3, 3)
  assert metrics["accuracy_interval"] == pytest.approx(0.28075, abs=1e-5)
  assert metrics["completions/mean_length"] == pytest.approx(
    np.mean([len(i.reply) for i in _items(context)])
  )


def test_a_policy_that_is_silent_scores_nothing(context, monkeypatch):
  stop = context.processor.stop_tokens[0]
  rigged.rig(monkeypatch, lambda item, **_: [stop])
  metrics = evaluate.evaluate(context, {}, name="test")["metrics"]
  assert metrics["accuracy"] == metrics["process_reward"] == metrics["trace_consistency"] == 0
  assert metrics["completions/mean_length"] == 1
  assert "think_answer_mismatch" not in metrics  # no trace concludes anything


def test_the_examples_of_a_last_batch_count_once(context, monkeypatch):
  items = _items(context)
  right = {items[0].example.id, items[-1].example.id, items[-2].example.id}
  stop = context.processor.stop_tokens[0]
  seen = rigged.rig(
    monkeypatch, lambda item, **_: item.reply if item.example.id in right else [stop]
  )
  metrics = evaluate.evaluate(context, {}, name="test")["metrics"]
  assert [len(batch) for batch in seen] == [BATCH] * 6  # three views of two batches
  assert metrics["accuracy"] == pytest.approx(3 / 6)
  videos = [item.example.video for item in items]
  found = intervals.mean_interval([item.example.id in right for item in items], videos)
  assert metrics["accuracy_interval"] == pytest.approx((found.high - found.low) / 2)
  kinds = [item.example.problem_type for item in items]
  for kind in set(kinds):
    scores = [i.example.id in right for i in items if i.example.problem_type == kind]
    assert metrics[f"accuracy/{kind}"] == pytest.approx(np.mean(scores))


def test_traces_are_judged_where_the_examples_are_simulated_ones_only(context, monkeypatch):
  items = _items(context)
  assert {item.example.source for item in items} == {"simulator"}
  make = batching.BatchBuilder.item

  def of_another_source(context, clip, *epoch, **options):
    item = make(context, clip, *epoch, **options)
    return dataclasses.replace(item, example=dataclasses.replace(item.example, source="elsewhere"))

  monkeypatch.setattr(batching.BatchBuilder, "item", of_another_source)
  rigged.rig(monkeypatch, lambda item, **_: item.reply)
  result = evaluate.evaluate(context, {}, name="test")
  assert result["metrics"]["accuracy"] == pytest.approx(1)
  assert not {"trace_consistency", "think_answer_mismatch"} & result["metrics"].keys()
  assert not any("trace_consistency" in reply["metrics"] for reply in result["replies"])


def test_batches_are_sampled_with_different_keys(context, monkeypatch):
  stop, keys = context.processor.stop_tokens[0], []
  rigged.rig(monkeypatch, lambda item, **_: [stop])
  sample_so = sampler.sample_counting

  def sample(graphdef, params, prompt, allowed_tokens, key, *, decoding):
    keys.append(jax.random.key_data(key).tolist())
    return sample_so(graphdef, params, prompt, allowed_tokens, key, decoding=decoding)

  monkeypatch.setattr(sampler, "sample_counting", sample)
  evaluate.evaluate(context, {}, name="test")
  assert keys[0] != keys[1]
  assert keys[:2] == keys[2:4] == keys[4:]  # each view draws with the same luck


def test_each_view_is_counted_under_its_own_name_and_only_what_is_seen_whole_is_judged(
  context, monkeypatch
):
  """Calls 1, 2 are whole, 3, 4 blind, 5, 6 shuffled; only the blind ones are answered."""
  judged, task = [], type(context.environment)
  score = task.score
  monkeypatch.setattr(task, "score", lambda *arguments: judged.append(1) or score(*arguments))
  stop = context.processor.stop_tokens[0]
  seen = rigged.rig(monkeypatch, lambda item, call, **_: item.reply if call in (3, 4) else [stop])
  metrics = evaluate.evaluate(context, {}, name="test")["metrics"]
  assert (metrics["accuracy"], metrics["blind_accuracy"], metrics["shuffled_accuracy"]) == (0, 1, 0)
  assert len(judged) == 2
  frames = [{len(item.encoded.frames) for item in batch} for batch in seen]
  assert frames == [{4}, {4}, {0}, {0}, {4}, {4}]
  whole, shuffled = seen[0][0].encoded, seen[4][0].encoded
  np.testing.assert_array_equal(whole.tokens, shuffled.tokens)
  assert any(
    not np.array_equal(a.vision.patches, b.vision.patches)
    for a, b in zip(whole.frames, shuffled.frames, strict=True)
  )


def test_every_reply_is_kept_with_its_answer_its_rewards_and_whether_it_was_cut(
  context, monkeypatch
):
  limit, stop = context.config.rl.max_new_tokens, context.processor.stop_tokens[0]
  items = _items(context)
  word = next(t for t in items[0].reply if t not in context.processor.stop_tokens)
  cut, full = items[1].example.id, items[2].example.id  # full ends with the last token it may have
  odd = {cut: [word] * limit, full: [word] * (limit - 1) + [stop]}
  rigged.rig(monkeypatch, lambda item, **_: odd.get(item.example.id, item.reply))
  replies = evaluate.evaluate(context, {}, name="test")["replies"]
  assert json.loads(json.dumps(replies, allow_nan=False)) == replies
  assert [reply["id"] for reply in replies] == [item.example.id for item in items]
  by_id = {reply["id"]: reply for reply in replies}
  assert [by_id[each]["tokens"] for each in (cut, full)] == [limit, limit]
  assert [reply["id"] for reply in replies if reply["truncated"]] == [cut]
  assert by_id[cut]["parsed_answer"] is None
  for item in (items[0], items[3]):
    reply = by_id[item.example.id]
    assert reply["parsed_answer"] == item.example.answer
    assert reply["rewards"]["total"] == pytest.approx(3, abs=1e-5)
    assert reply["metrics"]["accuracy"] == reply["accuracy"] == 1
    assert reply["shown"] == [item.example.shown.start, item.example.shown.end]
    assert len(reply["times"]) == 8 and reply["tokens"] == len(item.reply)
    assert len(reply["alignment"]["cost"]) == len(reply["reference"]) == len(item.example.steps)


def test_a_complete_evaluation_is_not_made_again_and_the_report_is_written(
  data, tmp_path, monkeypatch
):
  nano.use_devices(monkeypatch, 1)
  config = nano.config(data__directory=str(data))
  for name in ("sft", "rl"):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  calls = []

  def made(context, params, *, name, cache):
    calls.append(name)
    (item, *_) = next(iter(context.builder.read("test", 1, repeat=False))).items
    episode = evaluated_episode.EvaluatedEpisode(
      example=item.example,
      clip=item.clip,
      reply="<answer>?</answer>",
      tokens=3,
      truncated=False,
      answer="?",
      accuracy=float(name == "after rl"),
      steps=[],
      observation=None,
      rewards={"total": 0.5},
      segment_rewards={},
    )
    reply = evaluated_replies.to_json(context.environment, episode, {"accuracy": episode.accuracy})
    empty = {"intervals": {}, "shown_as": {}}
    return {"examples": 1, "metrics": {"accuracy": 0.5}, "replies": [reply], **empty}

  monkeypatch.setattr(stage.evaluate_lib, "evaluate", made)
  monkeypatch.setattr(stage.initialization, "load_params", lambda context, where: {})
  monkeypatch.setattr(stage.initialization, "last_step", lambda context, where: 4)
  monkeypatch.setattr(stage.initialization, "is_complete", lambda store, sft: True)
  for _ in range(2):
    stage.evaluate(config, tmp_path)
    assert calls == ["before rl", "after rl"]
  assert "went from wrong to right" in (tmp_path / "report.html").read_text()
  (frames,) = map(json.loads, (tmp_path / "eval" / "frames.jsonl").read_text().splitlines())
  assert list(frames["frames"]) == [str(index) for index in range(8)]
  written = json.loads((tmp_path / "eval" / "after_rl.json").read_text())
  assert written["metrics"]["accuracy"] == 0.5
  assert "cpu" in written["device"] and written["seconds"] > 0
  (tmp_path / "eval" / "after_rl.json").write_text("{")
  stage.evaluate(config, tmp_path)
  assert calls == ["before rl", "after rl", "after rl"]
  (tmp_path / "eval" / "after_rl.jsonl").unlink()
  stage.evaluate(config, tmp_path)
  assert calls[3:] == ["after rl"]
  monkeypatch.setattr(
    stage.initialization, "last_step", lambda context, where: 4 if where.name == "sft" else 6
  )
  stage.evaluate(config, tmp_path)
  assert calls[4:] == ["after rl"]
  (tmp_path / "checkpoints" / "rl_best").mkdir()
  config.eval.checkpoint = "best"
  stage.evaluate(config, tmp_path)
  assert calls[5:] == ["after rl (best)"]
  assert json.loads((tmp_path / "eval" / "after_rl.json").read_text())["stage"] == "rl"
