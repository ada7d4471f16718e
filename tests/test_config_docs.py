"""docs/config.md says what the fields say."""

import dataclasses
import importlib
import importlib.util
from typing import Any

import pytest

from tests.train import nano
from vr_jax import config_docs, config_fields, optional_sections, schema
from vr_jax.envs import registry

PAGE = nano.ROOT / "docs" / "config.md"


def test_the_page_is_up_to_date():
  assert PAGE.read_text(encoding="utf-8") == config_docs.page(), (
    "run: python -m vr_jax.config_docs > docs/config.md"
  )


def names():
  yield from (field.name for field in schema.fields(config_fields.RunConfig))
  for section, cls in optional_sections.OPTIONAL.items():
    yield from (field.name for field in schema.fields(cls, f"{section}."))
  for environment in registry.ENVIRONMENTS.values():
    yield from (field.name for field in schema.fields(environment, "env."))


def test_every_field_has_a_row_and_names_of_others_are_those_of_fields():
  rows = {line.split("`")[1] for line in config_docs.page().splitlines() if line.startswith("| `")}
  assert rows == set(names())
  assert config_docs.OTHER_NAMES.keys() <= rows


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the extra parity")
def test_names_of_trl_are_fields_of_its_configs():
  trl: Any = importlib.import_module("trl")
  known = {
    field.name
    for cls in (trl.GRPOConfig, trl.SFTConfig, trl.ModelConfig)
    for field in dataclasses.fields(cls)
  }
  written = {name for name, _ in config_docs.OTHER_NAMES.values() if name}
  # Names with brackets belong to a trainer, to the experimental PPOConfig, or come with a note.
  plain = {name for name in written if " (" not in name} - {
    "generation_batch_size / num_generations"
  }
  assert plain <= known
  assert {"generation_batch_size", "num_generations", "per_device_train_batch_size"} <= known
