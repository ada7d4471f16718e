"""Five kills, clocks that jump and a damaged checkpoint, and the run is what it would have been.

The short form of `python -m tests.faults.kills`, for VideoP2R: two kills hit the write of a
checkpoint. tests/train/test_killed.py stops MOSS-ChatV in other ways.
"""

import shutil

import pytest

from tests.faults import kills, several, witness

KILLS = 5
STEPS = 8


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  """The results, and the workdir of the run that was killed."""
  root = tmp_path_factory.mktemp("kills")

  def damage(number, workdir):
    """After the last kill, when RL is complete, flips a bit in its last checkpoint."""
    if number == KILLS:
      several.flip_a_bit(workdir / "checkpoints" / "rl")

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(witness.CLOCK, "7200")
    results = kills.measure(
      "videop2r", root, kills=KILLS, seed=13, processes=1, after_a_kill=damage
    )
  return results, root / "videop2r-killed"


def test_all_is_bit_for_bit_that_of_the_run_that_was_left_alone(found):
  assert found[0]["kills"] == KILLS
  assert found[0]["kills_by_kind"] == {"start": 1, "step": 2, "checkpoint": 2}
  assert found[0]["steps_of_a_stage"] == STEPS
  assert found[0]["differences"] == []


def test_no_example_is_lost_or_seen_twice_in_an_epoch(found):
  results, workdir = found
  assert results["epoch_faults"] == results["stages_in_other_order"] == []
  seen = [example for step in kills.order(workdir, "rl") for example in step]
  assert len(seen) > len(set(seen)) > 1  # it came to a second epoch


def test_a_kill_costs_a_save_interval_at_most_and_the_steps_during_a_write_that_it_cut(found):
  assert 0 < found[0]["most_steps_redone_outside_writes"] <= kills.INTERVAL
  assert found[0]["most_steps_during_a_write"] <= kills.INTERVAL
  assert found[0]["kills_inside_a_checkpoint_write"] > 0
  assert found[0]["kills_that_cost_more"] == []
  assert kills.is_right(found[0])


def test_a_kill_that_costs_a_step_more_is_noticed(found):
  for name, value in (
    ("most_steps_redone_outside_writes", kills.INTERVAL + 1),
    ("most_steps_during_a_write", kills.INTERVAL + 1),
    ("kills_that_cost_more", [{}]),
  ):
    assert not kills.is_right({**found[0], name: value})


def test_the_damaged_checkpoint_was_set_aside_and_said(found):
  workdir = found[1]
  assert (workdir / "checkpoints" / "rl" / f"{STEPS}.damaged").is_dir()
  said = workdir.with_name(f"{workdir.name}.output") / "0.txt"
  lines = [line for line in said.read_text().splitlines() if ".damaged" in line]
  assert len(lines) == 1 and "to go on from the one before" in lines[0]


def test_what_differs_by_one_digit_is_noticed(found, tmp_path):
  workdir = found[1]
  other = shutil.copytree(workdir, tmp_path / "other")
  assert kills.differences(workdir, other) == []
  for name, old in (("metrics.jsonl", '"entropy": '), ("rollouts/step-000002.jsonl", '"text": "')):
    text = (other / name).read_text()
    assert old in text
    (other / name).write_text(text.replace(old, f"{old}1", 1))
  assert kills.differences(workdir, other) == ["metrics.jsonl", "rollouts/step-000002.jsonl"]


def test_an_example_that_is_lost_or_there_twice_is_noticed(found, monkeypatch):
  workdir = found[1]
  steps = kills.order(workdir, "sft")
  spoilt = [list(step) for step in steps]
  spoilt[0][0] = spoilt[0][1]
  monkeypatch.setattr(kills, "order", lambda *_: spoilt)
  assert kills.epoch_faults(workdir, "sft") == ["sft, epoch 0: 1 twice, 1 lost"]
