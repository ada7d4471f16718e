"""The benchmarks of the group layout at toy sizes: the sides agree, and the line has its fields.

No times are checked.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import group_update, measure, rollout, scaling, text_rollout, workload

TOY = dataclasses.replace(
  workload.ISSUE,
  layers=1,
  embed=64,
  heads=4,
  kv_heads=2,
  mlp=64,
  vocabulary=320,
  vision_layers=1,
  vision_embed=32,
  vision_heads=2,
  vision_mlp=32,
  frames=2,
  side=4,
  text=6,
  prompts=2,
  group=3,
  time=5,
)

# One sampler for three tests: those of prompts in groups.
TEXT = dataclasses.replace(TOY, frames=0)


@pytest.mark.parametrize(
  ("family", "dtype"),
  [
    *(("qwen2_5_vl", dtype) for dtype in group_update.TOLERANCES),
    *((family, "float32") for family in workload.CONFIGS if family != "qwen2_5_vl"),
  ],
)
def test_an_update_of_groups_has_the_loss_and_the_gradients_of_the_replicated_one(
  monkeypatch, family, dtype
):
  monkeypatch.setattr(workload, "platform_dtype", lambda: dtype)
  sizes, names = workload.of_family(TOY, [f"--family={family}"], group_update.SIDES)
  assert ("torch" in names) == (family == "qwen2_5_vl")
  found = group_update.compare(sizes, names=("ours", "replicated"), repeats=1)
  for what, largest in group_update.TOLERANCES[dtype].items():
    assert found["differences"][f"{what}_replicated"] <= largest
  assert found["dtype"] == dtype
  assert set(found["seconds"]) == {"ours", "replicated"}
  assert set(found["ratio"]) == {"over_replicated", "memory_over_replicated"}
  assert 0 < found["ratio"]["memory_over_replicated"] < 1
  json.dumps(found)


def test_an_update_has_the_loss_and_the_gradients_of_transformers(monkeypatch):
  pytest.importorskip("transformers")
  monkeypatch.setattr(workload, "platform_dtype", lambda: "float32")
  long = dataclasses.replace(TOY, frames=TOY.side // 2 + 1)  # its times reach beyond its sides
  found = group_update.compare(long, names=("ours", "torch"), repeats=1)
  for what, largest in group_update.TOLERANCES["float32"].items():
    assert found["differences"][f"{what}_torch"] <= largest


@pytest.mark.parametrize(
  ("backend", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")]
)
def test_both_sides_compute_in_float32_on_a_cpu_and_in_bfloat16_on_an_accelerator(
  monkeypatch, tmp_path, backend, dtype
):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  work = workload.make(TEXT)
  assert work.config.dtype == dtype
  assert {x.dtype for x in jax.tree.leaves(work.params)} == {np.dtype("float32")}
  work.save(tmp_path / "model")
  assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize(
  "sizes",
  [TEXT, *(dataclasses.replace(TOY, family=family) for family in ("qwen3_vl", "tinyllava"))],
  ids=lambda sizes: sizes.family,
)
def test_replies_are_sampled_to_their_end_and_counted(sizes):
  found = rollout.compare(sizes, names=("ours",), repeats=1)
  assert found["greedy"]["same_tokens"] == 1
  assert found["tokens_per_second"]["ours"] > 0
  json.dumps(found)


def test_greedy_replies_of_another_model_are_told_apart():
  work = workload.make(TEXT)
  tokens = np.asarray(rollout.our_side(work)(0.0).tokens)
  other = tokens.copy()
  other[1, 2, 3] = (tokens[1, 2, 3] + 7) % 256
  with pytest.raises(ValueError, match="greedy replies part"):
    rollout.check_greedy(work, tokens, other)


def test_text_prompts_are_sampled_alone_and_in_groups():
  sizes = dataclasses.replace(TEXT, prompts=6, group=1)
  found = text_rollout.compare(sizes, names=("ours",), group=3, repeats=1)
  assert set(found["seconds"]) == {"ours", "ours_shared"}
  json.dumps(found)


def test_rows_that_no_groups_of_that_size_hold_are_refused():
  with pytest.raises(ValueError, match="groups of 4 don't divide 6 rows"):
    text_rollout.shared(dataclasses.replace(TEXT, prompts=6, group=1), 4)


def test_growth_is_that_of_time_over_flops_and_of_memory_over_tokens(monkeypatch):
  monkeypatch.setattr(workload, "make", lambda sizes, *, remat: sizes)
  monkeypatch.setattr(workload, "replies", lambda work: None)
  monkeypatch.setattr(group_update, "GroupUpdate", Doubled)
  monkeypatch.setattr(measure, "in_turn", lambda sides, repeats: {n: [float(n)] for n in sides})
  found = scaling.compare(TOY, (4, 8, 16), repeats=1)
  rows = found["sizes"]
  assert [row["tokens"] for row in rows] == [8 + 8 + 15, 16 + 8 + 15, 32 + 8 + 15]
  assert rows[2]["gigaflops"] > rows[1]["gigaflops"] > rows[0]["gigaflops"]
  # Memory is four times as large for 55 / 31 of the tokens, and twice as large from one size to the
  # next.
  assert found["ratio"]["memory_over_tokens"] == pytest.approx(4 * 31 / 55, abs=1e-3)
  assert found["largest_step"]["memory_over_tokens"] == pytest.approx(2 * 31 / 39, abs=1e-3)
  flops = rows[2]["gigaflops"] / rows[0]["gigaflops"]
  assert found["ratio"]["time_over_flops"] == pytest.approx(4 / flops, abs=1e-3)


class Doubled:
  """Stands in for an update whose memory grows as its frames do."""

  def __init__(self, sizes, rollout, *, replicate):
    self._sizes = sizes

  def peak_megabytes(self):
    return 10.0 * self._sizes.frames


def test_a_difference_over_the_tolerance_stops_a_comparison():
  with pytest.raises(ValueError, match="loss: the sides differ by"):
    measure.check_same("loss", {"x": np.ones(3)}, {"x": np.array([1, 1, 1.1])}, 1e-3)
  with pytest.raises(ValueError, match="loss: the sides differ by nan"):
    measure.check_same("loss", {"x": np.ones(3)}, {"x": np.full(3, np.nan)}, 1e-3)
