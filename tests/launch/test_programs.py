"""The programs of a config and the sizes of its arrays, without weights."""

import dataclasses
import math

import jax
import pytest

from launch import abstract_state, analysis, programs, topology
from tests.train import nano
from vr_jax import errors, records
from vr_jax.models import registry
from vr_jax.models.common import flops as flops_lib
from vr_jax.models.qwen2_5_vl import config as model_config
from vr_jax.models.qwen2_5_vl import flops, presets
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import sampler
from vr_jax.train import model_setup, step_shapes


def built(config, shape=(1, 2, 1, 1)):
  mesh = mesh_lib.make_mesh(shape, jax.devices()[: math.prod(shape)])
  model = model_setup.model_of(config)
  return (
    programs.programs_of_step(config, model, mesh, step_shapes.make_step_shapes(config, model)),
    model,
    mesh,
  )


def resident(config, model, mesh):
  """Bytes a device that stay for a whole run."""
  shapes = step_shapes.make_step_shapes(config, model)
  return programs.resident_bytes(abstract_state.make_abstract_state(config, model, mesh, shapes))


@pytest.mark.parametrize(
  ("name", "billions"),
  [
    ("Qwen2.5-VL-3B-Instruct", 3.755),
    ("Qwen2.5-VL-7B-Instruct", 8.292),
    ("Qwen2.5-VL-72B-Instruct", 73.411),
  ],
)
def test_released_models_have_the_parameters_that_their_cards_state(name, billions):
  """Hugging Face's model pages, parameters in safetensors: 3.75, 8.29 and 73.4 billion."""
  config = nano.recipe("7b")
  with config.unlocked():
    config.model.pretrained = f"/models/{name}"
  mesh = mesh_lib.make_mesh((1, 1, 1, 1), jax.devices()[:1])
  model = model_setup.model_of(config)
  step = programs.programs_of_step(
    config, model, mesh, step_shapes.make_step_shapes(config, model)
  )[-1]
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(step.arguments[0].params))
  assert count / 1e9 == pytest.approx(billions, abs=2e-3)


def test_a_config_json_on_disk_goes_before_the_table(tmp_path):
  config = nano.recipe("7b")
  directory = tmp_path / "Qwen2.5-VL-7B-Instruct"
  directory.mkdir()
  (directory / "config.json").write_text("{}")
  with config.unlocked():
    config.model.pretrained = str(directory)
  with pytest.raises(errors.InputError, match=r"config\.json"):
    model_setup.model_of(config)


def test_a_step_has_the_programs_that_its_config_asks_for():
  config = nano.config(rl__kl_weight=0.04)
  names = [program.name for program in built(config)[0]]
  assert names == ["encoder", "rollout", "reference log-probs", "train step"]
  both = nano.config(rl__kl_weight=0.04, rl__num_iterations=2)
  found = built(both)[0]
  assert [program.name for program in found][2:4] == ["reference log-probs", "policy log-probs"]
  assert found[-1].runs_per_step == 2
  without = nano.config(rl__kl_weight=0.0)
  assert [program.name for program in built(without)[0]] == ["encoder", "rollout", "train step"]


@pytest.mark.parametrize("frozen", [True, False])
def test_what_runs_no_tower_is_given_features_and_not_patches(frozen):
  config = nano.config(rl__kl_weight=0.04, rl__num_iterations=2, model__freeze_vision=frozen)
  encoder, *others = built(config)[0]
  assert encoder.tower
  with_tower = [program.name for program in others if program.tower]
  assert with_tower == ([] if frozen else ["reference log-probs", "train step"])
  features = jax.eval_shape(
    lambda *given: encoder.function(encoder.arguments[0], *given), *encoder.arguments[1:]
  )
  for program in others:
    (prompt,) = (x for x in program.arguments if isinstance(x, records.Prompt))
    assert (prompt.vision is None) == (prompt.media is not None) == (not program.tower)
    if not program.tower:
      assert (prompt.media.shape, prompt.media.dtype) == (features.shape, features.dtype)


def test_what_lies_in_memory_beside_a_program_is_the_rest_of_the_run():
  config = nano.config(rl__kl_weight=0.04)
  found, model, mesh = built(config)
  everything = resident(config, model, mesh)
  params = programs.bytes_per_device(found[-1].arguments[0].params)
  assert everything == pytest.approx(4 * params, rel=0.01)  # two moments, and the reference
  encoder, rollout, reference, step = found
  counters = 3 * 4
  tower = programs.bytes_per_device(step.arguments[0].params["vision"])
  assert programs.bytes_per_device(encoder.resident_arrays) == everything - tower - counters
  assert (
    programs.bytes_per_device(rollout.resident_arrays) == everything - (params - tower) - counters
  )
  assert programs.bytes_per_device(reference.resident_arrays) == everything - params - counters
  assert programs.bytes_per_device(step.resident_arrays) == params + next_batch(step)


