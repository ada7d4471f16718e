"""docs/own_reward.md works as written, with a user's data and functions in another directory."""

import json
import shutil

import pytest

from tests import own_code
from tests.train import nano
from vr_jax import main
from vr_jax.worlds import config as world_config
from vr_jax.worlds import write

SOURCE = nano.ROOT / "examples" / "own_reward" / "my_rewards.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Videos, annotations with a field of the user's own, and the file with the rewards."""
  where = tmp_path_factory.mktemp("own_reward") / "mine"
  world = nano.config().data.simulate.world
  write.write_dataset(
    where, world_config.WorldConfig(**world), videos=12, seed=0, questions_per_video=2
  )
  path = where / "annotations.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  own = [{**line, "must_say": ["<", "a", "e"]} for line in lines]
  path.write_text("".join(json.dumps(line) + "\n" for line in own))
  shutil.copy(SOURCE, where)
  return where


def test_the_page_shows_the_file_that_runs():
  assert own_code.blocks("own_reward.md", "python") == [SOURCE.read_text(encoding="utf-8")]


def test_every_command_of_the_page_works(folder):
  train, export, ask = own_code.commands("own_reward.md")
  table = own_code.succeed(train, folder)
  assert "Rewards · brevity · mean" in table and "Rewards · in words · mean" in table
  lines = [json.loads(line) for line in (folder / "runs/words/metrics.jsonl").open()]
  values = next(line["values"] for line in lines if line["stage"] == "rl")
  assert 0 < values["rewards/brevity/mean"] < 1 and values["rewards/in_words/mean"] > 0
  expected = 0.1 * values["rewards/brevity/mean"] + values["rewards/in_words/mean"]
  expected += values["rewards/accuracy/mean"] + values["rewards/format/mean"]
  assert values["rewards/total/mean"] == pytest.approx(expected, rel=1e-5)
  report = (folder / "runs/words/report.html").read_text(encoding="utf-8")
  assert "brevity" in report
  own_code.succeed(export, folder)
  assert list((folder / "runs/words/export").glob("*.safetensors"))
  assert "One turn" in own_code.succeed(ask, folder)
  _a_mistake_is_a_line(folder, train)


def _a_mistake_is_a_line(folder, train):
  """A run resumes with a function that fails on the scoring thread, in the middle of a step."""
  (folder / "my_rewards.py").write_text(
    "def brevity(replies, examples):\n  return [1 / 0 for _ in replies]\n"
    "def in_words(replies, examples):\n  return [0.0 for _ in replies]\n"
  )
  words = [word for word in train if not word.startswith("--workdir")]
  done = own_code.run([*words, "--workdir=runs/words", "--mode=rl", "--config.rl.steps=3"], folder)
  assert done.returncode == 2, done.stderr
  (line,) = [line for line in done.stderr.splitlines() if line.startswith("vr-jax: ")]
  assert "my_rewards.py:brevity: example " in line and "ZeroDivisionError" in line
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
  ("rewards", "says"),
  [
    ('("accuracy","nice")', "config.env.rewards=nice: no such reward; one of accuracy, format"),
    ('("accuracy","none.py:f")', "none.py:f: no such file"),
    ('("accuracy","my_rewards.py:short")', "my_rewards.py has no short"),
    ('("accuracy","my_rewards.py:brevity*much")', "behind the * stands no number"),
    ('("accuracy","accuracy*2")', "there is a reward accuracy already"),
    ("()", "config.env.rewards"),
    ('("my_rewards.py:total",)', "total is the name of the sum"),
  ],
)
def test_a_reward_that_is_not_to_be_had_is_one_line(tmp_path, monkeypatch, capsys, rewards, says):
  (tmp_path / "my_rewards.py").write_text(SOURCE.read_text() + "total = brevity\n")
  monkeypatch.chdir(tmp_path)
  words = ["vr-jax", "--config=grpo:tiny", "--workdir=x", f"--config.env.rewards={rewards}"]
  assert main.cli(words) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert says in line
