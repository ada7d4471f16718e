"""`vr-jax eval`: a run's policy on made-up benchmarks, from files to the table."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from benchmarks import benchmark_files
from launch import local
from tests.data import videos
from tests.train import nano
from vr_jax import evaluate_benchmarks, main
from vr_jax.data.benchmark_sets import mvbench, registry, video_mmmu
from vr_jax.errors import InputError
from vr_jax.eval import report_data
from vr_jax.eval.benchmarks import play_items, policy_weights, protocols, reply_store
from vr_jax.train import export_stage, paths, run_context
from vr_jax.train import workdir as workdir_lib


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with held-out questions, whose policy has random weights, and its evaluation."""
  workdir = tmp_path_factory.mktemp("run")
  families = {
    "data__simulate__world__families": ("choice",),
    "data__simulate__questions_per_video": 1,
    "data__test_fraction": 0.5,
  }
  nano.untrained_run(nano.config(eval__examples=0, eval__batch_size=8, **families), workdir)
  assert main.cli(["vr-jax", f"--workdir={workdir}", "--mode=eval"]) == 0
  return workdir


@pytest.fixture(scope="module")
def sets(run, tmp_path_factory):
  """The run's held-out questions as MOSS-Video's, and a small MVBench."""
  root = tmp_path_factory.mktemp("sets")
  evaluated = [json.loads(line) for line in (run / "eval" / "before_rl.jsonl").open()]
  videos_directory = paths.videos_directory(workdir_lib.config_of(run), run)
  (root / "moss_video").mkdir()
  (root / "moss_video" / "videos").symlink_to(videos_directory)
  fields = ("id", "video", "question", "options", "answer", "problem_type", "shown")
  (root / "moss_video" / "test.jsonl").write_text(
    "".join(json.dumps({name: reply[name] for name in fields}) + "\n" for reply in evaluated)
  )
  (root / "mvbench" / "json").mkdir(parents=True)
  for task in mvbench._TASKS:
    absent = {"video": "absent.mp4", "question": "?", "candidates": ["a", "b"], "answer": "a"}
    bounds = {"start": 1.0, "end": 3.0}
    (root / "mvbench" / "json" / f"{task}.json").write_text(json.dumps([absent | bounds]))
  folders = {"action_sequence": "star/Charades_v1_480", "action_count": "perception/videos"}
  for task, folder in folders.items():
    records = [
      {
        "video": f"{number}.mp4",
        "question": "Which colour is the square at the end?",
        "candidates": ["red", "green", "blue"],
        "answer": ("red", "green", "blue")[number],
        **({"start": 1.0, "end": 3.0} if task == "action_sequence" else {}),
      }
      for number in range(3)
    ]
    (root / "mvbench" / "json" / f"{task}.json").write_text(json.dumps(records))
    for number in range(3):
      videos.write(root / "mvbench" / "video" / folder / f"{number}.mp4", frames=40, size=64)
  return root


def _eval(*words) -> int:
  return main.cli(["vr-jax", "eval", *map(str, words)])


def test_a_recipe_asks_as_the_runs_own_evaluation_does(run, sets, tmp_path, capsys):
  flags = ["--benchmarks=moss_video@recipe", f"--benchmark_data={sets}", f"--out={tmp_path}"]
  assert _eval(f"--checkpoint={run}", "--before_rl", *flags) == 0
  lines = [json.loads(line) for line in (run / "eval" / "before_rl.jsonl").open()]
  expected = {
    line["id"]: (line["reply"], line["tokens"], line["truncated"], line["times"]) for line in lines
  }
  found = reply_store.ReplyStore(directory=tmp_path / "moss_video@recipe").read()
  assert {
    name: (each.reply, each.tokens, each.truncated, list(each.times))
    for name, each in found.items()
  } == expected
  (row,) = json.loads((tmp_path / "table.json").read_text())
  assert row["questions"] == len(expected)
  assert "moss_video@recipe" in capsys.readouterr().out


