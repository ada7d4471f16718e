"""What the start of training reads and holds must not grow with the data set."""

import tracemalloc

import pytest

from benchmarks import many_examples
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
