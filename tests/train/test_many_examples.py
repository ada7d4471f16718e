"""What the start of training reads and holds must not grow with the data set."""

import os
import shutil
import subprocess
import sys
import tracemalloc

import pytest

from benchmarks import many_examples
from launch import local
from tests.train import nano
from vr_jax import atomic
from vr_jax.data import examples
from vr_jax.train import run_context

FEW, MANY = 1_000, 5_000
BYTES = 40  # more an example; a record has over 1,000, and 24 are those of the index of videos


@pytest.fixture(scope="module")
def sizes(data, tmp_path_factory):
  """Data sets of both sizes, whose examples are known to fit the recipe."""
  made = {}
  for count in (FEW, MANY):
    made[count] = tmp_path_factory.mktemp(f"of_{count}")
    many_examples.multiply(data, made[count], count)
    config = nano.config(data__directory=str(made[count]))
    checks = run_context.make_example_checks(config, made[count])
    atomic.write_json_lines(checks.result_file, [many_examples.ALL_FIT])
  return made


@pytest.mark.parametrize("order", [{"view": "supervised"}, {"by_length": True}])
def test_the_first_batch_costs_as_much_of_many_examples_as_of_few(sizes, order, monkeypatch):
  parsed = []
  from_record = examples._from_record
  monkeypatch.setattr(
    examples, "_from_record", lambda record: parsed.append(0) or from_record(record)
  )

  def measure(count):
    """Peak of what the start allocates, in bytes, and the number of examples that it parses."""
    parsed.clear()
    tracemalloc.start()
    context = nano.build(sizes[count], data__threads=0)
    next(context.builder.read("train", 4, **order))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, len(parsed)

  measure(FEW)  # what is made once and kept
  few, many = measure(FEW), measure(MANY)
  assert few[1] == many[1] == 4
  assert many[0] - few[0] < BYTES * (MANY - FEW)


CHECKS = """
from pathlib import Path
import sys
import jax
from tests.train import nano
from vr_jax import errors
from vr_jax.train import check_examples, run_context

port, index, data = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, index)
checked, find_bad = [], check_examples.Checks._find_bad
check_examples.Checks._find_bad = lambda *inputs: checked.append(inputs[1]) or find_bad(*inputs)
for longest in (70, 8):  # the data stage has checked for 80
  config = nano.config(data__directory=str(data), sft__max_reply_tokens=longest)
  try:
    print(run_context.make_example_checks(config, data).find_unusable())
  except errors.InputError as error:
    print(error)
print(checked)
"""


def test_examples_are_checked_by_the_first_process_alone_and_all_say_what_is_wrong(data, tmp_path):
  copy = shutil.copytree(data, tmp_path / "data")
  port = str(local.free_port())
  started = [
    subprocess.Popen(
      [sys.executable, "-c", CHECKS, port, str(index), str(copy)],
      env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  said = [process.communicate(timeout=120) for process in started]
  assert [process.returncode for process in started] == [0, 0], said
  first, second = (out.splitlines() for out, _ in said)
  assert first[:2] == second[:2]
  assert first[0].startswith("{'train': frozenset(")
  assert "its reference reply has" in first[1]
  assert (first[2], second[2]) == ("['train', 'test', 'train']", "[]")
