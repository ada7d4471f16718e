"""Candidates of compiler options, compared: which counts, which is the fastest."""

import json

import pytest

from launch import options_sweep, report, topology
from tests.train import nano
from vr_jax import errors
from vr_jax.parallel import compiler_options

PROGRAM = "reference log-probs"


def outcome(name: str, seconds: float, schedule: float, *, fits: bool = True):
  return options_sweep.Outcome(
    name=name,
    options={},
    seconds=seconds,
    schedule=schedule,
    network=0.1,
    bytes=2e9,
    links=1e9,
    peak=3e9,
    compiling=9,
    fits=fits,
  )


def test_the_fastest_fits_and_has_the_least_of_the_longer_of_roofline_and_schedule():
  outcomes = [
    outcome("none", 1.0, 3.0),
    outcome("short schedule", 2.5, 0.5),
    outcome("both", 2.0, 2.25),
    outcome("no room", 0.1, 0.1, fits=False),
  ]
  best = options_sweep.fastest(outcomes)
  assert best is not None and best.name == "both"
  assert options_sweep.fastest(outcomes[3:]) is None
  equal = options_sweep.fastest([outcome("first", 1.0, 1.0), outcome("second", 1.0, 1.0)])
  assert equal is not None and equal.name == "first"


def test_the_table_gives_no_numbers_of_what_has_no_room():
  text = options_sweep.as_text([outcome("none", 1.0, 3.0), outcome("x", 0.1, 0.1, fits=False)])
  assert "| none | 1.000 | 3.000 | 0.100 | 2.0 | 1.0 | 3.0 | 9 |" in text
  assert "| x, no room | | | | | | | 9 |" in text
  assert "fastest by the longer of roofline and schedule: none" in text
  assert text.endswith(report.LEFT_OUT)
  refused = options_sweep._refused("y", {}, 2.0)
  assert "| y, refused | | | | | | | 2 |" in options_sweep.as_text([refused])
  assert "none fits" in options_sweep.as_text([outcome("x", 0.1, 0.1, fits=False)])


def test_candidates_compile_alike_and_one_that_the_compiler_refuses_does_not_count():
  config = nano.config(
    rl__kl_weight=0.04, model__dtype="bfloat16", mesh=(2, 2, 1, 1), model__attention="xla"
  )
  where, said = topology.find("v5e:2x2"), []
  chosen = {
    "none": {},
    "unknown": {"xla_tpu_no_such_option": "1"},
    "VMEM": compiler_options.scoped_vmem(64),
  }
  found = options_sweep.compare(
    config, where, layers=1, names=(PROGRAM,), candidates=chosen, progress=said.append
  )
  none, unknown, vmem = found
  assert [one.fits for one in found] == [True, False, True]
  assert any(line.startswith("unknown:") for line in said)
  assert none.schedule > 0 and vmem.schedule > 0
  assert none.bytes > 0
  assert none.peak > 0
  assert unknown.schedule == 0
  best = options_sweep.fastest(found)
  assert best is not None and best.longest == min(none.longest, vmem.longest) > 0
  assert [one.refused for one in found] == [False, True, False]
  assert [one["name"] for one in json.loads(json.dumps(options_sweep.as_json(found)))] == [*chosen]
  with pytest.raises(errors.InputError, match=PROGRAM):
    options_sweep.compare(
      config, where, names=(PROGRAM,), candidates={"unknown": chosen["unknown"]}
    )
