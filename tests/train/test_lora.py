"""Training with adapters: only they are trained and saved; the base stays, and is the reference."""

from unittest import mock

import jax
import numpy as np
import pytest

from tests.train import nano
from vr_jax import errors
from vr_jax.models import qwen2_5_vl
from vr_jax.models.common import export, lora, weight_mapping
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import sampler
from vr_jax.train import (
  batching,
  export_stage,
  initialization,
  learner_state,
  rl_loop,
  run_context,
  train_step,
)
from vr_jax.train import train_state as train_state_lib

MESH = (1, 2, 1, 2)
ON = {
  "model__lora__rank": 2,
  "model__lora__text": ("query", "down"),
  "model__lora__vision": ("qkv",),
}
MATRICES = {"text.layers.query", "text.layers.down", "vision.blocks.qkv"}


@pytest.fixture(scope="module")
def context(data, request):
  size = getattr(request, "param", "tiny")
  vision = {"model__lora__vision": ("query",)} if size == "tiny_phi2" else {}
  return nano.build(data, mesh=MESH, size=size, **{**nano.ROOM[size], **ON, **vision})


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
  """A directory with the base model of the runs below."""
  plain = nano.build(data, mesh=MESH)
  path = tmp_path_factory.mktemp("pretrained") / "base"
  tokenizer = (data / "tokenizer-448.json").read_text()
  qwen2_5_vl.save_pretrained(
    initialization.fresh_params(plain),
    path,
    config=plain.model,
    files={"tokenizer.json": tokenizer},
  )
  return path


def start(context):
  optimizer = train_state_lib.make_optimizer(
    context.config.sft, context.abstract_params, context.frozen
  )
  state = train_state_lib.create(initialization.fresh_params(context), optimizer, context.mesh)
  step = train_step.make_sft_step(
    context.graphdef, optimizer, context.allowed_tokens, microbatches=2, frozen=context.frozen
  )
  return state, step


def host(params):
  return {name: np.asarray(v.get_value()) for name, v in weight_mapping.flat(params).items()}


def batch(context):
  found = next(context.builder.read("train", 4))
  tokens, valid = batching.reply_arrays(found.items, context.config.sft.max_reply_tokens)
  return context.builder.prompt(found), mesh_lib.put_batch((tokens, valid), context.mesh)


@pytest.fixture(scope="module")
def trained(context):
  """Returns (parameters before, state after two updates)."""
  state, step = start(context)
  before, (prompt, (tokens, valid)) = host(state.params), batch(context)
  for _ in range(2):
    state, _ = step(state, prompt, tokens, valid)
  return before, state


@pytest.mark.parametrize("context", nano.ROOM, indirect=True)
def test_adapters_move_and_the_base_does_not(context, trained):
  before, state = trained
  after = host(state.params)
  for name, value in before.items():
    moved = not np.array_equal(after[name], value)
    assert moved == lora.is_adapter(name), name
    assert value.dtype == ("float32" if lora.is_adapter(name) else "bfloat16"), name


def test_the_optimizer_holds_moments_of_adapters_only(context, trained):
  _, state = trained
  adapters = [v for n, v in weight_mapping.flat(state.params).items() if lora.is_adapter(n)]
  size = sum(v.get_value().size for v in adapters)
  held = sum(x.size for x in jax.tree.leaves(state.optimizer_state) if x.ndim)
  assert len(adapters) == 2 * len(MATRICES)
  assert held == 2 * size


def test_no_gradient_of_a_base_weight_is_made(context):
  trained, fixed = train_state_lib.split(initialization.fresh_params(context), context.frozen)
  assert {n.rsplit("_lora", 1)[0] for n, x in _arrays(trained).items() if x is not None} == MATRICES
  assert not set(_arrays(trained)) & set(_arrays(fixed))


def _arrays(params):
  leaves = jax.tree.leaves_with_path(params)
  return {jax.tree_util.keystr(path[:-1], simple=True, separator="."): x for path, x in leaves}


