"""The notebooks run from top to bottom in a kernel of their own."""

import os
import pathlib
import re

import nbclient
import nbformat
import pytest

NOTEBOOKS = pathlib.Path(__file__).resolve().parent.parent / "notebooks"


def _printed(name, parameters):
  """Runs a notebook; returns its printed text and its number of pictures.

  parameters: lines that are appended to its cell of parameters.
  """
  notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
  (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
  cell.source += parameters
  client = nbclient.NotebookClient(
    notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}}
  )
  # One device, as on a reader's machine; the tests' eight would share one core.
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
  client.execute(env={**os.environ, "XLA_FLAGS": flags})
  outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
  pictures = sum("image/png" in out.get("data", {}) for out in outputs)
  text = "".join(out.text for out in outputs if out.output_type == "stream")
  return text, pictures


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
  """Output of the quickstart, with a shorter warm start, run in a directory of the test."""
  workdir = tmp_path_factory.mktemp("notebook") / "run"
  return _printed("quickstart.ipynb", f"\nworkdir, sft_steps = {str(workdir)!r}, 40")


def test_the_notebook_runs_and_draws_frames_rewards_path_and_change(printed):
  assert printed[1] == 4


def test_replies_after_the_warm_start_have_steps_and_an_answer(printed):
  replies = printed[0].partition("replies; the first:")[2]
  assert "<think>" in replies
  assert "<answer>" in replies


def test_the_trainer_scores_replies_as_the_sampler_did(printed):
  assert "'sampling/importance_sampling_ratio/mean': 1.0," in printed[0]


def test_the_update_raises_better_replies_above_worse_ones(printed):
  found = re.search(r"better than their group: (\S+) nats; worse: (\S+) nats", printed[0])
  assert found is not None
  better, worse = map(float, found.groups())
  assert better > worse + 0.5


def test_a_question_is_asked_turn_by_turn_with_the_frames_of_each(tmp_path):
  text, pictures = _printed("ask.ipynb", f"\nworkdir = {str(tmp_path / 'run')!r}")
  assert re.search(r"the pool: \d+ frames, up to \d", text)
  assert text.splitlines()[-1].startswith("answer: ")
  said = len(
    re.findall(r"^(?:answer|retrieve|invalid) (?:format|interval|range|answer)?$", text, re.M)
  )
  assert said >= 1
  assert pictures >= 3  # two turns by hand, and the first of the policy


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_committed_without_outputs(path):
  cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
  assert all(not cell.outputs and cell.execution_count is None for cell in cells)
