"""The trace stage: accepted and rejected traces, resuming, and messages about bad input."""

from concurrent import futures
import dataclasses
import json
import threading

import jax
import numpy as np
import pytest

from tests.traces import trace_runs
from tests.train import nano
from vr_jax import atomic, buckets, errors, records
from vr_jax.data import annotations, frame_store, trace_store
from vr_jax.envs import videop2r
from vr_jax.rollout import sampler
from vr_jax.traces import proposers
from vr_jax.traces import stage as traces_stage
from vr_jax.train import data_stage, initialization, run_context

config = trace_runs.config
data = trace_runs.data


def told(monkeypatch, made, say=trace_runs.reference):
  writer = trace_runs.Told(made, say)
  monkeypatch.setattr(proposers, "make", lambda config, workdir: writer)
  return writer


def fail(where, error):
  raise error


def test_good_traces_become_a_data_set_to_train_on_and_a_file_that_is_read_again(
  data, tmp_path, monkeypatch
):
  told(monkeypatch, config(data))
  traces_stage.write(config(data), tmp_path)
  shards, output = data / "shards", tmp_path / "traces"
  for split in trace_store.SPLITS:
    found = trace_runs.all_examples(output / "shards", split)
    for example, given in zip(found, trace_runs.all_examples(shards, split), strict=True):
      read = videop2r.parse_reply(trace_runs.reference(given))
      trace = {"observation": read.observation, "reasoning": read.think}
      assert example == dataclasses.replace(given, **trace)
  given_test = trace_runs.all_examples(shards, "test")
  assert trace_runs.all_examples(output / "shards", "test") == given_test
  assert (output / "rejected.jsonl").read_text() == ""

  store = frame_store.FrameStore(output / "shards" / "frames")
  read = annotations.read(output / "traces.jsonl", frozenset(store.videos), on_bad=fail)
  again = [(a.example.id, a.example.observation, a.example.reasoning) for a in read]
  kept = [
    e for split in trace_store.SPLITS for e in trace_runs.all_examples(output / "shards", split)
  ]
  assert again == [(e.id, e.observation, e.reasoning) for e in kept]

  trained = config(output, sft__steps=1, sft__max_reply_tokens=400)
  data_stage.prepare(trained, tmp_path)
  context = run_context.make_run_context(trained, tmp_path)
  item = next(context.builder.read("train", 4)).items[0]
  assert context.processor.decode(item.reply) == trace_runs.reference(item.example)


FAULTS = ("no reply", "template", "answer", "insufficient", "no verdict", "template", "", "")


def asked_of(data):
  return [
    e for split in trace_store.SPLITS for e in trace_runs.all_examples(data / "shards", split)
  ]


def spoiling(data):
  """Says the replies of `FAULTS`, one after the other, to the questions in their order."""
  number_of = {example.id: number for number, example in enumerate(asked_of(data))}

  def say(example):
    good = trace_runs.reference(example)
    return (
      None,
      good.removeprefix("<observation>"),
      good.replace(f"<answer>{example.answer}", "<answer>none of these"),
      good.replace("<observation>", "<observation>vague: "),
      good.replace("<observation>", "<observation>dumb: "),
      good.replace(videop2r.parse_reply(good).think, " "),
      good,
      good,
    )[number_of[example.id] % len(FAULTS)]

  return say


def test_what_is_rejected_keeps_its_reason(data, tmp_path, monkeypatch):
  told(monkeypatch, config(data), spoiling(data))
  traces_stage.write(config(data), tmp_path)
  reasons = [FAULTS[number % len(FAULTS)] for number in range(len(asked_of(data)))]
  expected = [
    (example.id, reason) for example, reason in zip(asked_of(data), reasons, strict=True) if reason
  ]
  rejected = trace_runs.lines(tmp_path / "traces" / "rejected.jsonl")
  assert [(entry["problem_id"], entry["reason"]) for entry in rejected] == expected
  for entry in rejected:
    assert (entry["score"] == 0) == (entry["reason"] == "answer")
    assert (entry["output"] is None) == (entry["reason"] == "no reply")
  counts = trace_store.summary(tmp_path / "traces")
  for reason in trace_store.REASONS:
    assert sum(count[reason] for count in counts.values()) == reasons.count(reason) > 0
  assert sum(count["accepted"] for count in counts.values()) == reasons.count("")


def test_an_answer_counts_by_the_task_metric_against_the_threshold(data, tmp_path, monkeypatch):
  def half_right(example):
    return trace_runs.reference(example).replace("</answer>", " and more</answer>")

  kept = []
  for threshold in (0.0, 0.6, 1.0):
    made = config(data, traces__threshold=threshold)
    told(monkeypatch, made, half_right)
    traces_stage.write(made, tmp_path / str(threshold))
    found = trace_runs.lines(tmp_path / str(threshold) / "traces" / "rejected.jsonl")
    assert all(entry["score"] < threshold for entry in found)
    kept.append(len(found))
  assert kept == sorted(kept)
  assert kept[0] == 0 < kept[-1]


