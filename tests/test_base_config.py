"""A recipe reads from top to bottom: no field is set, then set again, on the way to a size."""

import collections

import ml_collections
import pytest

from tests.train import nano
from vr_jax import base_config, recipe_config

CONFIGS = [
  *sorted(nano.ROOT.glob("configs/*.py")),
  nano.ROOT / "examples" / "own_recipe" / "my_recipe" / "config.py",
]


@pytest.fixture
def assignments(monkeypatch):
  """Values assigned to each field of each section while a config is made, by (section, name)."""
  values = collections.defaultdict(list)
  sections = []  # a section that is freed would leave its id to another
  assign = ml_collections.ConfigDict.__setitem__

  def record(section, name, value):
    assign(section, name, value)
    sections.append(section)
    values[id(section), name].append(value)

  monkeypatch.setattr(ml_collections.ConfigDict, "__setitem__", record)
  return values


def assigned(config, values, prefix=""):
  for name, value in config.items():
    yield f"{prefix}{name}", values[id(config), name]
    if isinstance(value, ml_collections.ConfigDict):
      yield from assigned(value, values, f"{prefix}{name}.")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", ["tiny", "3b", "7b", "72b", "qwen3vl_8b"])
def test_a_field_has_its_default_and_at_most_one_other_assignment(path, size, assignments):
  config, _ = recipe_config.read(f"{path}:{size}")
  found = dict(assigned(config, assignments))
  assert {"rl.learning_rate", "data.simulate.videos", "model.prefix_buckets"} <= found.keys()
  assert all(found.values()), "assignments that were not recorded"
  twice = {name: values for name, values in found.items() if len(values) > 2}
  assert not twice
  # A field without a default in config_fields has one assignment.
  assert {len(values) for name, values in found.items() if name.startswith("env.")} == {1}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", ["tiny", "7b"])
def test_what_a_reader_looks_for_first_stands_in_the_file_of_the_recipe(path, size, assignments):
  config, _ = recipe_config.read(f"{path}:{size}")
  found = dict(assigned(config, assignments))
  named = ["rl.learning_rate", "rl.kl_weight", "rl.num_generations"]
  if path.parent.name == "configs":
    named += ["rl.clip_epsilon_low", "rl.clip_epsilon_high", "rl.batch_size", "rl.steps"]
    named += ["data.frames", "rl.max_new_tokens"]
  assert [name for name in named if len(found[name]) != 2] == []
  assert {"reward", "rewards", "weights", "relevance"} & set(config.env)


def test_a_field_that_is_set_again_is_recorded(assignments):
  config = base_config.base("grpo")
  base_config.released_network(config, "72b")
  config.mesh = (1, 8, -1, 8)
  assert dict(assigned(config, assignments))["mesh"] == [
    (-1, 1, 1, 1),
    (1, -1, -1, 8),
    (1, 8, -1, 8),
  ]