def next_batch(step):
  """Bytes of prompts like those of an update that trains the tower."""
  return programs.bytes_per_device(step.arguments[1])


@pytest.mark.parametrize("gibibytes", [0.0, 1.0])
def test_the_next_batch_lies_beside_an_update_unless_a_cache_may_have_its_features(gibibytes):
  config = nano.config(model__freeze_vision=True, model__feature_cache_gib=gibibytes)
  encoder, *_, step = built(config)[0]
  patches = programs.bytes_per_device(encoder.arguments[-1])
  held = programs.bytes_per_device(step.resident_arrays)
  text = programs.bytes_per_device(dataclasses.replace(step.arguments[1], media=None))
  assert held == (0 if gibibytes else patches + text)
  assert patches > 0


def test_adapters_share_the_base_with_the_reference():
  config = nano.config(rl__kl_weight=0.04, model__lora__rank=2)
  found, model, mesh = built(config)
  everything = resident(config, model, mesh)
  params = programs.bytes_per_device(found[-1].arguments[0].params)
  assert params < everything < 1.5 * params
  *held, _ = found[-1].resident_arrays  # the next batch
  assert programs.bytes_per_device(held) < 0.2 * params


def test_a_mesh_holds_its_share_of_each_array():
  config = nano.config()
  whole = built(config, (1, 1, 1, 1))[0][-1]
  halved = built(config, (1, 2, 1, 1))[0][-1]
  state = [programs.bytes_per_device(step.arguments[0]) for step in (whole, halved)]
  assert state[1] < 0.6 * state[0]


def test_the_buckets_of_a_full_clip_are_the_load():
  config = nano.recipe("7b")
  shapes = step_shapes.make_step_shapes(config, model_setup.model_of(config))
  assert (shapes.frames, shapes.patches, shapes.prefix) == (8, 512, 1280)
  with config.unlocked():
    config.model.prefix_buckets = (1024,)
  with pytest.raises(errors.InputError, match=r"prefix_buckets.*1025 tokens"):
    step_shapes.make_step_shapes(config, model_setup.model_of(config))


@pytest.mark.parametrize(("history_turns", "forgets"), [(0, True), (1, True), (2, False)])
def test_replies_forget_turns_where_they_see_fewer_than_an_episode_has(history_turns, forgets):
  config = nano.recipe("7b", "configs/video_mtr.py")
  with config.unlocked():
    config.env.history_turns = history_turns
  shapes = step_shapes.make_step_shapes(config, model_setup.model_of(config))
  assert shapes.later.turns == 2
  assert shapes.later.forgets == forgets


def test_programs_are_made_for_devices_that_are_not_here():
  config = nano.config()
  mesh = mesh_lib.make_mesh((1, 4, 1, 1), topology.find("v5e:2x2").devices)
  model = model_setup.model_of(config)
  for program in programs.programs_of_step(
    config, model, mesh, step_shapes.make_step_shapes(config, model)
  ):
    for x in jax.tree.leaves(program.arguments):
      if isinstance(x, jax.ShapeDtypeStruct):
        assert x.sharding.mesh.devices.flat[0].platform == "tpu"


def test_flops_of_the_7b_model_are_two_for_each_parameter_and_token():
  """With one token, attention is negligible; each text parameter but the embedding is used once."""
  model = model_config.Qwen2_5_VLConfig.from_dict(presets.RELEASES["Qwen2.5-VL-7B-Instruct"])
  work = flops.forward(model, frames=0, patches=0, prefix=1, group=0, time=0)
  matrices = 6_525_288_448  # query, key, value, out, gate, up and down of 28 layers
  assert work.total == pytest.approx(2 * matrices, rel=1e-3)
  assert work.vision == 0


def test_flops_of_training_count_each_pass():
  work = flops_lib.Forward(vision=5.0, prefix=1.0, replies=2.0, head=4.0)
  assert flops_lib.training(work, vision_frozen=False) == 3 * 12
  assert flops_lib.training(work, vision_frozen=True) == 5 + 3 * 7
  assert flops_lib.training(work, vision_frozen=True, rematerialised=True) == 5 + 4 * 7
  assert flops_lib.training(work, vision_frozen=True, base_frozen=True) == 5 + 2 * 7


TURNS = {
  "model__prefix_buckets": (224,),
  "model__frame_buckets": (8,),
  "turns__episode_buckets": (96, 192),
  "turns__observation_buckets": (64,),
  "turns__frame_buckets": (2, 4),
  "turns__decode_chunk": 12,
  "turns__append_batch_size": 3,
  "critic__kl_weight": 0.1,
}


def of_turns(shape, **changes):
  return built(nano.config("configs/video_mtr.py", **{**TURNS, **changes}), shape)