FILES = ("traces.jsonl", "rejected.jsonl", "summary.json")


def test_wherever_it_is_interrupted_the_same_command_goes_on(data, tmp_path, monkeypatch):
  made, spoilt = config(data), spoiling(data)
  whole = told(monkeypatch, made, spoilt)
  traces_stage.write(made, tmp_path / "whole")
  for stop in range(len(whole.asked)):
    workdir, seen = tmp_path / str(stop), []

    def stopping(example, stop=stop, seen=seen):
      seen.append(example)
      if len(seen) > 4 * stop + 1:
        raise KeyboardInterrupt
      return spoilt(example)

    first = told(monkeypatch, made, stopping)
    with pytest.raises(KeyboardInterrupt):
      traces_stage.write(made, workdir)
    second = told(monkeypatch, made, spoilt)
    traces_stage.write(made, workdir)
    assert len(second.asked) == len(whole.asked) - len(first.asked) + 1
    for name in FILES:
      there, expected = (root / "traces" / name for root in (workdir, tmp_path / "whole"))
      assert there.read_bytes() == expected.read_bytes()
  third = told(monkeypatch, made, spoilt)
  traces_stage.write(made, workdir)
  assert not third.asked


def test_an_interruption_of_the_last_step_leaves_no_half_data_set(data, tmp_path, monkeypatch):
  made, output = config(data), tmp_path / "traces"
  told(monkeypatch, made)
  with monkeypatch.context() as patch:
    patch.setattr(
      trace_store.examples, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
      traces_stage.write(made, tmp_path)
  assert not (output / "shards").exists()
  assert trace_store.summary(output) is None
  assert not list(output.rglob("*.partial"))
  (output / "shards").mkdir()  # ended between the data set and the summary
  again = told(monkeypatch, made)
  traces_stage.write(made, tmp_path)
  assert not again.asked
  assert trace_runs.all_examples(output / "shards", "train")


def test_the_sampler_writes_what_its_weights_say_at_temperature_0(data, tmp_path):
  made = config(data, traces__batch_size=16)
  traces_stage.write(made, tmp_path)
  rejected = trace_runs.lines(tmp_path / "traces" / "rejected.jsonl")
  assert {entry["reason"] for entry in rejected} == {"template"}
  train = [entry for entry in rejected if entry["split"] == "train"]
  context = run_context.make_run_context(made, tmp_path)
  batch = next(iter(context.builder.read("train", 16, repeat=False)))
  assert [entry["problem_id"] for entry in train] == [item.example.id for item in batch.items]
  decoding = context.decoding(group=1, temperature=0.0, max_new_tokens=16)
  rollout = sampler.sample(
    context.graphdef,
    initialization.initial_params(context, tmp_path),
    context.builder.prompt(batch),
    context.allowed_tokens,
    jax.random.key(7),
    decoding=decoding,
  )
  tokens, kept = (
    np.asarray(rollout.tokens)[:, 0],
    np.asarray(rollout.kind)[:, 0] == records.Kind.MODEL,
  )
  replies = [context.processor.decode(row[mask]) for row, mask in zip(tokens, kept, strict=True)]
  assert [entry["output"] for entry in train] == replies[: len(train)]


def test_a_question_without_a_reference_is_asked_and_one_that_does_not_fit_is_not(data, tmp_path):
  made = config(data, sft__steps=3, sft__max_reply_tokens=1)
  context = run_context.make_run_context(made, tmp_path)
  with pytest.raises(errors.InputError, match="reference reply"):
    context.builder.checks.find_unusable()
  writer = proposers.Sampled(context=context, workdir=tmp_path)
  assert not any(writer.left_out()[split] for split in trace_store.SPLITS)
  assert made.sft.steps == 3
  narrow = run_context.make_run_context(config(data, model__prefix_buckets=(8,)), tmp_path)
  with pytest.raises(errors.InputError, match="tokens, but the largest bucket has 8"):
    proposers.Sampled(context=narrow, workdir=tmp_path).left_out()


@pytest.mark.parametrize("field", ["traces__threshold", "judge__leak_filter", "env__instruction"])
def test_traces_that_depend_on_another_value_are_refused(data, tmp_path, monkeypatch, field):
  told(monkeypatch, config(data))
  traces_stage.write(config(data), tmp_path)
  value = {"traces__threshold": 0.7, "judge__leak_filter": True}.get(
    field, f"{trace_runs.INSTRUCTION} Please."
  )
  name = {"judge__leak_filter": "judge"}.get(field, field.split("__")[1])
  with pytest.raises(errors.InputError, match=rf"about\.json: .* with another {name};"):
    traces_stage.write(config(data, **{field: value}), tmp_path)
  traces_stage.write(config(data, judge__timeout=7.0, traces__workers=3), tmp_path)


def test_a_directory_of_something_else_is_left_alone(data, tmp_path, monkeypatch):
  told(monkeypatch, config(data))
  with pytest.raises(errors.InputError, match="is not empty and holds no traces"):
    traces_stage.write(config(data, traces__directory=str(data)), tmp_path)
  assert trace_runs.all_examples(data / "shards", "train")


def test_threads_that_write_the_same_file_leave_one_of_them_whole(tmp_path):
  both = threading.Barrier(2, timeout=10)

  def values(word):
    yield word
    both.wait()  # both are being written
    yield word

  with futures.ThreadPoolExecutor(2) as pool:
    list(
      pool.map(
        lambda word: atomic.write_json_lines(tmp_path / "file", values(word)), ["one", "two"]
      )
    )
  assert trace_runs.lines(tmp_path / "file") in (["one"] * 2, ["two"] * 2)
  assert len(list(tmp_path.iterdir())) == 1


def test_a_kill_while_the_directory_is_claimed_leaves_one_that_is_claimed_again(tmp_path):
  output = tmp_path / "traces"
  output.mkdir()
  (output / "about.json.1.partial").write_text("{")
  trace_store.claim(output, {"writer": "told"})
  (output / "chunks").rmdir()  # ended between the two
  trace_store.claim(output, {"writer": "told"})
  chunk = trace_store.TraceChunk(split="train", number=0, indices=())
  trace_store.write_chunk(output, chunk, [])
  assert not trace_store.open_chunks(output, [chunk])


def test_what_traces_depend_on_is_the_same_wherever_a_bucket_is_mounted(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setattr(buckets, "MOUNTS", tmp_path / "gcs")
  output = tmp_path / "traces"
  for root in (tmp_path / "gcs", tmp_path / "home" / ".cache" / "vr_jax" / "gcs"):
    about = {"model": {"pretrained": f"{root}/mine/weights"}}
    trace_store.claim(output, about)
  (output / "about.json").write_text(json.dumps(about))  # as it was written before
  trace_store.claim(output, {"model": {"pretrained": "gs://mine/weights"}})
  with pytest.raises(errors.InputError, match="another model"):
    trace_store.claim(output, {"model": {"pretrained": "gs://other/weights"}})


def test_a_tokenizer_that_the_data_stage_did_not_make_is_named(data, tmp_path, monkeypatch):
  made = config(data)
  made.model.architecture.text_config.vocab_size += 1
  writer = told(monkeypatch, made)
  with pytest.raises(
    errors.InputError, match=r"tokenizer-\d+\.json: no such tokenizer; run --mode"
  ):
    traces_stage.write(made, tmp_path)
  assert not writer.asked


@pytest.mark.parametrize("content", ["", "{", '{"index": 99, "reply": "", "reason": ""}'])
def test_a_damaged_chunk_is_named(data, tmp_path, monkeypatch, content):
  made, output = config(data), tmp_path / "traces"
  told(monkeypatch, made)
  traces_stage.write(made, tmp_path)
  (output / "summary.json").unlink()
  (output / "chunks" / "train-000001.jsonl").write_text(content)
  with pytest.raises(errors.InputError, match=r"train-000001\.jsonl: .*; remove it, and the same"):
    traces_stage.write(made, tmp_path)


def test_a_trace_whose_video_is_missing_is_named_when_it_is_ingested(data, tmp_path, monkeypatch):
  told(monkeypatch, config(data))
  traces_stage.write(config(data), tmp_path)
  path = tmp_path / "traces" / "traces.jsonl"
  with pytest.raises(errors.InputError, match=r"traces\.jsonl:1: field 'video': there is no file"):
    annotations.read(path, frozenset({"other.mp4"}), on_bad=fail)


BAD = {
  "a recipe without observations": (
    lambda data: nano.config(data__directory=str(data)),
    "config.recipe=moss_chatv: its replies hold no observation",
  ),
  "an instruction without tags": (
    lambda data: config(data, env__instruction=trace_runs.INSTRUCTION.replace("</think>", "")),
    "config.env.instruction: does not ask for </think>, by which videop2r reads replies",
  ),
  "no instruction for an endpoint": (
    lambda data: config(data, env__instruction="", traces__writer="openai"),
    "does not ask for <observation>, </observation>, <think>, </think>, <answer>, </answer>, by",
  ),
  "no data": (lambda data: config(data / "none"), "none/shards: no such data; run --mode=data"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_said_before_anything_is_written(data, tmp_path, name):
  make, problem = BAD[name]
  with pytest.raises(errors.InputError, match=problem):
    traces_stage.write(make(data), tmp_path)
  assert not list(tmp_path.iterdir())
