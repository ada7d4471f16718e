"""The notebooks run from top to bottom in a kernel of their own."""

import os
import pathlib
import re

import nbclient
import nbformat
import pytest

from tests.train import nano
from vr_jax.models import sam2
from vr_jax.models.sam2 import parameters

NOTEBOOKS = pathlib.Path(__file__).resolve().parent.parent / "notebooks"


# Half the layers of the size tiny: they are most of what is compiled.
FEWER_LAYERS = {
  "model.architecture.text_config.num_hidden_layers": 2,
  "model.architecture.vision_config.depth": 2,
  "model.architecture.vision_config.fullatt_block_indexes": (1,),
}


def _printed(name, parameters, overrides=None):
  """Runs a notebook; returns its printed text and its number of pictures.

  parameters: lines that are appended to its cell of parameters.
  overrides: fields that are added to its `overrides`, where there are some.
  """
  notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
  (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
  cell.source += parameters
  if overrides:
    (cell,) = [cell for cell in notebook.cells if cell.source.count("overrides = {") == 2]
    cell.source = cell.source.replace(
      "config, workdir, _ =", f"overrides |= {overrides}\nconfig, workdir, _ ="
    )
  client = nbclient.NotebookClient(
    notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}}
  )
  # One device, as on a reader's machine; the tests' eight would share one core.
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
  client.execute(env={**os.environ, "XLA_FLAGS": flags})
  return _outputs(notebook)


def _outputs(notebook):
  """The printed text of a notebook, and its number of pictures."""
  outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
  pictures = sum("image/png" in out.get("data", {}) for out in outputs)
  text = "".join(out.text for out in outputs if out.output_type == "stream")
  return text, pictures


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
  """Output of the quickstart, with a shorter warm start, run in a directory of the test."""
  workdir = tmp_path_factory.mktemp("notebook") / "run"
  parameters = f"\nworkdir, sft_steps = {str(workdir)!r}, 40"
  return _printed("quickstart.ipynb", parameters, FEWER_LAYERS)


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


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
  """Output of the notebook that asks a run, with a run of several turns and random weights."""
  workdir = tmp_path_factory.mktemp("asked") / "run"
  config = nano.config("configs/video_mtr.py", **nano.SHORT_TURNS)
  with pytest.MonkeyPatch.context() as patched:
    nano.use_devices(patched, 1)
    nano.untrained_run(config, workdir)
  return _printed("ask.ipynb", f"\nrun = {str(workdir)!r}")


def test_a_run_of_several_turns_is_asked_turn_by_turn_with_the_frames_of_each(asked):
  text, pictures = asked
  assert pictures >= 2  # the first turn of both questions that are shown
  assert re.search(r"^seconds shown: 0 to 64, as in question \S+ of the run's test", text, re.M)
  assert re.search(r"^seconds shown: 0 to 32, as --shown says$", text, re.M)
  assert re.search(r"\{'before RL': '\d+ of \d+ right', 'after RL': '\d+ of \d+ right'\}", text)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
  """Output of the notebook that segments, with a policy and a SAM2 of random weights."""
  directory = tmp_path_factory.mktemp("segmented")
  network, weights = sam2.smallest(), directory / "sam2"
  sam2.save(sam2.Segmenter(network, parameters.initialise(network, seed=0)), weights)
  with pytest.MonkeyPatch.context() as patched:
    nano.use_devices(patched, 1)
    config = nano.config("configs/revseg.py", **nano.SHORT_GROUNDING)
    nano.untrained_run(config, directory / "run")
  places = f"\nrun, weights = {str(directory / 'run')!r}, {str(weights)!r}"
  return _printed("segment.ipynb", places)


def test_a_query_is_segmented_from_the_box_of_the_policy_and_from_the_true_one(segmented):
  text, pictures = segmented
  assert pictures == 2
  assert re.search(r"^turn 1, frames shown: \d+$", text, re.M)
  assert re.search(r"^key frame: .*; box: .*; problem: \w+$", text, re.M)
  scores = re.findall(r"^box of the (policy|truth): J (\S+), F (\S+)$", text, re.M)
  assert [name for name, *_ in scores] == ["policy", "truth"]
  assert all(0 <= float(score) <= 1 for _, *both in scores for score in both)


def test_the_notebook_that_asks_the_demo_is_stored_with_what_it_printed():
  notebook = nbformat.read(NOTEBOOKS / "ask.ipynb", as_version=4)
  text, pictures = _outputs(notebook)
  counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
  assert counts == list(range(1, len(counts) + 1))
  assert not [
    out for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "error"
  ]
  assert "before RL: runs/demo, before RL\nafter RL: runs/demo, rl step 200\n" in text
  assert pictures == 2
  answer, right = re.findall(r"^answer: (\S+); right: (\S+)$", text, re.M)[0]
  assert answer == right
  before, after = map(int, re.findall(r"'(\d+) of \d+ right'", text))
  assert before < after == 24


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_holds_no_path_of_the_machine_that_ran_it(path):
  found = re.search(r"/(?:home|root|tmp|Users|work|usr|opt)/", path.read_text(encoding="utf-8"))
  assert found is None, found


def test_the_quickstart_is_committed_without_outputs():
  notebook = nbformat.read(NOTEBOOKS / "quickstart.ipynb", as_version=4)
  cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert all(not cell.outputs and cell.execution_count is None for cell in cells)