def test_a_run_goes_on_in_any_number_of_processes_with_the_same_replies(run, sets, tmp_path):
  """Six questions in batches of two a process: the second process has one batch, the first two."""
  flags = [f"--checkpoint={run}", "--before_rl", "--benchmarks=moss_video@recipe"]
  flags += [f"--benchmark_data={sets}", f"--out={tmp_path}", "--config.eval.batch_size=4"]
  flags += ["--config.eval.temperature=1.0"]
  store = reply_store.ReplyStore(directory=tmp_path / "moss_video@recipe")
  first, second = (store.directory / f"replies-0000{index}.jsonl" for index in range(2))

  def start(*each_flags):
    together = [nano.start(["eval", *flags, *each]) for each in each_flags]
    said = [process.communicate(timeout=300) for process in together]
    assert [process.returncode for process in together] == [0] * len(together), said
    return [out for out, _ in said]

  start(())
  alone = store.read()
  assert len({each.reply for each in alone.values()}) == 6  # they are sampled
  _keep_lines(first, 1)
  two = [f"--coordinator_address=localhost:{local.free_port()}", "--num_processes=2"]
  said = start([*two, "--process_id=0"], [*two, "--process_id=1"])
  assert store.read() == alone
  assert [path.read_text().count("\n") for path in (first, second)] == [1 + 4, 2]
  assert [out.count("moss_video@recipe test") for out in said] == [1, 0]
  _keep_lines(first, 2)
  _keep_lines(second, 1)
  start(())
  assert store.read() == alone


def _keep_lines(path, count):
  path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:count]))


def test_a_question_that_fails_does_not_change_the_replies_to_others(run, sets, tmp_path):
  flags = [f"--checkpoint={run}", "--before_rl", "--benchmarks=moss_video@recipe"]
  flags += ["--config.eval.temperature=1.0"]
  copy = tmp_path / "sets" / "moss_video"
  shutil.copytree(sets / "moss_video", copy, symlinks=False)
  assert _eval(*flags, f"--benchmark_data={copy.parent}", f"--out={tmp_path / 'whole'}") == 0
  damaged = min(json.loads(line)["video"] for line in (copy / "test.jsonl").open())
  (copy / "videos" / damaged).write_bytes(b"nothing")
  assert _eval(*flags, f"--benchmark_data={copy.parent}", f"--out={tmp_path / 'damaged'}") == 0
  whole, some = (
    reply_store.ReplyStore(directory=tmp_path / name / "moss_video@recipe").read()
    for name in ("whole", "damaged")
  )
  failed = {name for name, each in some.items() if each.problem}
  assert 0 < len(failed) < len(whole)
  assert all(some[name] == whole[name] for name in whole.keys() - failed)


def test_what_was_sampled_is_kept_when_the_next_batch_fails(run, sets, tmp_path, monkeypatch):
  flags = [f"--checkpoint={run}", "--before_rl", "--benchmarks=moss_video@recipe"]
  flags += [f"--benchmark_data={sets}", f"--out={tmp_path}", "--config.eval.batch_size=2"]
  flags += ["--config.mesh=(1,2,2,2)"]
  store = reply_store.ReplyStore(directory=tmp_path / "moss_video@recipe")
  sample = play_items.sample_chunk

  def fails(context, params, protocol, batch, number):
    if number == 2:
      raise InputError("no more")
    return sample(context, params, protocol, batch, number)

  monkeypatch.setattr(play_items, "sample_chunk", fails)
  assert _eval(*flags) == 2
  known = store.read()
  assert len(known) == 4
  monkeypatch.setattr(play_items, "sample_chunk", sample)
  assert _eval(*flags) == 0
  assert len(found := store.read()) == 6 and known.items() <= found.items()


def test_videos_that_come_later_do_not_change_the_replies_to_others(run, sets, tmp_path):
  flags = [f"--checkpoint={run}", "--before_rl", "--benchmarks=moss_video@recipe"]
  flags += ["--config.eval.temperature=1.0"]
  copy = tmp_path / "sets" / "moss_video"
  shutil.copytree(sets / "moss_video", copy, symlinks=False)
  flags += [f"--benchmark_data={copy.parent}"]
  stores = []
  for name in ("whole", "late"):
    flags_of = [*flags, f"--out={tmp_path / name}"]
    stores.append(reply_store.ReplyStore(directory=tmp_path / name / "moss_video@recipe"))
    if name == "late":
      late = sorted(json.loads(line)["video"] for line in (copy / "test.jsonl").open())[0]
      (copy / "videos" / late).rename(tmp_path / "late.mp4")
      assert _eval(*flags_of) == 0
      known = stores[1].read()
      (tmp_path / "late.mp4").rename(copy / "videos" / late)
    assert _eval(*flags_of) == 0
  whole, some = (store.read() for store in stores)
  assert 0 < len(known) < len(whole) and len({each.reply for each in whole.values()}) == len(whole)
  assert some == whole