def test_episodes_are_played_by_programs_of_their_own_and_a_critic_has_two():
  found = of_turns((2, 1, 1, 1), rl__num_iterations=2)[0]
  names = [
    "encoder",
    "prefill",
    "decode",
    "append observations",
    "reference log-probs",
    "policy log-probs",
  ]
  assert [program.name for program in found] == [*names, "values", "train step", "critic step"]
  runs = {program.name: program.runs_per_step for program in found}
  # Three replies of 16 tokens in chunks of 12. Eight replies a device get an observation, three at
  # a time, twice.
  assert (runs["decode"], runs["append observations"]) == (3 * 2, 2 * 3)
  assert runs["train step"] == runs["critic step"] == 2
  without = of_turns((2, 1, 1, 1), critic__kl_weight=0.0, rl__advantage_estimator="episode")[0]
  assert [program.name for program in without] == [*names[:4], "train step"]


def test_a_critic_lies_beside_its_policy():
  found, model, mesh = of_turns((2, 1, 1, 1))
  config = nano.config("configs/video_mtr.py", **TURNS)
  everything = resident(config, model, mesh)
  by_name = {program.name: program for program in found}
  params = programs.bytes_per_device(by_name["train step"].arguments[0].params)
  # Policy and critic with two moments each, and the reference.
  assert everything == pytest.approx(7 * params, rel=0.01)
  for name in ("train step", "critic step"):
    held = programs.bytes_per_device((by_name[name].arguments[0], by_name[name].resident_arrays))
    assert held == everything + next_batch(by_name[name])
  values = by_name["values"]
  state = programs.bytes_per_device((values.arguments[0], values.resident_arrays))
  counters = 3 * 4
  assert state == everything - counters


@pytest.mark.parametrize("frozen", [True, False])
def test_patches_of_all_turns_go_to_the_programs_that_train_the_tower(frozen):
  found = of_turns((2, 1, 1, 1), model__freeze_vision=frozen)[0]
  frames = {program.name: program.frames for program in found}
  trained = [] if frozen else [(8, 16), (4 * 4, 16)]  # of 16 patches each
  assert frames == {
    "encoder": [(8, 16)],
    "prefill": [],
    "decode": [],
    "append observations": [(2, 16)],
    "reference log-probs": trained,
    "values": trained,
    "train step": trained,
    "critic step": trained,
  }


@pytest.mark.parametrize(
  ("shape", "decode_layout"),
  [((1, 4, 1, 1), "replicated"), ((1, 2, 2, 2), "training"), ((1, 4, 1, 1), "tensor")],
)
def test_the_state_that_episodes_begin_with_has_the_shardings_of_its_program(shape, decode_layout):
  found = of_turns(shape, rl__decode_layout=decode_layout)[0]
  prefill, decode, append = found[1:4]
  graphdef, params, prefix, state, *_ = decode.arguments
  longest = {**prefill.keywords, "length": 192}
  begun = prefill.function.lower(*prefill.arguments, **longest).compile()
  gathered = sampler.changed_for_decoding.lower(graphdef, prefill.arguments[1]).compile()

  def of_decoding(changed, x):
    return x.sharding if changed is None else changed

  changed = gathered.output_shardings
  decoding = jax.tree.map(of_decoding, changed, params, is_leaf=lambda x: x is None)
  assert (len(jax.tree.leaves(changed)) > 10) == (decode_layout != "training")
  compiled = jax.tree.leaves((begun.output_shardings, decoding))
  abstract = jax.tree.leaves(((prefix, state), params))
  for sharding, x in zip(compiled, abstract, strict=True):
    assert sharding.is_equivalent_to(x.sharding, x.ndim), (sharding, x)
  for program in (decode, append):
    program.function.lower(*program.arguments, **program.keywords)


def test_episodes_are_decoded_with_int8_weights_beside_the_floats_that_they_stand_for():
  changes = {"rl__sampler_weights": "int8", "critic__kl_weight": 0.0}
  decode, append = of_turns((1, 4, 1, 1), **changes)[0][2:4]
  for program in (decode, append):
    dtypes = [x.dtype for x in jax.tree.leaves(program.arguments[1])]
    assert dtypes.count("int8") == len(registry.family("qwen2_5_vl").lora_targets.text)
    kept = [x.shape for x in jax.tree.leaves(program.resident_arrays)]
    assert all(x.shape in kept for x in jax.tree.leaves(program.arguments[1]) if x.dtype == "int8")
    program.function.lower(*program.arguments, **program.keywords)
  assert decode.keywords["decoding"].int8_weights


def test_a_shallow_model_keeps_the_layers_that_get_features_of_the_tower():
  deep = registry.preset_config("Qwen3-VL-8B-Instruct")
  with pytest.raises(errors.InputError, match=r"--layers=2: 3 to 36, as the first 3 get features"):
    analysis._shallow(deep, 2)
  assert analysis._shallow(deep, 3).text_sizes.layers == 3
  plain = registry.preset_config("Qwen2.5-VL-3B-Instruct")
  assert analysis._shallow(plain, 1).text_sizes.layers == 1
  with pytest.raises(errors.InputError, match=r"--layers=37: 1 to 36$"):
    analysis._shallow(plain, 37)
