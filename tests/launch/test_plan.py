"""The command line: its one-line errors, and its advice for a config that has no room."""

import dataclasses
import importlib.util
import json

import jax.numpy as jnp
import pytest

from launch import analysis, costs, expected_time, hlo, plan, report, sweep, topology
from tests.train import nano
from vr_jax import errors
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import estimates, model_setup, step_shapes

CONFIG = f"--config={nano.ROOT / nano.RECIPE}"


def refused(capsys, *flags: str) -> str:
  assert plan.main(flags) == 2
  line = capsys.readouterr().err.strip()
  assert "\n" not in line
  return line


def test_an_unknown_topology_is_answered_with_the_known_ones(capsys):
  for name in ("v9:2x2", "v5p-17", "0xv5p-64", "2xv9:2x2", "", "nonsense"):
    line = refused(capsys, f"{CONFIG}:tiny", f"--topology={name}", "--config.rl.steps=1")
    assert "topology" in line
  line = refused(capsys, f"{CONFIG}:tiny", "--topology=v9:2x2")
  for known in ("v5e:{2x2", "v5p:{2x2x1", "v6e:{2x2", "tpu7x:{2x2x1"):
    assert known in line


@pytest.mark.parametrize(
  "name", ["v5e:4x4x4", "v5p:4x4", "v5p:3x3x3", "v6e:1x2", "v5p:axb", "2xv5p:3x3x3"]
)
def test_a_shape_that_no_slice_has_is_refused(capsys, name):
  assert f"--topology={name}" in refused(capsys, f"{CONFIG}:tiny", f"--topology={name}")


@pytest.mark.parametrize(
  ("name", "devices"),
  [("v5e:2x4", 8), ("v6e-8", 8), ("v5p:2x2x2", 8), ("v5p-16", 8), ("tpu7x-8", 8)],
)
def test_every_chip_of_a_slice_has_its_place(name, devices):
  where = topology.find(name)
  places = [where.place(device) for device in where.devices]
  assert len(places) == devices
  assert len(set(places)) == where.chips
  assert tuple(max(axis) + 1 for axis in zip(*places, strict=True)) == where.sides


@pytest.mark.parametrize("name", ["v6e-1", "v5e:1x1"])
def test_a_single_chip_is_a_slice_too(name):
  where = topology.find(name)
  assert (where.chips, where.sides, where.place(where.devices[0])) == (1, (1, 1), (0, 0))


@pytest.mark.parametrize("name", ["3xv5p-16", "3xv5p:2x2x2"])
def test_of_several_slices_each_has_all_places_and_its_devices_follow_one_another(name):
  where = topology.find(name)
  assert (where.name, where.count, where.chips) == ("3xv5p:2x2x2", 3, 24)
  assert [device.slice_index for device in where.devices] == [0] * 8 + [1] * 8 + [2] * 8
  mesh = mesh_lib.make_mesh((3, -1, 1, 1), where.devices)
  for number, row in enumerate(mesh.devices):  # data goes from slice to slice
    assert {device.slice_index for device in row.flat} == {number}
    assert len({where.place(device) for device in row.flat}) == 8


def test_without_the_tpu_compiler_nothing_else_is_taken_for_it(monkeypatch):
  real = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else real(name, *rest)
  )
  with pytest.raises(errors.InputError, match=r"libtpu: not installed.*pip install"):
    topology.find("v5e:2x2")


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--config.mesh=(1,3,1,1)"], ["config.mesh", "needs 3 devices, this run has 4"]),
    (["--config.mesh=(1,1,1,4)"], ["config.mesh", "does not divide"]),
    (["--config.mesh=(1,1)"], ["config.mesh", "four"]),
    (["--config.rl.batch_size=6"], ["config.rl.batch_size=6", "not a multiple"]),
    (["--config.model.dtype=float16"], ["config.model.dtype=float16", "TPU v5e", "bfloat16"]),
    (["--config.data.frames=640"], ["config.model.frame_buckets", "320 temporal patches"]),
    (["--config.rl.promts=6"], ["config.rl.promts", "nearest"]),
    (
      [
        "--config.model.pretrained=/nowhere/else",
        "--config.env.instruction=<think></think><answer></answer>",
      ],
      ["config.model.pretrained=/nowhere/else"],
    ),
    (["--sideways"], ["sideways"]),
  ],
)
def test_what_does_not_go_together_is_named(capsys, flags, words):
  line = refused(capsys, f"{CONFIG}:tiny", "--topology=v5e:2x2", *flags)
  for word in words:
    assert word in line


