"""`vr-jax ask` about a run's own data: it shows what evaluation showed, and replies alike."""

import json
import pathlib
import shlex
import shutil
import types

import jax
import numpy as np
import pytest

from tests.data import annotation_files, videos
from tests.train import nano
from vr_jax import ask, errors, main, records
from vr_jax.data import ingest
from vr_jax.eval import ask_command
from vr_jax.rollout import session as session_lib
from vr_jax.train import asked_clip, paths

EVALUATION = {"eval__examples": 6, "eval__report_samples": 6, "eval__blind": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run that has evaluated its policy on six held-out questions."""
  workdir = tmp_path_factory.mktemp("asked") / "run"
  config = nano.config(**EVALUATION, eval__shuffled_frames=False)
  with pytest.MonkeyPatch.context() as patched:
    nano.use_devices(patched, 1)
    context, params = nano.untrained_run(config, workdir)
    main.run(config, workdir, "eval")
  lines = (workdir / "eval" / "before_rl.jsonl").read_text(encoding="utf-8").split("\n")
  samples = [json.loads(line) for line in lines if line]
  return types.SimpleNamespace(workdir=workdir, context=context, params=params, samples=samples)


def _open(run, video, question="Will it rain?", options=(), **more):
  config = run.context.config
  return asked_clip.open_clip(
    video, question, options=options, config=config, workdir=run.workdir, **more
  )


def _file(run, video):
  return paths.videos_directory(run.context.config, run.workdir) / video


def test_the_command_of_a_report_gives_the_reply_of_the_evaluation(run, capsys, monkeypatch):
  nano.use_devices(monkeypatch, 1)
  for sample in run.samples[:3]:
    asked = {name: sample[name] for name in ("video", "question", "options", "problem_type")}
    command = ask_command.make(run.workdir, "before_rl", **asked)
    assert command is not None
    assert main.cli(shlex.split(command)) == 0
    out = capsys.readouterr().out
    assert f"as in question {sample['id']} of the run's test split; masked: 8 to 10 s" in out
    assert "seconds shown: 0 to 8, " in out
    assert errors.printable(sample["reply"]) in out


def _prompt_of_session(context, params, clip, monkeypatch):
  """The prompt that a session samples from."""
  prompts, play = [], session_lib.play_lib.play

  def spied(graphdef, params, prompt, *rest, **more):
    prompts.append(prompt)
    return play(graphdef, params, prompt, *rest, **more)

  with monkeypatch.context() as patched:
    patched.setattr(session_lib.play_lib, "play", spied)
    list(ask.session(context, params, clip.pool).play(clip.example))
  (prompt,) = prompts
  return prompt


def _assert_same_prompts(context, params, workdir, monkeypatch):
  """What a session reads is, bit for bit, what evaluation reads of each question of the data."""
  compared = 0
  for batch in context.builder.read("test", 1, repeat=False):
    (item,) = batch.items
    video = paths.videos_directory(context.config, workdir) / item.example.video
    clip = asked_clip.open_clip(
      video,
      item.example.question,
      options=item.example.options,
      problem_type=item.example.problem_type,
      config=context.config,
      workdir=workdir,
    )
    assert clip.example == item.example
    np.testing.assert_array_equal(clip.pool.timestamps, item.clip.timestamps)
    prompt = _prompt_of_session(context, params, clip, monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, prompt, batch.prompt)
    compared += 1
  assert compared >= 4


def test_ask_reads_what_evaluation_reads_to_the_bit(run, monkeypatch):
  _assert_same_prompts(run.context, run.params, run.workdir, monkeypatch)


def test_ask_reads_what_evaluation_reads_to_the_bit_with_several_turns(tmp_path, monkeypatch):
  nano.use_devices(monkeypatch, 1)
  config = nano.config("configs/video_mtr.py", **nano.SHORT_TURNS)
  context, params = nano.untrained_run(config, tmp_path)
  _assert_same_prompts(context, params, tmp_path, monkeypatch)


def test_a_question_of_the_data_gets_its_options_only_where_none_are_asked_for(run):
  questions = {}
  for sample in run.samples:
    questions.setdefault((sample["video"], sample["question"]), []).append(sample)
  ((video, question), samples) = next(
    (key, found) for key, found in questions.items() if len({len(s["options"]) for s in found}) == 2
  )
  plain, choice = sorted(samples, key=lambda sample: len(sample["options"]))
  assert _open(run, _file(run, video), question).example.id == plain["id"]
  lettered = tuple(choice["options"])
  assert _open(run, _file(run, video), question, lettered).example.id == choice["id"]
  typed = _open(run, _file(run, video), question, problem_type=plain["problem_type"])
  assert typed.example.id == plain["id"]
  own = _open(run, _file(run, video), question, ("A. pink", "B. grey")).example
  assert (own.id, own.options, own.problem_type) == (
    "question",
    ("A. pink", "B. grey"),
    "multiple choice",
  )


def test_a_video_of_the_data_is_known_by_its_frames_its_path_or_its_name(run, tmp_path):
  video = run.samples[0]["video"]
  copy = shutil.copy(_file(run, video), tmp_path / "copy.mp4")
  name = pathlib.Path(video)
  assert not name.exists()
  for path in (copy, _file(run, video), name):
    clip = _open(run, path)
    assert (clip.example.shown.end, len(clip.pool)) == (8, 8)
    assert clip.origin == "as the run's questions about this video"
    assert clip.example.problem_type == "free-form"
    assert clip.pool.timestamps.tolist() == list(range(8))
  faster = run.context.config.copy_and_resolve_references()
  faster.data.fps = 2.0  # the file's frames are then others than the data's
  config = types.SimpleNamespace(context=types.SimpleNamespace(config=faster), workdir=run.workdir)
  clip = _open(config, _file(run, video))
  assert clip.example.shown.end == 8
  assert "the file's frames are not those of the data" in clip.origin


def test_another_video_is_shown_whole_or_as_the_flag_says(run, tmp_path):
  video = videos.write(tmp_path / "other.mp4")
  clip = _open(run, video)
  assert (clip.example.shown.start, clip.example.shown.end) == (0, clip.duration)
  assert clip.origin == "all of it"
  span = records.Span(start=2.0, end=10.0)
  clip = _open(run, video, shown=span)
  assert clip.pool.timestamps[[0, -1]].tolist() == [2, 9]
  assert clip.origin == "as --shown says"
  known = _open(run, _file(run, run.samples[0]["video"]), shown=span)
  assert (known.example.shown, known.origin) == (span, "as --shown says")


@pytest.mark.parametrize("span", [(9.0, 12.0), (10.5, 11.0)])
def test_a_span_that_is_not_in_the_video_is_refused(run, tmp_path, span):
  video = videos.write(tmp_path / "other.mp4")
  with pytest.raises(errors.InputError, match=r"--shown=.*other\.mp4, which has 10 s"):
    _open(run, video, shown=records.Span(start=span[0], end=span[1]))


@pytest.mark.parametrize("text", ["8", "0,8,9", "a,b", "8,0", "-1,8", "0,inf", "0,nan"])
def test_a_span_that_is_none_is_refused(run, text, tmp_path):
  with pytest.raises(errors.InputError, match="--shown="):
    ask.parse(["ask", "a.mp4", "Who?", f"--checkpoint={run.workdir}", f"--shown={text}"])


def test_where_the_data_shows_several_parts_of_a_video_one_is_chosen(tmp_path):
  videos.write(tmp_path / "videos" / "a.mp4")
  common = {"states": None, "masked": None, "relevant": None, "steps": None}
  annotations = annotation_files.write(
    tmp_path / "a.jsonl",
    annotation_files.record(id="early", shown=[0, 4], question="Who?", **common),
    annotation_files.record(id="late", shown=[4, 10], question="Who?", **common),
  )
  config = nano.config(
    data__frames=2, data__simulate__videos=0, data__videos=str(tmp_path / "videos")
  )
  shards = paths.shards_directory(config, tmp_path)
  shards.parent.mkdir()
  options = ingest.IngestConfig(fps=1.0, rule=paths.sampling_rule(config.data))
  ingest.ingest(tmp_path / "videos", annotations, shards, options)
  run = types.SimpleNamespace(context=types.SimpleNamespace(config=config), workdir=tmp_path)
  video = tmp_path / "videos" / "a.mp4"
  with pytest.raises(errors.InputError, match=r"choose one with --shown=: 0,4, 4,10"):
    _open(run, video)
  with pytest.raises(errors.InputError, match="asks this question 2 times"):
    _open(run, video, "Who?")
  late = records.Span(start=4.0, end=10.0)
  assert _open(run, video, "Who?", shown=late).example.id == "late"
  assert _open(run, video, shown=late).example.shown == late


def test_a_command_is_quoted_for_a_shell():
  asked = {
    "video": "a b/clip's.mp4",
    "question": 'Who says "no"; $(exit)?',
    "options": ("A. red, green", "B. it's blue"),
    "problem_type": "multiple choice",
  }
  command = ask_command.make(pathlib.Path("runs/my run"), "after_rl", **asked)
  assert command is not None
  name, mode, *words, options = shlex.split(command)
  assert [name, mode] == ["vr-jax", "ask"]
  assert words == [asked["video"], asked["question"], "--checkpoint=runs/my run"]
  assert options == '--options="A. red, green",B. it\'s blue'
  assert ask_command.make(nano.ROOT, "step_20", **asked) is None