def test_a_checkpoint_holds_adapters_and_needs_the_same_base(context, trained, tmp_path, data):
  _, state = trained
  store = initialization.open_checkpoints(context, tmp_path / "sft")
  store.save(2, state, {})
  store.close()
  size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
  assert size < sum(x.nbytes for x in jax.tree.leaves(state.params))
  loaded = initialization.load_params(context, tmp_path / "sft")
  for name, value in host(loaded).items():
    np.testing.assert_array_equal(value, host(state.params)[name], err_msg=name)
  for changes, says in (
    ({"seed": 1}, r"sft/2: was trained beside another params\.text"),
    ({"model__lora__rank": 3}, r"another architecture: lora\.rank=2 there, 3 here"),
  ):
    other = nano.build(data, mesh=MESH, **{**ON, **changes})
    with pytest.raises(errors.InputError, match=says):
      initialization.load_params(other, tmp_path / "sft")


def test_the_base_of_a_pretrained_model_is_read_in_its_dtype_and_adapters_change_nothing(
  data, pretrained
):
  on = nano.build(data, mesh=MESH, model__pretrained=str(pretrained), model__tokenizer="", **ON)
  params = initialization.fresh_params(on)
  assert jax.tree.structure(params) == jax.tree.structure(on.abstract_params)
  expected = qwen2_5_vl.from_pretrained(pretrained, dtype="bfloat16")[1]
  for name, value in host(expected).items():
    np.testing.assert_array_equal(host(params)[name], value, err_msg=name)
  for name, variable in weight_mapping.flat(params).items():
    wanted = weight_mapping.flat(on.abstract_params)[name].get_value().sharding
    assert variable.get_value().sharding == wanted, name


def test_rl_from_the_base_stays_close_to_the_base_without_a_copy_of_it(data, monkeypatch, tmp_path):
  nano.use_devices(monkeypatch, 4)
  config = nano.config(
    data__directory=str(data), mesh=(1, 4, 1, 1), sft__steps=0, rl__steps=2, rl__kl_weight=0.1, **ON
  )
  copied, make = [], learner_state.make_reference

  def make_counted(*arguments, **options):
    reference = make(*arguments, **options)
    copied.extend(x.size for x in jax.tree.leaves(reference))
    return reference

  monkeypatch.setattr(learner_state, "make_reference", make_counted)
  rl_loop.train(config, tmp_path)
  context = run_context.make_run_context(config, tmp_path)
  flat = weight_mapping.flat(context.abstract_params)
  adapters = sum(v.get_value().size for n, v in flat.items() if lora.is_adapter(n))
  assert sum(copied) == adapters


@pytest.mark.parametrize(("mesh", "gathers"), [((1, 1, 1, 2), False), ((1, 2, 1, 1), True)])
def test_decoding_copies_no_weights_that_stay_as_they_are(data, mesh, gathers):
  plain = nano.build(data, mesh=mesh)
  changed = sampler.changed_for_decoding(plain.graphdef, initialization.fresh_params(plain))
  assert bool(jax.tree.leaves(changed)) == gathers


@pytest.fixture(scope="module")
def workdir(context, trained, tmp_path_factory):
  """A workdir with the checkpoint of a warm start."""
  path = tmp_path_factory.mktemp("adapted")
  store = initialization.open_checkpoints(context, path / "checkpoints" / "sft")
  store.save(2, trained[1], {})
  store.close()
  return path


def test_adapters_are_written_alone_and_an_export_that_ended_then_goes_on_to_the_merged_model(
  context, trained, workdir, monkeypatch
):
  nano.use_devices(monkeypatch, 4)
  with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
    killed.setattr(export, "save_pretrained", mock.Mock(side_effect=KeyboardInterrupt))
    export_stage.export(context.config, workdir)
  assert (workdir / "export-adapter" / "adapter_config.json").is_file()
  assert not (workdir / "export").exists()
  export_stage.export(context.config, workdir)
  before, merged = trained[0], host(qwen2_5_vl.from_pretrained(workdir / "export")[1])
  assert {n for n in merged if (merged[n] != before[n].astype(np.float32)).any()} == MATRICES


def test_an_adapter_of_another_checkpoint_is_not_taken_for_that_of_an_export(
  context, workdir, monkeypatch
):
  nano.use_devices(monkeypatch, 4)
  config = context.config.copy_and_resolve_references()
  config.export.directory = str(workdir / "second")
  (workdir / "second-adapter").mkdir()
  (workdir / "second-adapter" / export_stage.RECORD).write_text('{"step": 1}')
  with pytest.raises(errors.InputError, match="second-adapter: is there already; delete it"):
    export_stage.export(config, workdir)
  assert not (workdir / "second").exists()
