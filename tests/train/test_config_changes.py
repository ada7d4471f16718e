"""Which fields a workdir lets change, and that a run that is extended is one that had all steps."""

import json

import jax
import numpy as np
import pytest

from tests.train import nano
from vr_jax import config_fields, errors, main, optional_sections, schema
from vr_jax.train import (
  checkpoints,
  config_changes,
  initialization,
  metrics,
  rl_loop,
  run_context,
  sft_loop,
  train_state,
  workdir,
)

CONSTANT = {"sft__schedule": "constant", "rl__schedule": "constant", "rl__checkpoint_every": 2}


def _made(path, *, sft=0, rl=0, **fields):
  """Makes a workdir as its stages leave it, without the contents of data and checkpoints."""
  workdir.claim(path, nano.config(**fields), "all")
  (path / "data").mkdir(parents=True)
  (path / "data" / "shard").touch()
  for stage, step in (("sft", sft), ("rl", rl)):
    if step:
      (path / "checkpoints" / stage / str(step)).mkdir(parents=True)
  return path


def _refusal(path, **fields) -> str:
  before = (path / "config.json").read_bytes()
  with pytest.raises(errors.InputError) as error:
    workdir.claim(path, nano.config(**fields), "all")
  assert (path / "config.json").read_bytes() == before
  return str(error.value)


def test_every_field_says_until_when_it_may_change():
  declared = config_changes.declared_fields("moss_chatv")
  assert {field.change for field in declared.values()} == set(schema.CHANGES)
  for cls in (config_fields.RunConfig, *optional_sections.OPTIONAL.values()):
    assert {field.change for field in schema.fields(cls)} <= set(schema.CHANGES)


@pytest.mark.parametrize(
  ("done", "fields"),
  [
    ({}, {"rl__num_generations": 2, "sft__batch_size": 2, "model__prefix_buckets": (999,)}),
    ({"sft": 4}, {"rl__batch_size": 2, "env__process_gate": "format", "rl__kl_weight": 0.5}),
    ({"sft": 4, "rl": 4}, {"rl__steps": 6, "rl__checkpoint_every": 3, "rl__learning_rate": 1e-4}),
    ({"sft": 4, "rl": 4}, {"model__remat": "full", "mesh": (1, 1, 1, 1), "data__on_bad": "skip"}),
    ({"sft": 4, "rl": 4}, {"rl__sampler_weights": "int8"}),
    ({"sft": 4, "rl": 4}, {"rl__steps": 4, "eval__examples": 3, "export__dtype": "bfloat16"}),
    ({"sft": 2}, {"sft__steps": 2, "sft__schedule": "constant", "sft__target_loss": 0.5}),
  ],
)
def test_what_may_change_is_taken_written_and_listed(tmp_path, capsys, done, fields):
  path = _made(tmp_path, **done)
  workdir.claim(path, nano.config(**fields), "all")
  written = json.loads((path / "config.json").read_text())
  flat, before = (
    config_changes.flatten(json.loads(json.dumps(config.to_dict())))
    for config in (nano.config(**fields), nano.config())
  )
  assert config_changes.flatten(written["config"]) == flat
  changed = {name: [before[name], flat[name]] for name in flat if flat[name] != before[name]}
  assert written["history"][1]["changed"] == changed
  assert "changed" not in written["history"][0]
  out = capsys.readouterr().out
  for name, (old, new) in changed.items():
    assert f"config.{name}={old!r}, now {new!r}" in out


