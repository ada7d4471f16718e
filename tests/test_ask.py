"""`vr-jax ask`: an episode in a terminal, a recipe with one turn, and one line for each mistake."""

import json
import re
import shutil

import pytest

from tests import untrained
from tests.data import videos
from tests.train import nano
from vr_jax import ask, main
from vr_jax.models.qwen2_5_vl import tokenizer as tokenizer_lib
from vr_jax.train import config_changes, console, export_stage, paths, run_context
from vr_jax.train import workdir as workdir_lib

OPTIONS = "--options=red,blue"


def _of_turns():
  """A recipe of two turns, which shows eight frames of the tests' video first."""
  return nano.config(
    "configs/video_mtr.py",
    env__turns=2,
    env__frame_budget=16,
    data__fps=1.0,
    data__frames=64,
    model__prefix_buckets=(320,),
    model__frame_buckets=(8,),
  )


@pytest.fixture(scope="module")
def video(tmp_path_factory):
  return videos.write(tmp_path_factory.mktemp("video") / "clip.mp4")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of several turns."""
  return untrained.make_run(tmp_path_factory.mktemp("mtr") / "run", _of_turns())


def test_turns_are_printed_with_their_frames_and_the_answer_or_none(run, video):
  words = ["ask", str(video), "Which colour?", f"--checkpoint={run}", OPTIONS]
  process = nano.start([*words, "--config.eval.temperature=1.0"])
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  head, *turns = re.split(r"\nTurn ", out)
  shown = "seconds shown: 0 to 10, all of it"
  assert head == f"{run}, sft step 3 · {video}: 10 s, 10 frames\n{shown}\n"
  assert [turn[:6] for turn in turns] == ["1 of 2", "2 of 2"][: len(turns)]
  shown = "0 (0 s), 1 (1 s), 2 (2 s), 3 (3 s), 5 (5 s), 6 (6 s), 7 (7 s), 9 (9 s)"
  assert turns[0].splitlines()[1] == f"shown: frames {shown}"
  assert out.splitlines()[-1].startswith(("Answer: ", "No answer."))


def test_a_recipe_of_a_single_reply_answers_in_one_turn_also_from_a_hugging_face_directory(
  tmp_path, capsys, monkeypatch
):
  config = nano.config()
  run = untrained.make_run(tmp_path / "run", config)
  export_stage.export(config, run)
  capsys.readouterr()
  where = ["--checkpoint", str(run / "export"), f"--config={nano.ROOT / nano.RECIPE}:tiny"]
  short = videos.write(tmp_path / "short.mp4", frames=40)
  monkeypatch.setattr(console, "MINUTE", 0.04)
  monkeypatch.setattr(console, "_ANNOUNCE_AFTER", 0.0)
  assert main.cli(["vr-jax", "ask", str(short), "Which colour?", OPTIONS, *where]) == 0
  out, err = capsys.readouterr()
  for waited in ("reading the video", "loading the weights", "waiting for the reply", "compiling"):
    assert f"vr-jax: {waited}" in err
    assert waited not in out
  told = "5 s, 4 frames, fewer than the 8 of a clip"
  assert out.startswith(f"{run / 'export'} · {short}: {told}\n")
  assert "\nOne turn\nshown: frames 0 (0 s), 1 (1 s), 2 (3 s), 3 (4 s)\n" in out
  assert out.splitlines()[-1].startswith(("Answer: ", "No answer."))


def test_the_checkpoint_before_a_damaged_one_is_asked_and_exported(run, tmp_path, capsys):
  workdir = tmp_path / "run"
  shutil.copytree(run, workdir)
  stage = workdir / "checkpoints" / "sft"
  shutil.copytree(stage / "3", stage / "5")
  path = max((stage / "5").rglob("d/*"), key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  config = workdir_lib.config_of(workdir)
  context = run_context.make_run_context(config, workdir, judged=False, read=False)
  assert ask.load_policy(context, workdir, before_rl=False)[1] == f"{workdir}, sft step 3"
  export_stage.export(config, workdir)
  assert json.loads((workdir / "export" / export_stage.RECORD).read_text())["step"] == 3
  said = capsys.readouterr().err
  assert said.count("is damaged: its checksum differs; the one before is used") == 1, said
  assert sorted(path.name for path in stage.iterdir()) == ["3", "5"]


def _fails(capsys, *words) -> str:
  """The one line that a command ends with."""
  assert main.cli(["vr-jax", "ask", *map(str, words)]) == 2
  err = capsys.readouterr().err.splitlines()
  lines = [line for line in err if line != "vr-jax: reading the video"]  # on a slow machine
  assert len(lines) == 1, lines
  assert lines[0].startswith("vr-jax: ")
  return lines[0]


def test_a_mistake_is_named_in_one_line(run, video, tmp_path, capsys):
  broken, here = tmp_path / "broken.mp4", f"--checkpoint={run}"
  broken.write_bytes(video.read_bytes()[:2000])
  recipe = f"--config={nano.ROOT}/configs/video_mtr.py"
  for words, says in (
    ((), "needs a video and a question"),
    ((video, here), "needs a video and a question"),
    ((video, "Who?", "Why?", here), "needs a video and a question"),
    ((video, "Who?"), "needs --checkpoint"),
    ((tmp_path / "no.mp4", "Who?", here), "no.mp4: no such file"),
    ((broken, "Who?", here), "broken.mp4: cannot be decoded"),
    ((video, "Who?", "--checkpoint=nowhere"), "--checkpoint=nowhere: no such directory"),
    ((video, "Who?", f"--checkpoint={tmp_path}"), "has no config.json yet"),
    ((video, "Who?", here, "--seed=many"), "seed"),
    ((video, "Who?", here, "--sed=1"), "--sed=1: not a flag of vr-jax ask; is --seed meant?"),
    ((video, "Who?", here, "--workdir=x"), "which are --before_rl, --checkpoint, --options, --pro"),
    ((video, "Who?", here, "-x"), "-x: not a flag of vr-jax ask"),
    ((video, "Who?", here, "--options=in"), "--options=in: needs two or more answers"),
    ((video, "Who?", here, "--options="), "--options=: needs two or more answers"),
    ((video, "Who?", here, "--problem_type=essay"), "problem_type"),
    ((video, "Who?", here, "--config.eval.temprature=1"), "nearest is config.eval.temperature"),
    ((video, "Who?", here, "--config.eval.temperature=-1.0"), "config.eval.temperature"),
    ((video, "Who?", "--config=configs/none.py"), "configs/none.py: no such file"),
    ((video, "Who?", f"{recipe}:tiny", here), "a run has a config; leave out --config"),
    ((video, "Who?", f"{recipe}:9b"), "9b: no such size"),
    ((video, "Who?", f"{recipe}:tiny"), "without pretrained weights"),
    ((video, "Who?", f"{recipe}:3b", f"--checkpoint={tmp_path}"), str(tmp_path)),
  ):
    assert says in _fails(capsys, *words), words


def test_a_run_without_checkpoint_is_named(tmp_path, video, capsys):
  run = tmp_path / "run"
  workdir_lib.claim(run, nano.config(), "data")
  where = paths.tokenizer_path(nano.config(), run)
  where.parent.mkdir(parents=True)
  tokenizer_lib.train_tokenizer([], 448).save(str(where))
  says = _fails(capsys, video, "Who?", f"--checkpoint={run}")
  assert "checkpoints: holds no complete checkpoint" in says


def test_options_get_letters_where_they_have_none(run, video):
  for given, shown in (
    ("red,blue", ("A. red", "B. blue")),
    ("B. red,A. blue", ("B. red", "A. blue")),
    ("A. red,blue", ("A. A. red", "B. blue")),
  ):
    asked = ask.parse(["ask", str(video), "Who?", f"--options={given}", f"--checkpoint={run}"])
    assert (asked.options, asked.problem_type) == (shown, "multiple choice")


def test_a_config_that_was_written_is_read_as_it_was(run):
  assert workdir_lib.config_of(run).to_dict() == _of_turns().to_dict()


@pytest.mark.parametrize("block, field", [("log", "hang_timeout"), ("turns", "decode_chunk")])
def test_a_config_of_a_version_without_a_field_gets_its_default(tmp_path, block, field):
  config = _of_turns().copy_and_resolve_references().unlock()
  del config[block][field]
  workdir_lib.claim(tmp_path, config, "data")
  default = config_changes.declared_fields("video_mtr")[f"{block}.{field}"].default
  assert workdir_lib.config_of(tmp_path)[block][field] == default