def test_a_config_that_is_no_file_is_refused(capsys):
  assert "no such file" in refused(capsys, "--config=nowhere.py:tiny", "--topology=v5e:2x2")
  assert "--config=" in refused(capsys, "--topology=v5e:2x2")


LEAF = analysis.Leaf(name="params.text.layers.gate", shape="float32[28,3584,18944]", bytes=2**30)


def planned(one: analysis.Analysis, *, recipe=nano.RECIPE) -> analysis.SlicePlan:
  where = topology.find("v5e:2x2")
  config = nano.recipe("tiny", recipe)
  config.rl.microbatches = 1
  model = model_setup.model_of(config)
  mesh = {"data": 4, "fsdp": 1, "sequence": 1, "tensor": 1}
  shapes = step_shapes.make_step_shapes(config, model)
  return analysis.SlicePlan(
    config=config, model=model, slice=where, mesh=mesh, step_shapes=shapes, analyses=[one]
  )


def too_large(*, arguments: float, temporaries: float, parts=()) -> analysis.Analysis:
  memory = analysis.Memory(
    arguments=arguments,
    temporaries=temporaries,
    output=0,
    resident=0,
    peak=arguments + temporaries,
  )
  largest = [costs.Temporary(hlo.Shape("f32", (8, 1024, 152064)), "jit(step)/logits")]
  return analysis.Analysis(
    name="train step",
    runs=1,
    memory=memory,
    fits=False,
    parts=parts,
    leaf=LEAF,
    largest=largest,
  )


def test_of_a_program_without_room_the_largest_tensor_and_a_remedy_are_named():
  found = planned(too_large(arguments=2e9, temporaries=30e9))
  text = report.as_text(found)
  verdict = text.splitlines()[-1]
  for word in ("does not fit", "f32[8,1024,152064]", "4.64 GiB", "rl.microbatches", "15.75"):
    assert word in verdict
  assert not found.fits
  assert report.as_json(found)["step"] is None


def test_where_parameters_take_most_of_the_room_their_largest_and_the_mesh_are_named():
  verdict = report.as_text(planned(too_large(arguments=14e9, temporaries=9e9))).splitlines()[-1]
  for word in ("13.0 are in memory", LEAF.name, LEAF.shape, "1.00 GiB", "config.mesh", "freeze"):
    assert word in verdict


def test_what_a_config_has_done_already_is_no_remedy():
  one = too_large(arguments=14e9, temporaries=9e9)
  found = planned(one)
  remedies = ["fsdp or tensor", "model.freeze_vision", "rl.kl_weight=0", "more chips"]
  with found.config.unlocked():
    found.config.rl.kl_weight = 0.04
    reason = report.explain(found, one)
    assert all(remedy in reason for remedy in remedies)
    found.config.rl.kl_weight, found.config.model.freeze_vision = 0.0, True
  found.mesh.update(data=1, fsdp=4)
  reason = report.explain(found, one)
  assert [remedy in reason for remedy in remedies] == [False, False, False, True]
  one = too_large(arguments=2e9, temporaries=30e9)
  remedies = ["model.remat=full", "rl.microbatches"]
  assert all(remedy in report.explain(found, one) for remedy in remedies)
  with found.config.unlocked():
    found.config.model.remat = "full"
  split = dataclasses.replace(
    found, step_shapes=dataclasses.replace(found.step_shapes, microbatches=4)
  )
  assert not any(remedy in report.explain(split, one) for remedy in remedies)


def test_where_only_the_sum_of_what_is_made_is_known_none_of_it_is_blamed():
  one = dataclasses.replace(too_large(arguments=2e9, temporaries=30e9), largest=[])
  reason = report.explain(planned(one), one)
  assert "27.9 are made" in reason
  assert "logits" not in reason
  assert LEAF.name in reason
  assert "rl.microbatches" in reason