@pytest.mark.parametrize(
  ("done", "fields", "says"),
  [
    ({}, {"data__fps": 4.0}, "now 4.0; the data were made with it: give"),
    ({}, {"data__simulate__world__height": 32}, "config.data.simulate.world.height=64, now 32"),
    # The tokenizer of the size tiny is trained on the texts of the environment.
    ({}, {"env__instruction": "x"}, "config.env.instruction='', now 'x'; the data were made"),
    ({"sft": 4}, {"sft__batch_size": 2}, "config.sft.batch_size=4, now 2; it was trained with"),
    ({"sft": 4}, {"model__architecture__text_config__hidden_size": 64}, "hidden_size=32, now 64"),
    ({"rl": 4}, {"rl__batch_size": 2}, "now 2; rl has been trained with it for 4 steps: give"),
    ({"sft": 4}, {"sft__steps": 3}, "config.sft.steps=4, now 3; 4 steps are done: give 4 or more"),
    ({"rl": 4}, {"rl__steps": 2}, "config.rl.steps=4, now 2; 4 steps are done: give 4 or more"),
    ({"sft": 4, "rl": 2}, {"sft__steps": 6}, "now 6; rl has started from the warm start as it is"),
    ({"rl": 4}, {"seed": 1, "rl__top_p": 0.5}, "config.rl.top_p=1.0, now 0.5; rl has been tra"),
    ({"rl": 4}, {"seed": 1, "rl__top_p": 0.5}, "(1 more fields are refused)"),
  ],
)
def test_another_change_is_refused_with_field_values_and_what_to_do(tmp_path, done, fields, says):
  line = _refusal(_made(tmp_path, **done), **fields)
  assert line.startswith(f"{tmp_path / 'config.json'}: written with config.")
  assert says in line
  assert "choose another --workdir" in line


def _older(path, *names):
  """Takes fields out of config.json, as a version wrote it that did not have them."""
  content = json.loads((path / "config.json").read_text())
  for name in names:
    section, field = name.split(".")
    del content["config"][section][field]
  (path / "config.json").write_text(json.dumps(content))


def test_a_new_field_at_its_default_lets_an_older_run_go_on(tmp_path, capsys):
  path = _made(tmp_path, sft=4, rl=4)
  _older(path, "rl.kl_clamp", "log.hang_timeout")
  workdir.claim(path, nano.config(), "all")
  assert "changes" not in capsys.readouterr().out
  assert "changed" not in json.loads((path / "config.json").read_text())["history"][1]


@pytest.mark.parametrize(("whole", "layout"), [(True, "replicated"), (False, "training")])
def test_a_run_of_an_older_version_goes_on_with_weights_that_decode_as_they_did(
  tmp_path, capsys, whole, layout
):
  path = _made(tmp_path, rl=4)
  _older(path, "rl.decode_layout")
  content = json.loads((path / "config.json").read_text())
  content["config"]["rl"]["replicate_weights_for_decode"] = whole
  (path / "config.json").write_text(json.dumps(content))
  config = workdir.config_of(path)
  assert config.rl.decode_layout == layout
  workdir.claim(path, config, "all")
  assert "changes" not in capsys.readouterr().out
  assert "replicate_weights_for_decode" not in (path / "config.json").read_text()


def test_a_new_field_at_another_value_is_a_change(tmp_path, capsys):
  path = _made(tmp_path, rl=4)
  _older(path, "rl.kl_clamp", "log.hang_timeout")
  workdir.claim(path, nano.config(log__hang_timeout=60.0), "all")
  written = json.loads((path / "config.json").read_text())
  assert written["history"][1]["changed"] == {"log.hang_timeout": [None, 60.0]}
  assert "config.log.hang_timeout=nothing, now 60.0" in capsys.readouterr().out
  _older(path, "rl.kl_clamp")
  line = _refusal(path, rl__kl_clamp=2.0)
  assert "config.rl.kl_clamp=nothing, now 2.0; rl has been trained with it" in line
  assert "go on with the version that wrote it" in line


def test_the_advice_of_a_refusal_works(tmp_path):
  path = _made(tmp_path, sft=4, rl=4)
  assert f"delete {path}/checkpoints/rl to train anew" in _refusal(path, rl__batch_size=2)
  (path / "checkpoints" / "rl" / "4").rmdir()
  workdir.claim(path, nano.config(rl__batch_size=2), "all")
  assert f"delete {path}/checkpoints to train anew" in _refusal(path, rl__batch_size=2, seed=1)
  (path / "checkpoints" / "sft" / "4").rmdir()
  workdir.claim(path, nano.config(rl__batch_size=2, seed=1), "all")


