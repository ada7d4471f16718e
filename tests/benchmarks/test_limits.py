"""The arithmetic of benchmarks.limits, on a plan that is made by hand."""

import dataclasses
import json

import jax
import pytest

from benchmarks import limits
from launch import abstract_state, analysis, chips, costs, hlo, roofline, topology
from tests.train import nano
from vr_jax import errors
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import model_setup, step_shapes

CHIP = chips.CHIPS["v5e"]
ABLE = 4 * CHIP.peak  # FLOP/s of four chips
LEAF = analysis.Leaf(name="params.x", shape="float32[1]", bytes=4)


def part(name: str, seconds: float, schedule: float, *, model: float, vision: float = 0.0):
  return analysis.ProgramPart(
    name=name,
    costs=costs.Costs(),
    roofline=roofline.Roofline(compute=seconds, memory=0.0, network=0.0, schedule=schedule),
    work=analysis.CountedFlops(model=model, executed=model, vision=vision),
  )


def program(*parts: analysis.ProgramPart, runs: int = 1, fits: bool = True) -> analysis.Analysis:
  return analysis.Analysis(
    name=parts[-1].name,
    runs=runs,
    memory=analysis.Memory(arguments=0, temporaries=0, output=0, resident=0, peak=0),
    fits=fits,
    parts=parts,
    leaf=LEAF,
    largest=[costs.Temporary(hlo.Shape("f32", (1,)), "")],
  )


def planned(*analyses: analysis.Analysis) -> analysis.SlicePlan:
  config = nano.config(model__dtype="bfloat16")
  model = model_setup.model_of(config)
  return analysis.SlicePlan(
    config=config,
    model=model,
    slice=topology.Slice(name="v5e:2x2", chip=CHIP, sides=(2, 2), devices=[None] * 4),
    mesh={"data": 1, "fsdp": 4, "sequence": 1, "tensor": 1},
    step_shapes=step_shapes.make_step_shapes(config, model),
    analyses=analyses,
  )


def a_step(**changes: bool) -> analysis.SlicePlan:
  """Parts of 1, 2, 4, 8 and 16 seconds at peak FLOPs, planned in more, some slower by XLA."""
  return planned(
    program(part("encoder", 1.5, 1.0, model=1 * ABLE, vision=1 * ABLE)),
    program(
      part("prefill", 2.5, 3.0, model=2 * ABLE), part("decode", 5.0, 4.0, model=4 * ABLE), **changes
    ),
    program(part("reference log-probs", 9.0, 10.0, model=8 * ABLE)),
    program(part("train step", 20.0, 24.0, model=16 * ABLE, vision=4 * ABLE), runs=2),
  )


def test_a_step_is_the_longer_of_plan_and_schedule_of_each_part():
  found = limits.compute(a_step())
  assert [row.floor for row in found.rows] == pytest.approx([1, 2, 4, 8, 32])
  assert [row.seconds for row in found.rows] == pytest.approx([1.5, 3, 5, 10, 48])
  assert found.seconds == pytest.approx(67.5)
  assert (found.total.floor, found.total.plan, found.total.schedule) == pytest.approx((47, 58, 66))
  assert found.rows[1].ratio == pytest.approx(1.5)


def test_the_update_is_the_encoder_and_all_runs_of_the_train_step():
  found = limits.compute(a_step())
  assert found.mfu == pytest.approx((1 + 32) / (1.5 + 48))
  assert found.mfu_text == pytest.approx((32 - 8) / 48)


def test_a_critic_is_updated_too():
  plan = a_step()
  critic = program(part("critic step", 12.0, 10.0, model=8 * ABLE, vision=2 * ABLE), runs=2)
  found = limits.compute(dataclasses.replace(plan, analyses=(*plan.analyses, critic)))
  assert found.mfu == pytest.approx((1 + 32 + 16) / (1.5 + 48 + 24))
  assert found.mfu_text == pytest.approx((32 - 8 + 16 - 4) / (48 + 24))


