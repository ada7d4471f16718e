"""A question whose later turn is too large fails alone; all others are scored as before."""

from concurrent import futures
import dataclasses
import json
import re

import pytest

from tests.eval import conftest as runs
from tests.train import nano
from vr_jax import main
from vr_jax.data import examples
from vr_jax.envs import environment, video_mtr
from vr_jax.eval import evaluate, evaluated_episode, report, report_data, stage
from vr_jax.eval.benchmarks import play_items, protocols, reply_store
from vr_jax.rollout import play
from vr_jax.train import held_out, paths

TOO_LARGE = (
  r"turn 2: \d+ tokens shown in a turn \(config.turns.observation_buckets\), "
  r"but the largest bucket has 192; shorten it or add a bucket"
)


@dataclasses.dataclass(kw_only=True)
class Wordy(video_mtr.VideoMTR):
  """Says much after the first reply to one question. wordy_about: its id."""

  wordy_about: str = ""

  def observe(self, example, pool, replies):
    shown = super().observe(example, pool, replies)
    if shown is None or not replies or example.id != self.wordy_about:
      return shown
    return environment.Observation(parts=(*shown.parts, "0123456789" * 20))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(workdir, context, parameters) of a run whose policy has random weights."""
  workdir = tmp_path_factory.mktemp("turns") / "run"
  fields = {
    **nano.SHORT_TURNS,
    "env__on_invalid_action": "explain",
    "env__sft_retrieval_fraction": 0.5,
    "turns__observation_buckets": (192,),
    "turns__episode_buckets": (256,),
    "eval__temperature": 1.0,
  }
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 1)
    context, params = nano.untrained_run(nano.config("configs/video_mtr.py", **fields), workdir)
  return workdir, context, params


def _about(context, identity):
  """The context with an environment that is wordy about a question."""
  task = context.environment
  fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
  return dataclasses.replace(context, environment=Wordy(**fields, wordy_about=identity))


def test_a_question_with_a_turn_that_is_too_large_fails_and_the_others_stay(made):
  _, context, params = made
  whole = evaluate.evaluate(_about(context, ""), params, name="whole")
  assert whole["failed"] == 0 and all("problem" not in each for each in whole["replies"])
  wordy_about = whole["replies"][1]["id"]
  some = evaluate.evaluate(_about(context, wordy_about), params, name="some")
  assert (some["failed"], some["examples"]) == (1, whole["examples"])
  for one, other in zip(some["replies"], whole["replies"], strict=True):
    if one["id"] != wordy_about:
      assert one == other
      continue
    assert re.fullmatch(f"{re.escape(wordy_about)}, {TOO_LARGE}", one["problem"])
    assert [turn["reply"] for turn in one["turns"]] == [other["turns"][0]["reply"]]
    fractions = ("accuracy", "format", "frame_recall")
    assert {one["metrics"][name] for name in fractions if name in one["metrics"]} == {0.0}
    assert {*one["turns"][0]["rewards"].values()} == {0.0}
    assert one["metrics"]["turns"] == 1
  turns = [each["metrics"]["turns"] for each in some["replies"]]
  assert some["metrics"]["turns"] == sum(turns) / len(turns)


def test_what_failed_scores_0_wherever_higher_is_better_also_without_an_environment_metric(made):
  _, context, params = made
  first, second, *_ = evaluate._evaluated(context, params, "some", None)
  masks = evaluated_episode.TrackedObject(region_similarity=0.5, boundary_f=0.25, masks={})
  right = [
    dataclasses.replace(each, steps=[step.text for step in each.example.steps], tracked=masks)
    for each in (first, second)
  ]
  right[1] = dataclasses.replace(right[1], problem="its next turn is too large")
  found = evaluated_episode.values_by_metric(right, context.environment.metrics)
  higher = ("trace_consistency", "j_and_f", "region_similarity", "boundary_f")
  assert all(found[name][0] > 0 == found[name][1] for name in higher)
  assert found["completions/mean_length"][1] == second.tokens > 0


def test_a_view_in_which_a_question_fails_scores_0_for_it(made, monkeypatch):
  _, context, params = made
  monkeypatch.setattr(Wordy, "accuracy", lambda *_: 1.0)
  source = list(examples.ExampleSource(context.data, "test"))
  found = evaluate._accuracies(_about(context, source[1].id), params, "whole", "a view")
  assert found == [float(number != 1) for number in range(len(source))]


def test_report_and_terminal_say_how_many_failed_and_why(made, tmp_path, capsys):
  _, context, params = made
  identity = next(iter(examples.ExampleSource(context.data, "test"))).id
  measured = evaluate.evaluate(_about(context, identity), params, name="some")
  replies = measured.pop("replies")
  (tmp_path / "eval").mkdir()
  about = {"name": "before_rl", "title": "Before RL", "stage": "sft", "step": 4}
  runs.write_evaluation(tmp_path, {**about, **measured}, replies)
  (tmp_path / "eval" / "frames.jsonl").write_text(json.dumps(runs.frames(identity)) + "\n")
  page = report.write_report(tmp_path).read_text()
  assert f"{len(replies)} questions, 1 failed</small>" in page
  assert re.search(f"Failed: {re.escape(identity)}, {TOO_LARGE}\\.", page)
  capsys.readouterr()
  stage._print_table(report_data.read_run(tmp_path).evaluations)
  line = f"before rl: 1 of {len(replies)} questions failed, which counts as wrong; first, "
  said = capsys.readouterr().out
  assert re.search(f"{line}{re.escape(identity)}, {TOO_LARGE}", said)


def test_an_evaluation_during_training_counts_it_as_well(made, capsys):
  _, context, params = made
  config = context.config.copy_and_resolve_references().unlock()
  config.rl.eval_split = "test"
  context = dataclasses.replace(context, config=config.lock())
  identity = next(iter(examples.ExampleSource(context.data, "test"))).id
  found = []
  with futures.ThreadPoolExecutor(1) as thread:
    for wordy_about in ("", identity):
      capsys.readouterr()
      about = _about(context, wordy_about)
      found.append(held_out.HeldOut(context=about, cache=None, thread=thread).evaluate(params))
  whole, some = found
  count = len(examples.ExampleSource(context.data, "test"))
  assert whole["eval/turns"] == 2 and some["eval/turns"] == pytest.approx(2 - 1 / count)
  assert some.keys() == whole.keys()
  line = f"rl: of the held-out questions 1 failed, which counts as wrong; first, {identity}, "
  assert re.search(re.escape(line) + TOO_LARGE, capsys.readouterr().out)


def test_benchmarks_pad_later_turns_as_the_recipe_does(made):
  """Prompts have larger buckets there; later turns are all padded to the largest."""
  _, context, _ = made
  larger = play_items.with_protocol(context, protocols.get("moss_video@recipe"))
  schedules = [
    play.make_schedule(each.config, each.environment, each.processor) for each in (context, larger)
  ]
  assert schedules[0] == schedules[1]
  assert max(larger.config.model.patch_buckets) > schedules[0].patches


def test_a_benchmark_counts_it_as_failed_and_asks_it_again_with_a_larger_bucket(
  made, tmp_path, monkeypatch
):
  """The question itself is long: the first turn has room for it, the second repeats it."""
  nano.use_devices(monkeypatch, 1)
  workdir, context, _ = made
  root = tmp_path / "sets" / "moss_video"
  root.mkdir(parents=True)
  (root / "videos").symlink_to(paths.videos_directory(context.config, workdir))
  questions = [dataclasses.asdict(each) for each in examples.ExampleSource(context.data, "test")]
  fields = ("id", "video", "question", "options", "answer", "problem_type")
  lines = [{name: each[name] for name in fields} for each in questions]
  for each, question in zip(lines, questions, strict=True):
    each["shown"] = [question["shown"]["start"], question["shown"]["end"]]
  long = lines[1]["id"]
  lines[1]["question"] += " " + "0123456789" * 20
  (root / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))

  def ask(out, *more):
    flags = [f"--checkpoint={workdir}", "--before_rl", "--benchmarks=moss_video@recipe"]
    flags += [f"--benchmark_data={root.parent}", f"--out={out}", *more]
    assert main.cli(["vr-jax", "eval", *flags]) == 0
    (row,) = json.loads((out / "table.json").read_text())
    assert row["questions"] == len(lines)
    return reply_store.ReplyStore(directory=out / "moss_video@recipe").read(), row

  some, row = ask(tmp_path / "some")
  assert row["failed"] == 1
  assert re.fullmatch(f"{re.escape(long)}, {TOO_LARGE}", some[long].problem)
  larger = ["--config.turns.observation_buckets=(192,512)"]
  larger += ["--config.turns.episode_buckets=(256,576)"]
  whole, row = ask(tmp_path / "whole", *larger)
  assert row["failed"] == 0 and whole[long].turns == 2
  others = whole.keys() - {long}
  assert {name: some[name] for name in others} == {name: whole[name] for name in others}
  assert len({whole[name].reply for name in others}) == len(others)  # they are sampled
  again, row = ask(tmp_path / "some", *larger)
  assert row["failed"] == 0 and again == whole
