"""The command line from flags to exit code, with all programs compiled for a missing slice."""

import contextlib
import io
import json
import math
import re

import jax
import pytest

from launch import analysis, plan, programs
from tests.train import nano

VOCABULARY, HIDDEN = 16384, 256
# Large enough for products to outweigh what blocks of the kernels are filled up with.
SIZES = {
  "mesh": (1, 4, 1, 1),
  "model.dtype": "bfloat16",
  "model.remat": "full",
  "model.freeze_vision": True,
  "model.prefix_buckets": (256,),
  "model.logit_chunk": 1024,
  "model.architecture.text_config.vocab_size": VOCABULARY,
  "model.architecture.text_config.hidden_size": HIDDEN,
  "model.architecture.text_config.intermediate_size": 1024,
  "model.architecture.text_config.rope_scaling.mrope_section": (8, 12, 12),
  "model.architecture.vision_config.hidden_size": 128,
  "model.architecture.vision_config.intermediate_size": 256,
  "model.architecture.vision_config.out_hidden_size": HIDDEN,
  "rl.kl_weight": 0.04,
  "rl.max_new_tokens": 256,
}


def planned(**changes) -> tuple[int, dict]:
  """Exit code and JSON of a plan; a field's dots are written as two underscores."""
  dotted = {name.replace("__", "."): value for name, value in changes.items()}
  fields = {**nano.OVERRIDES, **SIZES, **dotted}.items()
  flags = [f"--config.{name}={value}" for name, value in fields]
  recipe = f"--config={nano.ROOT / nano.RECIPE}:tiny"
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    code = plan.main([recipe, "--topology=v5e:2x2", "--json", "--quick", *flags])
  return code, json.loads(printed.getvalue())


@pytest.fixture(scope="module")
def compiled():
  code, found = planned()
  assert code == 0
  assert jax.config.jax_exec_time_optimization_effort == -1.0
  return {one["name"]: one for one in found["programs"]}


def test_a_plan_compiles_every_program_of_a_recipe_and_ends_with_0(compiled):
  assert list(compiled) == ["encoder", "rollout", "reference log-probs", "train step"]
  for one in compiled.values():
    memory = one["memory"]
    assert one["compiled"] and one["fits"]
    assert memory["arguments"] + memory["resident"] < memory["peak"] < 2**30
    for part in one["parts"]:
      assert part["bytes"] > 0 < max(part["seconds"].values())
      assert 0 < part["utilisation"] < 1
  assert [part["name"] for part in compiled["rollout"]["parts"]] == ["prefill", "decode"]


def test_a_train_step_computes_what_is_counted_with_one_more_forward(compiled):
  (part,) = compiled["train step"]["parts"]
  assert 1 <= part["over_count"] <= 1.25


def test_no_temporary_of_a_train_step_has_logits_of_the_whole_vocabulary(compiled):
  """The gradient of the head may have the vocabulary too, with `HIDDEN` numbers a word."""
  largest = compiled["train step"]["largest"]
  assert len(largest) == analysis.LARGEST
  for one in largest:
    sizes = [int(size) for size in re.findall(r"\d+", one["shape"].partition("[")[2])]
    assert VOCABULARY not in sizes or math.prod(sizes) <= VOCABULARY * HIDDEN, one


def test_a_plan_without_room_names_the_tensor_and_ends_with_1(monkeypatch):
  """A vocabulary of six million, whole on each device.

  Parameters, two moments and the reference, 6 GB each, are in memory while the encoder runs.
  """
  every = programs.programs_of_step
  monkeypatch.setattr(programs, "programs_of_step", lambda *given: every(*given)[:1])
  words = 6_000_000
  code, found = planned(mesh=(4, 1, 1, 1), model__architecture__text_config__vocab_size=words)
  assert code == 1
  (one,) = found["programs"]
  assert not one["fits"]
  assert one["leaf"] == {
    "name": "text.embedding",
    "shape": f"float32[{words},{HIDDEN}]",
    "bytes": 4 * words * HIDDEN,
  }