def test_of_episodes_the_plan_says_what_they_show_and_what_a_critic_takes():
  recipe = "configs/video_mtr.py"
  one = too_large(arguments=2e9, temporaries=30e9)
  found = planned(one, recipe=recipe)
  text = report.as_text(found)
  for words in ("later_turns 2", "env.frame_budget"):
    assert words in text
  shown = max(found.config.turns.observation_buckets)
  assert report.as_json(found)["load"]["later_tokens"] == shown
  parameters = planned(too_large(arguments=80e9, temporaries=9e9), recipe=recipe)
  parameters.config.critic.kl_weight = 0.1
  verdict = report.as_text(parameters).splitlines()[-1]
  assert "set critic.kl_weight=0" in verdict


def test_a_plan_of_some_layers_or_programs_says_so_and_has_no_total():
  where = topology.find("v5e:2x2")
  measure = measured(where, fits=lambda changed: True, seconds=lambda _: 2.0)
  whole = dataclasses.replace(measure(nano.recipe("3b")), layers=(36, 36))
  assert "fits; 2.00 s and " in report.as_text(whole)
  found = report.as_json(whole)
  assert (found["fits"], found["step"]["seconds"], found["layers"]) == (True, 2.0, 36)
  for part, words in (
    (dataclasses.replace(whole, layers=(2, 36)), "2 of 36 text layers, all"),
    (dataclasses.replace(whole, left_out=["encoder"]), "all without encoder"),
  ):
    text = report.as_text(part)
    assert f"\ncompiled: {words}\n" in text and f"has room: {words};" in text
    assert "an RL step at best" not in text and "fits; " not in text
    found = report.as_json(part)
    assert (found["fits"], found["step"]) == (None, None)
    assert (found["layers"], found["all_layers"]) == part.layers
    assert found["not_compiled"] == list(part.left_out)
  some = dataclasses.replace(planned(too_large(arguments=2e9, temporaries=30e9)), layers=(2, 36))
  assert report.as_json(some)["fits"] is False  # all layers need more


def test_a_program_that_the_step_does_not_have_is_refused(capsys):
  flags = [f"{CONFIG}:tiny", "--topology=v5e:2x2", "--config.model.dtype=bfloat16"]
  line = refused(capsys, *flags, "--programs=train step,rolout")
  assert "--programs=rolout: one of encoder, rollout, " in line


def test_a_plan_becomes_json():
  found = report.as_json(planned(too_large(arguments=2e9, temporaries=30e9)))
  assert json.loads(json.dumps(found))["programs"][0]["memory"]["temporaries"] == 30e9


def test_a_sweep_of_several_slices_lets_data_alone_span_them():
  found = sweep.candidates(nano.recipe("7b"), topology.find("2xv5p-16"))
  assert found
  assert all(data % 2 == 0 for data, *_ in found)


def test_the_time_that_is_left_follows_the_pace_of_what_is_done():
  now = [0.0]
  names = ["encoder", "rollout", "train step"]
  expected = expected_time.ExpectedTime(names, clock=lambda: now[0])
  assert expected.left == sum(expected_time.SECONDS[name] for name in names)
  assert str(expected).startswith("1 of 3, about ")
  now[0] = 3 * expected_time.SECONDS["encoder"]
  expected.finish("encoder")
  assert expected.left == 3 * sum(expected_time.SECONDS[name] for name in names[1:])
  assert str(expected).startswith("2 of 3, about ")
  expected.finish("rollout")
  expected.finish("train step")
  assert expected.left == 0


def test_meshes_of_a_sweep_use_every_device_and_divide_the_model():
  config = nano.recipe("7b")
  where = topology.find("v5p:2x2x2")
  found = sweep.candidates(config, where)
  assert found[0] == (1, 8, 1, 1)  # the config's own, whose -1s stand for it
  assert len({shape[2:] for shape in found}) == len(found)
  for data, fsdp, sequence, tensor in found:
    assert data * fsdp * sequence * tensor == 8
    assert 4 % tensor == 0  # key and value heads
    assert config.rl.batch_size % (data * fsdp) == 0


