"""The examples of docs/serving.md run as they stand, but for the address and the video."""

import json
from pathlib import Path
import re
import subprocess
import sys

from vr_jax.serve import chat_request

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def _example(language: str, served, root) -> str:
  (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
  assert "http://127.0.0.1:8000" in found
  here = found.replace("http://127.0.0.1:8000", served.url)
  return here.replace("/data/videos/match.mp4", f"{root}/clip.mp4")


def _output(*words: str) -> str:
  run = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
  assert run.returncode == 0, run.stderr
  return run.stdout


def test_the_example_of_curl_gets_a_reply(served, root):
  reply = json.loads(_output("sh", "-c", _example("sh", served, root)))
  assert reply["choices"][0]["message"]["content"]


def test_the_example_of_python_prints_what_was_shown(served, root):
  lines = _output(sys.executable, "-c", _example("python", served, root)).splitlines()
  assert "'times': [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]" in lines[-1]


def test_every_field_that_is_read_stands_on_the_page():
  named = set(re.findall(r"`([a-z_]+)", PAGE))
  assert set(chat_request.READERS) - {"model"} <= named