def test_the_log_says_what_more_steps_do_to_the_learning_rate(tmp_path, capsys):
  fields = {"rl__num_iterations": 2, "rl__warmup_steps": 1, "rl__schedule": "cosine"}
  path = _made(tmp_path, sft=4, rl=4, **fields)
  workdir.claim(path, nano.config(rl__steps=6, **fields), "rl")
  out = capsys.readouterr().out
  rate = 3e-4 * (1 + np.cos(np.pi * (8 - 2) / (12 - 2))) / 2  # a cosine behind the warm-up
  assert f"rl: step 5 has a learning rate of {rate:.3g} instead of 0 (rl.schedule=cosine, 6" in out
  workdir.claim(path, nano.config(rl__steps=6, eval__examples=3, **fields), "rl")
  assert "learning rate" not in capsys.readouterr().out


def test_constant_rates_are_not_spoken_of(tmp_path, capsys):
  path = _made(tmp_path, rl=4, **CONSTANT)
  workdir.claim(path, nano.config(rl__steps=6, **CONSTANT), "rl")
  assert "learning rate" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def extended(data, tmp_path_factory):
  """Two workdirs: of a run of three steps a stage, and of one of two that was given a third."""
  whole, parts = (tmp_path_factory.mktemp(name) for name in ("whole", "parts"))

  def train(loop, path, **steps):
    context = nano.build(data, **CONSTANT, **steps)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(run_context, "make_run_context", lambda config, workdir, **_: context)
      loop.train(context.config, path)
    return context

  for name, loop in (("sft", sft_loop), ("rl", rl_loop)):
    context = train(loop, whole, **{"sft__steps": 3, "rl__steps": 3})
    for steps in (2, 3):
      train(loop, parts, **{"sft__steps": 3, "rl__steps": 3, f"{name}__steps": steps})
  return context, whole, parts


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_run_that_is_extended_ends_bit_for_bit_as_one_that_had_all_steps(extended, stage):
  context, *paths = extended
  section = context.config[stage]
  optimizer = train_state.make_optimizer(section, context.abstract_params, context.frozen)
  state = train_state.create(initialization.fresh_params(context), optimizer, context.mesh)
  whole, parts = (
    checkpoints.Checkpoints(path / "checkpoints" / stage, architecture=context.architecture)
    for path in paths
  )
  expected, actual = (
    store.restore(vars(state) if stage == "rl" else state) for store in (whole, parts)
  )
  assert expected.step == actual.step == 3
  assert expected.loop == actual.loop
  for one, other in zip(jax.tree.leaves(expected.tree), jax.tree.leaves(actual.tree), strict=True):
    np.testing.assert_array_equal(one, other)


def test_its_metrics_are_those_of_one_that_had_all_steps(extended):
  found = []
  for path in extended[1:]:
    lines = metrics.read(path / "metrics.jsonl")
    for line in lines:
      line["values"] = {k: v for k, v in line["values"].items() if not k.startswith("perf/")}
    found.append(lines)
  assert [line["step"] for line in found[0]] == [1, 2, 3] * 2
  assert json.dumps(found[0]) == json.dumps(found[1])


def test_a_workdir_is_enough_and_flags_change_its_config(tmp_path):
  path = _made(tmp_path, sft=4, rl=4)
  config, where, mode = main.parse_flags(["vr-jax", f"--workdir={path}", "--mode=eval"])
  assert config.to_dict() == nano.config().to_dict()
  assert (where, mode) == (path, "eval")
  words = ["vr-jax", f"--workdir={path}", "--config.rl.steps=6", "--config.mesh=(1, 1, 1, 1)"]
  config, _, mode = main.parse_flags(words)
  assert (config.rl.steps, config.mesh, mode) == (6, (1, 1, 1, 1), "all")
  with pytest.raises(errors.InputError, match=r"rl\.stps: no such field; the nearest is config.rl"):
    main.parse_flags(["vr-jax", f"--workdir={path}", "--config.rl.stps=6"])


def test_a_workdir_without_a_config_asks_for_one(tmp_path):
  with pytest.raises(errors.InputError, match=r"has no config\.json yet; give --config=<recipe>"):
    main.parse_flags(["vr-jax", f"--workdir={tmp_path}", "--mode=eval"])