def test_a_large_model_is_tried_with_its_heads_split():
  """Each device then reads fewer weights for a token; this saves more than the train step sends."""
  config = nano.recipe("72b")
  config.mesh = (2, 8, 1, 8)
  found = sweep.candidates(config, topology.find("v5p:4x4x8"))
  assert found[0] == (2, 8, 1, 8)
  assert (1, 16, 1, 8) in found[1 : sweep.MESHES]


def network(mesh: tuple[int, ...], **changes):
  """The network of 7b on a mesh of eight chips; `changes` of its section rl."""
  config = nano.recipe("7b")
  config.rl.update(changes)
  model = model_setup.model_of(config)
  return model_setup.ModelSetup(
    config=config,
    mesh=mesh_lib.make_mesh(mesh, topology.find("v5p:2x2x2").devices),
    model=model,
    allowed_tokens=jnp.ones(model.vocab_size, bool),
    stop_tokens=(0,),
  )


@pytest.mark.parametrize(
  ("mesh", "kind", "heads", "mlp", "received"),
  [
    ((1, 8, 1, 1), "tensor", 4, 8, 0),  # four heads of keys, four devices of a process
    ((1, 2, 2, 2), "tensor", 2, 8, 0),  # fsdp's two belong to two processes
    ((2, 2, 2, 1), "tensor", 2, 4, 0),
    ((1, 8, 1, 1), "replicated", 1, 1, 0),
    ((1, 2, 1, 4), "replicated", 4, 4, 0),
    ((2, 2, 1, 2), "training", 2, 2, 1 / 2),  # fsdp and sequence have a part each
    ((1, 4, 2, 1), "training", 1, 1, 7 / 8),
  ],
)
def test_a_token_reads_what_a_device_has_of_the_weights_in_the_layout_of_decoding(
  mesh, kind, heads, mlp, received
):
  net = network(mesh, decode_layout=kind)
  attention, wide = 28 * 3584 * (2 * 28 + 2 * 4) * 128, 28 * 3 * 3584 * 18944
  weights = attention / heads + (wide + 3584 * 152064) / mlp
  read, gathered = estimates.decode_bytes(net)
  assert read == pytest.approx(2 * weights, rel=1e-3)
  assert gathered == pytest.approx(received * read)


def test_an_estimate_of_a_mesh_counts_what_is_read_and_what_is_sent():
  net = network((1, 8, 1, 1))
  model = net.model
  shapes = step_shapes.make_step_shapes(net.config, model)
  chip = topology.find("v5p:2x2x2").chip
  layers = 6_525_288_448
  assert sweep.moved(model, shapes, (1, 1, 1, 1)) == 0
  sent = 3 * shapes.microbatches * 2 * layers
  assert sweep.moved(model, shapes, (1, 8, 1, 1)) == pytest.approx(sent, rel=1e-3)
  read = shapes.time * estimates.decode_bytes(net)[0] / chip.bandwidth
  both = read + sent / (3 * chip.link)
  assert sweep.estimate(net, shapes, chip) == pytest.approx(both, rel=1e-3)
  training = network((1, 8, 1, 1), decode_layout="training")
  more = sum(
    shapes.time * bytes_ / speed
    for bytes_, speed in zip(
      estimates.decode_bytes(training), (chip.bandwidth, 3 * chip.link), strict=True
    )
  )
  assert sweep.estimate(training, shapes, chip) - both == pytest.approx(more - read, rel=1e-3)
  assert sweep.moved(model, shapes, (1, 4, 2, 1)) > sent  # and keys and values
  tokens = shapes.prompts * (shapes.prefix + shapes.group * shapes.time)
  reduced = 28 * 3 * 4 * 2 * tokens * 3584
  assert sweep.moved(model, shapes, (1, 1, 1, 4)) == reduced


