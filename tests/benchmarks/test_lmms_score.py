"""Which runs lmms-eval can ask as `vr-jax eval` does."""

import pytest

from benchmarks import lmms_score
from tests.train import nano
from vr_jax.errors import InputError
from vr_jax.train import workdir as workdir_lib


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with held-out questions about the first part of their videos."""
  fields = {
    "data__simulate__world__families": ("choice",),
    "data__simulate__questions_per_video": 1,
    "data__test_fraction": 0.5,
  }
  workdir = tmp_path_factory.mktemp("run")
  nano.untrained_run(nano.config(eval__examples=0, **fields), workdir)
  return workdir


def test_spans_that_lmms_eval_does_not_send_are_counted(run, capsys):
  asked = lmms_score.choose_questions(workdir_lib.config_of(run), run, 3)
  assert len(asked) == 3 and all(each.options for each in asked)
  assert "3 of 3 questions are about a part of their video" in capsys.readouterr().err


def test_runs_that_it_can_not_ask_are_refused_in_one_line(run, tmp_path, capsys):
  config = workdir_lib.config_of(run).copy_and_resolve_references().unlock()
  config.data.sampling = "fps"
  with pytest.raises(InputError, match=r"config\.data\.sampling=fps doesn't show a fixed number"):
    lmms_score.choose_questions(config, run, 3)
  with pytest.raises(InputError, match="its episodes have up to 2 turns"):
    lmms_score.choose_questions(nano.config("configs/revseg.py"), tmp_path, 3)
  words = ["lmms_score", "--python=python", f"--checkpoint={tmp_path}"]
  assert lmms_score.main(words) == 2
  assert len(capsys.readouterr().err.strip().splitlines()) == 1