@pytest.fixture(scope="module")
def asked(run, sets, tmp_path_factory):
  """The --out of two protocols of MVBench."""
  out = tmp_path_factory.mktemp("asked")
  assert _eval(*_mvbench(run, sets), f"--out={out}") == 0
  return out


def _mvbench(run, sets) -> list[str]:
  names = "--benchmarks=mvbench@official,mvbench@unclipped"
  return [f"--checkpoint={run}", "--before_rl", f"--benchmark_data={sets}", names]


def test_an_official_protocol_is_asked_scored_and_resumed(run, sets, asked, tmp_path, capsys):
  shutil.copytree(asked, tmp_path, dirs_exist_ok=True)
  store = reply_store.ReplyStore(directory=tmp_path / "mvbench@official")
  replies = store.read()
  assert len(replies) == 6
  bounded = [reply for name, reply in replies.items() if "action_sequence" in name]
  assert len(bounded) == 3
  for reply in bounded:
    assert 1.0 <= min(reply.times) < 1.2 and 2.8 < max(reply.times) < 3.0
    assert (reply.problem, reply.frames) == ("", 16)
  whole = reply_store.ReplyStore(directory=tmp_path / "mvbench@unclipped").read()
  assert max(max(reply.times) for reply in whole.values()) > 4.5
  rows = json.loads((tmp_path / "table.json").read_text())
  assert [row["protocol"] for row in rows] == ["mvbench@official", "mvbench@unclipped"]
  assert {row["questions"] for row in rows} == {6}
  assert all(row["partial"] for row in rows)  # the published set has 4,000 questions
  # A run that was killed: half a line, and one reply less.
  path = store.directory / "replies-00000.jsonl"
  content = path.read_bytes()
  path.write_bytes(content[: content.rindex(b"\n", 0, -1) + 20])
  capsys.readouterr()
  assert _eval(*_mvbench(run, sets), f"--out={tmp_path}") == 0
  assert store.read() == replies
  table = (tmp_path / "table.json").read_text()
  assert _eval("--score_only", *_mvbench(run, sets)[2:], f"--out={tmp_path}") == 0
  assert (tmp_path / "table.json").read_text() == table
  assert capsys.readouterr().out.count("16 x 50176; none") == 4  # 64 x 64 is shown as 224 x 224
  assert "mvbench@official test (partial) & " in (tmp_path / "table.tex").read_text()
  page = (tmp_path / "table.html").read_text()
  assert "mvbench@official test (partial)</th>" in page and "task/Action Count" in page


def test_a_runs_report_shows_its_benchmarks(run, sets):
  flags = [f"--checkpoint={run}", "--before_rl", f"--benchmark_data={sets}"]
  assert _eval(*flags, "--benchmarks=moss_video@recipe") == 0
  assert "moss_video@recipe test (partial)</th>" in (run / "report.html").read_text()
  (run / "benchmarks" / "table.json").write_text('[{"protocol": 3}]')
  with pytest.raises(InputError, match=r"benchmarks/table\.json: is damaged"):
    report_data.read_benchmarks(run)
  shutil.rmtree(run / "benchmarks")


