import json

import pytest

from benchmarks import official_programs, official_scores

# Made up: what LVBench's two files would be if they read another letter.
ANSWER = """
from elsewhere import model

def polish_answer(answer):
    # a remark
    return answer.strip()[-1:]
"""
ACCURACY = """
import nowhere
def compute_accuracy(answer_file, video_meta_file):
    with jsonlines.open(video_meta_file) as lines:
        questions = [each for line in lines for each in line["qa"]]
    answers = json.load(open(answer_file))
    right = [answers[str(each["uid"])] == each["answer"] for each in questions]
    return {"acc": sum(right) / len(right)}
"""


@pytest.fixture
def clone(tmp_path):
  for path, text in (("utils/answer_util", ANSWER), ("metrics/compute_accuracy", ACCURACY)):
    file = tmp_path / "LVBench" / "lvbench" / f"{path}.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
  return tmp_path


def ask(*words):
  return official_scores.main(["official_scores", *words])


def test_a_program_is_run_on_the_replies_and_what_differs_is_told(clone, capfd):
  record = official_scores.RECORD.read_text()
  assert ask(f"--official={clone}", "--drawn=20") == 1
  told = capfd.readouterr().out
  assert "THUDM/LVBench lvbench/utils/answer_util.py: other code than recorded" in told
  assert "OpenGVLab/Ask-Anything video_chat2/mvbench.ipynb: not there, left out" in told
  assert "\n  'The answer is B': theirs 'B', ours ''\n" in told
  assert "lvbench, totals: 0 of 1 equal" in told and "lvbench, letters, drawn: " in told
  assert official_scores.RECORD.read_text() == record


def test_what_cannot_be_run_is_one_line(clone, tmp_path, capfd):
  assert ask() == 2
  assert ask(f"--official={tmp_path / 'nowhere'}") == 2
  assert ask(f"--official={clone}", "--write") == 2
  assert ask(f"--official={clone}", f"--python={tmp_path / 'nowhere'}") == 2
  (tmp_path / "empty").mkdir()
  assert ask(f"--official={tmp_path / 'empty'}") == 2
  (clone / "LVBench/lvbench/utils/answer_util.py").write_text("def polish(answer): return answer")
  assert ask(f"--official={clone}") == 2
  lines = capfd.readouterr().err.splitlines()
  assert len(lines) == 6
  assert "a record needs all programs" in lines[2]
  assert f"--python={tmp_path / 'nowhere'}: can't be started: No such file" in lines[3]
  assert f"{tmp_path / 'empty'}: has none of the programs" in lines[4]
  assert "answer_util.py: has no polish_answer; check out 1dd4612d" in lines[5]


def test_code_is_read_from_loops_and_notebooks_without_what_stands_around_it(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(
    "import nowhere\nfor name in nowhere.all:\n  def score(x):\n    return base + x  \n"
    "class Score:\n  def score(self):\n    return 0\ntotal = score(2)\n"
  )
  program = official_programs.OfficialProgram("a/b", "c", "script.py", ("score",), rest=True)
  code = official_programs.read(script, program, tmp_path / "read.py")
  assert code.load(base=1)["total"] == 3

  notebook = tmp_path / "script.ipynb"
  cells = ["%load_ext x", "import nowhere", "def score(x):\n  return base + x"]
  cells += ["class Score:\n  def score(self):\n    return 0", "total = score(2)"]
  kept = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
  notebook.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "#"}, *kept]}))
  assert official_programs.read(notebook, program, tmp_path / "read.py").checksum == code.checksum
