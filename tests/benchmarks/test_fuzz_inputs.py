"""The short form of benchmarks/fuzz_inputs.py, and of what it must notice."""

import json
import random
import subprocess
import sys

import pytest

from benchmarks import damage, fuzz_inputs

EXECUTIONS = {"workdir": 40, "safetensors": 15}  # of the slower ones


@pytest.mark.parametrize("target", fuzz_inputs.TARGETS)
def test_damaged_inputs_are_read_or_refused_in_one_line(target):
  count = EXECUTIONS.get(target, 80)
  # In a process of its own: the limit of CPU time is a signal, which could end this one.
  outcome = fuzz_inputs.run_apart(target, executions=count, seconds=300.0, seed=11, first=0)
  assert outcome.get("violations", {}) == {}
  assert outcome["accepted"] + outcome["refused"] == count
  assert outcome["accepted"] > 0
  if target != "replies":
    assert outcome["refused"] > 0


# Outcomes of executions, in a process of their own: the limit of CPU time is a signal.
EXECUTE = """
import itertools
from benchmarks import damage, fuzz_inputs
from vr_jax import errors

fuzz_inputs.CPU_SECONDS = 0.2

def fail(error):
  raise error

for read, may_refuse in (
  (lambda data: fail(KeyError("x")), True),
  (lambda data: fail(errors.InputError("no")), False),
  (lambda data: all(True for _ in itertools.count()), True),
):
  chosen = damage.FuzzedInput(
    name="n", whole=b"{}", damage=damage.damage_json, read=read, may_refuse=may_refuse
  )
  print(*fuzz_inputs._execute(chosen, b""), sep="|")
"""


def test_what_is_neither_read_nor_refused_in_time_is_a_violation():
  words = [sys.executable, "-c", EXECUTE]
  done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
  outcomes = [line.split("|") for line in done.stdout.splitlines()]
  assert [outcome for outcome, _ in outcomes] == ["", "", ""]
  violations = [violation for _, violation in outcomes]
  for wanted, violation in zip(
    ("KeyError at ", "refused: no", "of CPU time"), violations, strict=True
  ):
    assert wanted in violation


def test_a_process_that_ends_is_found_and_the_next_execution_follows(tmp_path, monkeypatch):
  done = []

  def watch(command, file):
    words = json.loads(command[-1].removeprefix("--child="))
    done.append(words["first"])
    file.write_text(json.dumps({"executions": 3, "accepted": 3, "violations": {}}))
    file.with_suffix(".number").write_bytes((words["first"] + 3).to_bytes(8, "little"))
    return "ended with -11" if len(done) < 3 else ""

  monkeypatch.setattr(fuzz_inputs, "_watch", watch)
  outcome = fuzz_inputs.run_apart("replies", executions=0, seconds=60, seed=1, first=0)
  assert done == [0, 4, 8]
  assert [entry["number"] for entry in outcome["violations"].values()] == [3, 7]


@pytest.mark.parametrize("kind", [damage.damage_json, damage.damage_json_lines])
def test_a_damage_is_the_same_in_every_run_and_changes_most_inputs(kind):
  whole = json.dumps({"a": [1, {"b": "c"}], "d": None}).encode()
  copies = [kind(random.Random(number), whole) for number in range(200)]
  assert copies == [kind(random.Random(number), whole) for number in range(200)]
  assert sum(copy != whole for copy in copies) > 180
  assert any(b"../" in copy for copy in copies)
  assert any(len(copy) > 50_000 for copy in copies)
