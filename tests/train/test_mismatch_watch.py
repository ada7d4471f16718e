"""A run whose sampler and update differ says so, but not at each step."""

import pytest

from vr_jax.train import mismatch_watch


def _noted(capsys, differences, limit=0.1, *, off_policy="", int8_weights=False):
  """The lines that are printed, by step."""
  watch, lines = mismatch_watch.MismatchWatch(limit, int8_weights, off_policy), {}
  for step, difference in enumerate(differences, start=1):
    values = {
      mismatch_watch.METRIC: difference,
      "sampling/sampling_logp_difference/p99": 4.0,
      "sampling/k3": 0.25,
    }
    watch.note(step, values)
    if err := capsys.readouterr().err:
      lines[step] = err
  return lines


def test_a_line_is_printed_at_the_first_step_above_the_limit_and_ever_more_rarely(capsys):
  assert list(_noted(capsys, [0.1, 0.11, 0.0, *[0.2] * 200])) == [2, 12, 102]


@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_none_is_printed_at_or_below_the_limit_and_without_one(capsys, limit):
  assert not _noted(capsys, [0.5] * 20, limit)


@pytest.mark.parametrize(
  ("cause", "advice"),
  [
    (
      {"off_policy": "one_step_off_policy"},
      {"config.rl.learning_rate", "config.rl.one_step_off_policy"},
    ),
    ({"off_policy": "carry_over"}, {"config.rl.learning_rate", "config.rl.carry_over"}),
    ({}, {"config.model.dtype"}),
    ({"int8_weights": True}, {"config.rl.sampler_weights"}),
    (
      {"off_policy": "carry_over", "int8_weights": True},
      {"config.rl.learning_rate", "config.rl.carry_over", "config.rl.sampler_weights"},
    ),
  ],
)
def test_the_line_names_metric_value_limit_and_what_to_do(capsys, cause, advice):
  (line,) = _noted(capsys, [0.3], **cause).values()
  assert line.count("\n") == 1
  start = "rl 1: sampling/sampling_logp_difference/mean is 0.3 nats a token, above "
  assert line.startswith(f"{start}config.rl.mismatch_warning=0.1 (p99 4, k3 0.25): ")
  names = ("learning_rate", "sampler_weights", "one_step_off_policy", "carry_over")
  fields = {"config.model.dtype", *(f"config.rl.{name}" for name in names)}
  assert {field for field in fields if field in line} == advice
