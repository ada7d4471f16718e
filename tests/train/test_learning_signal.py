"""A run in which no reply earned more than the others of its group says that it learned nothing."""

import json

from vr_jax.train import learning_signal

METRIC = learning_signal.METRIC


def _noted(capsys, fractions, estimator="segments"):
  """The steps after which a line was printed."""
  watch, steps = learning_signal.SignalWatch(estimator), []
  for step, fraction in enumerate(fractions, start=1):
    watch.note(step, {METRIC: fraction, "loss": 0.0})
    if err := capsys.readouterr().err:
      assert err.startswith(f"rl {step}: in the last ") and err.count("\n") == 1
      steps.append(step)
  return steps


def test_a_line_is_printed_when_it_happens_but_not_each_step(capsys):
  assert _noted(capsys, [1.0] * 40) == [3, 30]
  assert _noted(capsys, [1.0, 1.0, 0.9, 1.0, 1.0, 0.0]) == []
  assert _noted(capsys, [1.0, 0.5, 1.0, 1.0, 1.0, 1.0]) == [5]


def test_with_a_critic_replies_are_not_compared_with_each_other(capsys):
  assert _noted(capsys, [1.0] * 5, "gae") == []
  assert learning_signal.describe([1.0] * 5, "gae") == ""


def test_a_run_is_described_by_all_its_steps():
  said = learning_signal.describe([1.0, 1.0], "segments")
  assert said.startswith("nothing was learned from the rewards: in 2 of 2 steps all replies of ")
  assert "config.sft.steps" in said
  said = learning_signal.describe([0.5] + [1.0] * 9, "outcome")
  assert said.startswith("little was learned from the rewards: in 9 of 10 steps all replies of ")
  assert learning_signal.describe([0.5, 0.5] + [1.0] * 9, "outcome") == ""
  assert learning_signal.describe([], "outcome") == ""


def test_steps_before_a_restart_count(tmp_path, capsys):
  lines = [
    {"stage": stage, "step": step, "values": {METRIC: value}}
    for stage, step, value in (("sft", 1, 0.0), ("rl", 1, 1.0), ("rl", 2, 1.0))
  ]
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  learning_signal.print_summary(tmp_path, "segments")
  assert capsys.readouterr().out.startswith("rl: nothing was learned from the rewards: in 2 of 2 ")