def test_a_missing_or_damaged_video_makes_the_score_partial_or_failed(run, sets, tmp_path, capsys):
  broken = tmp_path / "sets" / "mvbench"
  shutil.copytree(sets / "mvbench" / "json", broken / "json")
  folder = broken / "video" / "perception" / "videos"
  videos.write(folder / "0.mp4", frames=40, size=64)
  (folder / "1.mp4").write_bytes(b"nothing")
  words = [f"--checkpoint={run}", "--before_rl", "--benchmarks=mvbench@official"]
  assert _eval(*words, f"--benchmark_data={broken.parent}", f"--out={tmp_path / 'out'}") == 0
  (row,) = json.loads((tmp_path / "out" / "table.json").read_text())
  assert (row["questions"], row["failed"], len(row["missing"])) == (2, 1, 18 + 3 + 1)
  said = capsys.readouterr()
  assert "22 questions left out: video/" in said.out and " more missing" in said.out
  store = reply_store.ReplyStore(directory=tmp_path / "out" / "mvbench@official")
  assert [each.problem.count("1.mp4") for each in store.read().values() if each.problem] == [1]
  videos.write(folder / "1.mp4", frames=40, size=64)  # and again, with a whole copy of the video
  assert _eval(*words, f"--benchmark_data={broken.parent}", f"--out={tmp_path / 'out'}") == 0
  (row,) = json.loads((tmp_path / "out" / "table.json").read_text())
  assert (row["questions"], row["failed"], len(row["missing"])) == (2, 0, 22)


def test_replies_are_scored_from_annotations_alone_and_videos_may_be_deleted(
  run, sets, asked, tmp_path, capsys
):
  out, videos_kept = tmp_path / "out", tmp_path / "sets"
  shutil.copytree(asked, out)
  shutil.copytree(sets, videos_kept)
  table = json.loads((asked / "table.json").read_text())
  only = tmp_path / "annotations"
  shutil.copytree(sets / "mvbench" / "json", only / "mvbench" / "json")
  flags = ["--score_only", f"--benchmark_data={only}", f"--out={out}"]
  names = "--benchmarks=mvbench@official,mvbench@unclipped"
  assert _eval(*flags, names) == 0
  assert json.loads((out / "table.json").read_text()) == table
  # One video is gone, of whose questions one protocol lacks a reply.
  gone = videos_kept / "mvbench" / "video" / "perception" / "videos" / "0.mp4"
  gone.unlink()
  path = out / "mvbench@unclipped" / "replies-00000.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b"".join(line for line in lines if b"action_count-0" not in line))
  again = [f"--checkpoint={run}", "--before_rl", f"--benchmark_data={videos_kept}", f"--out={out}"]
  assert _eval(*again, names) == 0
  first, second = json.loads((out / "table.json").read_text())
  assert first == table[0]
  assert (second["questions"], second["failed"], len(second["missing"])) == (5, 0, 19)
  assert _eval(*flags, names) == 0
  assert json.loads((out / "table.json").read_text()) == [first, second]
  videos.write(gone, frames=40, size=32)
  assert _eval(*again, names) == 2
  assert "has replies about another video/perception/videos/0.mp4" in capsys.readouterr().err


def test_scores_of_an_interrupted_run_are_partial_and_no_base(sets, asked, tmp_path, capsys):
  shutil.copytree(asked, tmp_path / "cut")
  path = tmp_path / "cut" / "mvbench@official" / "replies-00000.jsonl"
  path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
  flags = ["--score_only", f"--benchmark_data={sets}", "--benchmarks=mvbench@official"]
  assert _eval(*flags, f"--out={tmp_path / 'cut'}") == 0
  assert "2 questions not asked yet; they count as wrong" in capsys.readouterr().out
  (row,) = json.loads((tmp_path / "cut" / "table.json").read_text())
  assert (row["not_asked"], row["failed"], row["partial"]) == (2, 2, True)
  assert _eval(*flags, f"--out={asked}", f"--base={tmp_path / 'cut'}") == 2
  assert "2 questions of mvbench@official were not asked there" in capsys.readouterr().err
  assert _eval(*flags, f"--out={asked}", "--limit=3") == 2
  assert "has replies to other questions" in capsys.readouterr().err


