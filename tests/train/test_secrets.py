"""A key in the place of its name is refused before anything is written, and is not repeated."""

import itertools

import pytest

from tests.train import nano
from vr_jax import main
from vr_jax.train import secrets

CANARY = "sk-canary-8fK2-93hd7"
NAME_OR_KEY = "--config.judge.key_variable"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
  ("mode", "field", "value"),
  [
    ("data", NAME_OR_KEY, CANARY),
    ("data", NAME_OR_KEY, "a" * 80),
    ("rl", "--config.judge.model", f"model?key={CANARY}"),
    ("check", "--config.env.instruction", CANARY),
    ("data", "--config.judge.base_url", f"http://127.0.0.1:1/v1?key={CANARY}"),
  ],
)
def test_a_key_in_the_config_is_refused_and_neither_shown_nor_written(
  tmp_path, monkeypatch, capfd, mode, field, value, form
):
  monkeypatch.setenv("ANY_API_KEY", CANARY)
  words = ["vr-jax", "--config=videop2r:tiny", f"--workdir={tmp_path / 'run'}", f"--mode={mode}"]
  more = ("--config.judge.kind=openai", f"{field}={value}", f"--log_format={form}")
  assert main.cli([*words, *more]) == 2
  shown = capfd.readouterr()
  assert field.removeprefix("--") in shown.out + shown.err
  assert value not in shown.out + shown.err
  assert CANARY not in shown.out + shown.err
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("recipe", "mode", "field", "url"),
  [
    (recipe, mode, field, url)
    for (recipe, mode, field), url in itertools.product(
      [
        ("moss_chatv:tiny", "construct", "--config.construct.base_url"),
        ("videop2r:tiny", "data", "--config.judge.base_url"),
        ("videop2r:tiny", "check", "--config.traces.base_url"),
      ],
      ["https://user:hush@host/v1", "https://host/v1?key=hush", "https://host/v1#hush"],
    )
  ],
)
def test_an_address_with_a_password_is_refused_and_neither_shown_nor_written(
  tmp_path, capfd, recipe, mode, field, url
):
  words = ["vr-jax", f"--config={recipe}", f"--workdir={tmp_path / 'run'}", f"--mode={mode}"]
  assert main.cli([*words, f"{field}={url}"]) == 2
  shown = capfd.readouterr()
  assert f"{field}: needs the form" in shown.out + shown.err
  assert "hush" not in shown.out + shown.err
  assert not (tmp_path / "run").exists()


def test_names_of_variables_and_words_that_are_no_keys_may_stand_in_a_config():
  config = nano.recipe("tiny", "configs/videop2r.py")
  config.judge.key_variable = "MY_JUDGE_KEY"
  variables = {"MY_JUDGE_KEY": "none", "HOME": config.env.instruction}
  assert list(secrets.problems(config, variables)) == []