def measured(where: topology.Slice, fits, seconds):
  """A replacement of the compiler: rules that say whether a config fits and how long it takes."""

  def measure(changed, *_, **__):
    memory = analysis.Memory(arguments=0, temporaries=0, output=0, resident=0, peak=changed.mesh[0])
    line = analysis.roofline.Roofline(compute=seconds(changed), memory=0, network=0)
    work = analysis.CountedFlops(model=1.0, executed=1.0)
    part = analysis.ProgramPart(name="all", costs=costs.Costs(), roofline=line, work=work)
    one = analysis.Analysis(
      name="all", runs=1, memory=memory, fits=fits(changed), parts=[part], leaf=LEAF, largest=[]
    )
    sides = dict(zip(("data", "fsdp", "sequence", "tensor"), changed.mesh, strict=True))
    model = model_setup.model_of(changed)
    shapes = step_shapes.make_step_shapes(changed, model)
    return analysis.SlicePlan(
      config=changed, model=model, slice=where, mesh=sides, step_shapes=shapes, analyses=[one]
    )

  return measure


def work_of(config) -> int:
  return (
    config.rl.batch_size // config.rl.microbatches * config.rl.num_generations * config.data.frames
  )


def test_a_sweep_takes_the_fastest_mesh_and_grows_the_load_on_it():
  config = nano.recipe("3b")
  with config.unlocked():
    config.rl.microbatches = 4
  measure = measured(
    topology.find("v5e:2x2"),
    fits=lambda changed: work_of(changed) <= 16 * 8 * 32,
    seconds=lambda changed: 8 / changed.mesh[1],
  )
  found = sweep.walk(config, [(4, 1, 1, 1), (1, 4, 1, 1), (2, 2, 1, 1)], measure)
  assert found.best.mesh == (1, 4, 1, 1)
  assert (found.largest.rows, found.largest.frames, found.largest.group) == (16, 32, 8)
  assert json.loads(json.dumps(sweep.as_json(found)))["largest"]["frames"] == 32
  text = sweep.as_text(found)
  assert "fastest at the config's load: mesh 1x4x1x1" in text
  assert "greedy search in powers of two" in text


def test_a_load_that_no_mesh_holds_is_halved_until_one_does():
  config = nano.recipe("3b")
  limit = 4 * config.rl.num_generations * config.data.frames
  measure = measured(
    topology.find("v5e:2x2"),
    fits=lambda changed: work_of(changed) <= limit,
    seconds=lambda changed: 1.0,
  )
  found = sweep.walk(config, [(4, 1, 1, 1), (1, 4, 1, 1), (2, 2, 1, 1)], measure)
  assert found.best is None
  assert (found.largest.mesh, found.largest.rows) == ((1, 4, 1, 1), 4)  # needs least memory
  assert found.plan.config.rl.microbatches == config.rl.batch_size // 4
  assert "fastest at the config's load: none fits" in sweep.as_text(found)
  nowhere = measured(topology.find("v5e:2x2"), fits=lambda changed: False, seconds=lambda _: 1.0)
  found = sweep.walk(config, [(1, 4, 1, 1)], nowhere)
  sizes = [(trial.rows, trial.frames, trial.group) for trial in found.trials]
  assert (1, 16, 8) in sizes
  assert (1, 2, 8) in sizes  # the frames of a temporal patch
  assert sizes[-1] == (1, 2, 2)
  assert found.largest is None
  assert "try more chips" in sweep.as_text(found)


def test_a_search_goes_down_its_list_until_something_fits(monkeypatch, capsys):
  config = nano.recipe("7b")
  where = topology.find("v5p:2x2x2")
  meshes = sweep.candidates(config, where)
  assert len(meshes) > sweep.MESHES
  monkeypatch.setattr(sweep, "candidates", lambda *_: meshes)
  last = measured(where, fits=lambda changed: changed.mesh == meshes[-1], seconds=lambda _: 1.0)
  monkeypatch.setattr(analysis, "analyse", last)
  found = sweep.search(config, where)
  assert found.best.mesh == meshes[-1]
  assert {trial.mesh for trial in found.trials} == set(meshes)
  first = measured(where, fits=lambda changed: True, seconds=lambda _: 1.0)
  monkeypatch.setattr(analysis, "analyse", first)
  tried = {trial.mesh for trial in sweep.search(config, where).trials}
  assert tried == set(meshes[: sweep.MESHES])
  flags = [f"{CONFIG}:7b", "--topology=v5p:2x2x2", "--sweep", "--json"]
  assert plan.main(flags) == 0
  assert json.loads(capsys.readouterr().out)["fastest"]["mesh"] == [1, 8, 1, 1]