def test_prompts_count_for_each_reply_as_others_count_them_and_once_as_they_are_computed():
  found = limits.compute(a_step())
  assert found.counted == 4 * 4 * (96 + 16)
  assert found.computed == 4 * (96 + 4 * 16)
  assert found.rates == pytest.approx((1792 / 67.5 / 4, 640 / 67.5 / 4))


def test_a_decoded_token_reads_each_matrix_of_the_network_and_each_key_of_the_prompts_once():
  plan = planned()
  mesh = mesh_lib.make_mesh((1, 1, 1, 1), jax.devices()[:1])
  run = abstract_state.make_abstract_state(plan.config, plan.model, mesh, plan.step_shapes)
  leaves = jax.tree_util.tree_leaves_with_path(run.text)
  # The embedding is the head, too; biases and norms are left out.
  matrices = [x.size for path, x in leaves if not {"bias", "norm"} & _words(path)]
  assert len(matrices) == 8
  keys = 4 * 96 * 2 * 2 * (2 * 8)  # prompts, tokens, layers, keys and values, heads
  assert limits.bytes_of_a_token(plan) == 2 * (sum(matrices) + keys)


def _words(path: tuple[object, ...]) -> set[str]:
  name = jax.tree_util.keystr(path)
  return {word for word in ("bias", "norm") if word in name}


def test_decoding_has_to_read_what_its_few_products_need():
  decode = part("decode", 1.0, 1.0, model=1.0)
  plan = planned(program(decode))
  needed = 16 * limits.bytes_of_a_token(plan) / 4 / CHIP.bandwidth
  assert limits.floor_seconds(plan, decode.name, decode.work) == pytest.approx(needed)
  prefill = part("prefill", 1.0, 1.0, model=ABLE)
  assert limits.floor_seconds(plan, prefill.name, prefill.work) == pytest.approx(1.0)


def test_floors_need_no_compiler_and_count_every_program():
  config = nano.config(
    model__dtype="bfloat16", model__freeze_vision=True, rl__kl_weight=0.04, rl__num_iterations=2
  )
  one = topology.Slice(name="one", chip=CHIP, sides=(1, 1), devices=jax.devices()[:1])
  least = limits.floors(config, one)
  scores = ["reference log-probs", "policy log-probs"]
  assert [*least] == ["encoder", "prefill", "decode", *scores, "train step"]
  # Forward and twice as much backward, in two iterations; the frozen tower runs in neither.
  assert least["train step"] == pytest.approx(2 * 3 * least["policy log-probs"])
  assert least["decode"] == pytest.approx(16 * limits.bytes_of_a_token(planned()) / CHIP.bandwidth)
  table = limits.floors_as_text("tiny", one, least).splitlines()
  assert [line.count("|") for line in table] == [9, 9, 9]
  assert table[-1].startswith("| tiny, one |")


def test_a_plan_without_room_has_no_limits():
  with pytest.raises(errors.InputError, match="no room"):
    limits.compute(a_step(fits=False))


def test_the_table_has_every_part_and_everyone():
  plan = a_step()
  found = limits.compute(plan)
  text = limits.as_text("moss_chatv.py:7b", plan, found)
  assert "| decode | 4.000 | 5.000 | 4.000 | 1.25 |" in text
  assert "| step | 47.000 | 58.000 | 66.000 | 1.44 |" in text
  for each in limits.PUBLISHED:
    assert text.count(each.name) == 2
  # 4.93 million tokens in 131.9 s on 32 chips of 0.989 PFLOP/s.
  assert "| 131.9 | 4,930,000 | 1,168 | 1,181 | 14% |" in text
  ours = f"| 67.5 | 1,792 | {1792 / 67.5 / 4:,.0f} | {1792 / 67.5 / 4 / 0.197:,.0f} | 67% / 50% |"
  assert ours in text
  assert json.loads(json.dumps(limits.as_json(plan, found)))["seconds"] == pytest.approx(67.5)
