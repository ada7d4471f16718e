"""docs/own_recipe.md, as it is written, with a recipe of a user in a directory of its own."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests import own_code
from tests.train import nano
from vr_jax import errors, main, recipe_config

SOURCE = nano.ROOT / "examples" / "own_recipe" / "my_recipe"
FILES = ("config.py", "environment.py", "times.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  where = tmp_path_factory.mktemp("own_recipe")
  shutil.copytree(SOURCE, where / "my_recipe")
  return where


def test_the_page_shows_the_files_that_run():
  shown = own_code.blocks("own_recipe.md", "python")
  assert shown == [(SOURCE / name).read_text(encoding="utf-8") for name in FILES]


def test_every_command_of_the_page_works(folder):
  train, export, ask = own_code.commands("own_recipe.md")
  table = own_code.succeed(train, folder)
  assert "Times named" in table
  written = json.loads((folder / "runs/timed/config.json").read_text())["config"]
  assert written["env"]["wanted"] == 3
  assert written["recipe"] == f"{folder.resolve()}/my_recipe/environment.py:Timed"
  evaluation = json.loads((folder / "runs/timed/eval/after_rl.json").read_text())
  assert {"accuracy", "named_times", "accuracy_chance"} <= evaluation["metrics"].keys()
  assert evaluation["shown_as"]["named_times"]["title"] == "Times named"
  assert "Times named" in (folder / "runs/timed/report.html").read_text(encoding="utf-8")
  own_code.succeed(export, folder)
  assert list((folder / "runs/timed/export").glob("*.safetensors"))
  assert "One turn" in own_code.succeed(ask, folder)


@pytest.mark.parametrize(
  ("flag", "says"),
  [
    ("--config.env.wantd=2", "config.env.wantd: no such field; the nearest is config.env.wanted"),
    ("--config.env.wanted=0", "--config.env.wanted=0: not in [1, inf)"),
    ("--config.env.wanted=many", "many"),
    ("--config.recipe=none.py:Timed", "none.py:Timed: no such file"),
    ("--config.recipe=mine", "--config.recipe=mine: one of grpo"),
  ],
)
def test_a_mistake_in_a_field_is_one_line(folder, monkeypatch, capsys, flag, says):
  monkeypatch.chdir(folder)
  assert main.cli(["vr-jax", "--config=my_recipe/config.py:tiny", "--workdir=x", flag]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert says in line


BROKEN = {
  "a syntax error": ("class Timed(:\n", "SyntaxError"),
  "an import that fails": ("import no_such_module\n", "ModuleNotFoundError"),
  "no class": ("Timed = 3\n", "is no class"),
  "no environment": ("class Timed:\n  needs = ()\n", "lacks "),
  "a need that nobody gives": (
    "from vr_jax.envs import question_answer\n"
    "class Timed(question_answer.QuestionAnswer):\n  needs = ('oracle',)\n",
    "needs 'oracle'",
  ),
  "another name": ("class Tmed: ...\n", "has no Timed"),
}


@pytest.mark.parametrize(("text", "says"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_in_a_file_is_one_line(tmp_path, text, says):
  shutil.copytree(SOURCE, tmp_path / "my_recipe")
  (tmp_path / "my_recipe" / "environment.py").write_text(text)
  with pytest.raises(errors.InputError, match=r"environment\.py") as error:
    recipe_config.load(f"{tmp_path}/my_recipe/config.py:tiny")
  assert says in str(error.value) and "\n" not in str(error.value)


def test_a_config_that_raises_or_returns_something_else_is_one_line(tmp_path):
  path = tmp_path / "config.py"
  for number, (text, says) in enumerate(
    (
      ("def get_config():\n  return undefined\n", r"NameError.*config0\.py, line 2"),
      ("def get_config():\n  return {}\n", "returns no ConfigDict"),
      ("", "has no function get_config"),
    )
  ):
    path = tmp_path / f"config{number}.py"
    path.write_text(text)
    with pytest.raises(errors.InputError, match=says):
      recipe_config.load(str(path))


@pytest.mark.parametrize("name", recipe_config.names())
def test_a_recipe_of_this_project_is_known_by_its_name_in_any_directory(
  tmp_path, monkeypatch, name
):
  monkeypatch.chdir(tmp_path)
  by_name, by_file = (
    recipe_config.load(f"{recipe}:tiny") for recipe in (name, nano.ROOT / f"configs/{name}.py")
  )
  assert by_name.to_dict() == by_file.to_dict()


def test_an_installed_package_brings_the_recipes(tmp_path):
  subprocess.run(
    [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={tmp_path}"],
    cwd=nano.ROOT,
    check=True,
    capture_output=True,
  )
  script = "from vr_jax import recipe_config as r; print(r.configs_directory(), *r.names())"
  told = subprocess.run(
    [sys.executable, "-c", script],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(tmp_path)},
    check=True,
    capture_output=True,
    text=True,
  )
  assert told.stdout.split() == [f"{tmp_path}/vr_jax/configs", *recipe_config.names()]