def test_replies_of_other_settings_or_weights_are_not_mixed_in(run, sets, asked, tmp_path, capsys):
  shutil.copytree(asked, tmp_path, dirs_exist_ok=True)
  flags = [*_mvbench(run, sets), f"--out={tmp_path}"]
  assert _eval(*flags, "--config.seed=8") == 2
  assert "has replies with config=" in capsys.readouterr().err
  about = tmp_path / "mvbench@official" / "about.json"
  content = json.loads(about.read_text())
  others = content["config"] | {"data.sample_fps": content["config"]["data.sample_fps"] + 1}
  about.write_text(json.dumps(content | {"config": others}))
  assert _eval(*flags) == 2
  assert "has replies with config=" in capsys.readouterr().err
  about.write_text(json.dumps(content | {"weights": "others"}))
  assert _eval(*flags) == 2
  assert "has replies with weights='others'" in capsys.readouterr().err


def test_weights_of_one_size_with_other_bytes_have_another_fingerprint(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "model.safetensors").write_bytes(bytes(100_000))
  before = policy_weights.fingerprint(tmp_path / "a")
  assert before == policy_weights.fingerprint(tmp_path / "a")
  (tmp_path / "a" / "model.safetensors").write_bytes(bytes(99_999) + b"1")
  assert policy_weights.fingerprint(tmp_path / "a") != before


def test_a_change_has_an_interval_and_a_p_value(sets, asked, tmp_path):
  shutil.copytree(asked, tmp_path, dirs_exist_ok=True)
  flags = [f"--benchmark_data={sets}", "--benchmarks=mvbench@official", f"--base={asked}"]
  assert _eval("--score_only", *flags, f"--out={tmp_path}") == 0
  (row,) = json.loads((tmp_path / "table.json").read_text())
  change = row["changes"]["accuracy"]
  assert (change["change"], change["p_value"], row["p_holm"]) == (0.0, 1.0, 1.0)
  assert np.isfinite([change["low"], change["high"]]).all()


def test_one_command_says_how_much_of_what_was_open_the_lectures_add(tmp_path, capsys):
  """Five lectures. Right: 4 of perception, 2 of comprehension, 3 with the lecture, 1 without."""
  lectures = [f"dev_Math_{number}" for number in range(1, 6)]
  root, out = tmp_path / "sets" / "video_mmmu", tmp_path / "out"
  for track, record in benchmark_files.VIDEO_MMMU.items():
    records = [record | {"id": lecture} for lecture in lectures]
    benchmark_files.write_parquet(root / track / "test-00000-of-00001.parquet", records)
  assert video_mmmu.extract_images(root) == 5
  for lecture in lectures:
    benchmark_files.write_bytes(root / "Science" / f"{lecture}.mp4")
    benchmark_files.write_bytes(root / "question_only" / f"{lecture}_image.mp4")
  items = registry.read_items("video_mmmu", root, "knowledge_gain").items
  right = {"perception": 4, "comprehension": 2, "adaptation": 3, "question_only": 1}
  said = {"perception": "AB", "comprehension": "BA", "adaptation": ("3.50", "4")}
  said["question_only"] = said["adaptation"]
  store = reply_store.ReplyStore(directory=out / "video_mmmu@official")
  store.begin({"questions": evaluate_benchmarks._hash_questions(items)})
  with store.writer(0) as writer:
    for item in items:
      track, lecture = item.id.split("-")
      is_wrong = lectures.index(lecture) >= right[track]
      reply = reply_store.StoredReply(id=item.id, reply=said[track][is_wrong])
      failed = item.id == "question_only-dev_Math_5"
      writer.add([dataclasses.replace(reply, problem="no video") if failed else reply])
  last = reply
  flags = ["--score_only", f"--benchmark_data={root.parent}", f"--out={out}"]
  flags += ["--benchmarks=video_mmmu@official", "--split=video_mmmu:knowledge_gain"]
  assert _eval(*flags) == 0
  (row,) = json.loads((out / "table.json").read_text())
  values = {name: each["value"] for name, each in row["values"].items()}
  assert values["overall"] == pytest.approx((80 + 40 + 60) / 3)
  assert values["knowledge_gain"] is None  # a question alone failed
  assert values["accuracy"] == pytest.approx(100 * 9 / 15)
  assert (row["questions"], row["failed"], row["unparsed"]) == (20, 1, 0)
  printed = capsys.readouterr().out
  assert "video_mmmu@official knowledge_gain: knowledge_gain undefined\n" in printed
  assert "n counts 20 questions, overall of them 15; the other 5 (1 failed) are in" in printed
  with store.writer(1) as writer:
    writer.add([dataclasses.replace(last, id="question_only-dev_Math_5")])
  assert _eval(*flags) == 0
  (row,) = json.loads((out / "table.json").read_text())
  gain = row["values"]["knowledge_gain"]["value"]
  assert gain == pytest.approx(100 * (60 - 20) / (100 - 20))
  assert "video_mmmu@official knowledge_gain: knowledge_gain 50.0 (" in capsys.readouterr().out


def test_an_export_and_a_hugging_face_directory_are_asked_as_the_run(run, sets, asked, tmp_path):
  config = workdir_lib.config_of(run)
  with config.unlocked():
    config.export.directory, config.export.dtype = str(tmp_path / "export"), "float32"
  export_stage.export(config, run)
  (tmp_path / "export").rename(tmp_path / "plain")
  export_stage.export(config, run)
  (tmp_path / "plain" / export_stage.RECORD).unlink()  # as others write such a directory
  expected = reply_store.ReplyStore(directory=asked / "mvbench@official")
  weights = {expected.about()["weights"]}
  for name in ("export", "plain"):
    words = [f"--checkpoint={tmp_path / name}", f"--config={nano.ROOT / nano.RECIPE}:tiny"]
    words += ["--config.eval.batch_size=8", "--benchmarks=mvbench@official"]
    out = tmp_path / f"{name}_scores"
    assert _eval(*words, f"--benchmark_data={sets}", f"--out={out}") == 0
    store = reply_store.ReplyStore(directory=out / "mvbench@official")
    assert store.read() == expected.read()
    assert str(tmp_path / name) in store.about()["policy"]
    weights.add(store.about()["weights"])
  assert len(weights) == 3 and "" not in weights


@pytest.mark.parametrize(
  ("words", "complaint"),
  [
    (["--benchmarks=mvbench@offical"], "mvbench@official"),
    (["--benchmarks=mvbench"], "mvbench@"),
    ([], "needs --benchmarks"),
    (["--benchmarks=mvbench@official", "--split=mlvu:test"], "--split=mlvu:test"),
    (["--benchmarks=mlvu@official"], "mlvu"),
    (["--benchmarks=mvbench@easy_video_r1"], "replies have up to 4096 tokens"),
    (["--benchmarks=mvbench@official", "--base=nowhere"], "--base=nowhere: no such directory"),
    (["--benchmarks=mvbench@official", "extra"], "extra: vr-jax eval takes flags alone"),
    (["--benchmarks=mvbench@official", "--score_only"], "about.json: no such file"),
  ],
)
def test_what_is_wrong_is_one_line(run, sets, tmp_path, capsys, words, complaint):
  flags = [f"--checkpoint={run}", f"--benchmark_data={sets}", f"--out={tmp_path}"]
  assert _eval(*flags, *words) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
  assert complaint in line


@pytest.mark.parametrize("name", ["mvbench@easy_video_r1", "mvbench@video_r1", "mvbench@official"])
def test_a_protocol_is_sampled_as_it_says_whatever_the_recipe_samples_from(run, name):
  config = workdir_lib.config_of(run)
  with config.unlocked():
    config.rl.top_p, config.rl.top_k, config.rl.min_p = 0.5, 7, 0.3
  context, protocol = run_context.make_run_context(config, run), protocols.get(name)
  decoding = context.decoding(**play_items._decoding(context, protocol))
  told = dataclasses.asdict(protocol.decoding) | {"min_p": 0.0}
  told["max_new_tokens"] = told.pop("max_tokens")
  assert {field: getattr(decoding, field) for field in told} == told
  recipe = play_items._decoding(context, protocols.get("mvbench@recipe"))
  decoding = context.decoding(**recipe)
  assert (decoding.top_p, decoding.top_k, decoding.min_p) == (0.5, 7, 0.3)


def test_all_protocols_are_listed(capsys):
  assert _eval("--benchmarks=list") == 0
  out = capsys.readouterr().out
  assert "mvbench@official" in out and "vsi_bench@video_r1" in out
