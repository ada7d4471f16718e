"""Programs compiled here by the TPU compiler: our parser understands its output."""

from collections.abc import Mapping
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import analysis, chips, costs, hlo, programs, report, roofline, topology
from tests.train import nano
from vr_jax import errors
from vr_jax.models.common import (
  attention,
  attention_decode_kernel,
  attention_decode_plan,
  attention_splash,
)
from vr_jax.parallel import compiler_options
from vr_jax.parallel import mesh as mesh_lib

WIDTH = 512


@pytest.fixture(scope="module")
def where():
  return topology.find("v5e:2x2")


@pytest.fixture(scope="module")
def mesh(where):
  return jax.sharding.Mesh(np.asarray(where.devices).reshape(2, 2), ("rows", "columns"))


def abstract(mesh, shape, *axes, dtype=jnp.bfloat16):
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def compiled(function, *arguments):
  return jax.jit(function).lower(*arguments).compile()


def counted(function, *arguments, turns=None):
  return costs.count(hlo.parse(hlo.text_of(compiled(function, *arguments))), turns=turns)


def layers(x, count=12):
  return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=count)[0]


def test_without_loops_flops_are_those_of_xla(mesh):
  x = abstract(mesh, (WIDTH, WIDTH))
  program = compiled(lambda a, b: a @ b, x, x)
  once, _ = costs.count(hlo.parse(hlo.text_of(program)), turns=None)
  by_xla = program.cost_analysis()
  assert by_xla is not None
  assert once.flops == 2 * WIDTH**3
  assert once.flops == pytest.approx(by_xla["flops"], rel=0.02)


def test_a_scan_counts_each_of_its_turns(mesh):
  x = abstract(mesh, (WIDTH, WIDTH))
  assert counted(layers, x)[0].flops == 12 * 2 * WIDTH**3


def test_batched_products_count_their_batches(mesh):
  x = abstract(mesh, (8, 4, 128, 64))
  once, _ = counted(lambda a: jnp.einsum("bhqd,bhkd->bhqk", a, a), x)
  assert once.flops == 2 * 8 * 4 * 128 * 128 * 64


def test_gathers_of_split_weights_count_in_each_turn(mesh):
  """Rows times a split weight: the compiler gathers the weight, or passes its parts around."""
  x, w = abstract(mesh, (WIDTH, WIDTH), "rows"), abstract(mesh, (12, WIDTH, WIDTH), None, "rows")

  def apply(x, w):
    return jax.lax.scan(lambda c, one: (jnp.tanh(c @ one), None), x, w)[0]

  once, _ = counted(apply, x, w)
  weight = 2 * WIDTH * WIDTH
  assert 12 * weight / 2 <= sum(once.collectives().values()) <= 12 * weight * 1.1
  assert once.flops * 4 == 12 * 2 * WIDTH**3  # the compiler splits the product over all four


def test_a_loop_whose_end_the_numbers_decide_is_counted_by_its_longest_run(mesh):
  x = abstract(mesh, (WIDTH, WIDTH))

  def until(x):
    def unfinished(carry):
      index, x = carry
      return (index < 40) & (x.sum() > 0)

    return jax.lax.while_loop(unfinished, lambda c: (c[0] + 1, jnp.tanh(c[1] @ c[1])), (0, x @ x))

  once, turned = counted(until, x, turns=40)
  assert (once.flops, turned.flops) == (2 * WIDTH**3, 40 * 2 * WIDTH**3)


def test_weights_that_fast_memory_does_not_hold_are_read_in_every_step(where):
  """A loop like decoding: layers of 256 MiB, a head of 128 MiB."""
  alone = jax.sharding.Mesh(np.asarray(where.devices[:1]), ("all",))
  stack, head = abstract(alone, (32, 2048, 2048)), abstract(alone, (32768, 2048))
  steps = 5

  def layer(x, one):
    return jnp.tanh(x @ one), None

  def decode(stack, head, x):
    def step(carry):
      index, x, token = carry
      x = jax.lax.scan(layer, x, stack)[0]
      logits = jnp.einsum("be,ve->bv", x, head, preferred_element_type=jnp.float32)
      token = jax.nn.log_softmax(logits).argmax(axis=-1)
      return index + 1, x + head[token], token

    def unfinished(carry):
      return (carry[0] < steps) & (carry[2] > 0).any()

    return jax.lax.while_loop(unfinished, step, (0, x, jnp.ones(8, jnp.int32)))

  _, turned = counted(decode, stack, head, abstract(alone, (8, 2048)), turns=steps)
  weights = 2 * (32 * 2048 * 2048 + 32768 * 2048)
  assert steps * weights <= turned.bytes <= 1.1 * steps * weights


def test_of_a_program_without_room_the_array_that_has_none_is_named_as_it_lies_on_a_device(
  where, mesh
):
  w = abstract(mesh, (128, 160000), dtype=jnp.float32)
  x = abstract(mesh, (262144, 128), "rows", dtype=jnp.float32)

  def loss(params, x):
    w = params["w"]
    return (jnp.tanh(jnp.tanh(x @ w) @ w.T) ** 2).sum()

  program = programs.Program(
    name="train step", function=jax.jit(jax.grad(loss)), arguments=({"w": w}, x)
  )
  found = analysis.examine(
    program, where, mesh, {"train step": analysis.CountedFlops(model=1.0, executed=1.0)}
  )
  assert not found.fits
  assert not found.compiled
  assert found.memory.temporaries > 16e9
  assert [str(one.shape) for one in found.largest] == ["f32[131072,160000]"]  # half of its rows
  assert found.leaf == analysis.Leaf(name="w", shape="float32[128,160000]", bytes=4 * 128 * 160000)


def test_a_program_that_the_compiler_refuses_for_another_reason_is_bad_input(where, mesh):
  class Refused:
    def __call__(self):
      raise AssertionError("it is compiled, not run")

    def lower(self, *_):
      return self

    def compile(self, options):
      raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. 17.1M"
      )

  program = programs.Program(name="train step", function=Refused(), arguments=())
  with pytest.raises(errors.InputError, match=r"train step: TPU's compiler refuses it: .*vmem"):
    analysis.examine(program, where, mesh, {})


def test_an_attention_kernel_counts_the_blocks_that_its_mask_lets_through(where):
  """Blocks on and below the diagonal count: two products forward, three and four more backward, or
  five in one kernel.
  """
  alone = jax.sharding.Mesh(np.asarray(where.devices[:1]), ("all",))
  query = abstract(alone, (1, 4096, 2, 128))
  segment = abstract(alone, (1, 4096), dtype=jnp.int32)

  def attend(x, segment, fused=False):
    seen = attention_splash.attend_segments(
      x, x, x, segment, segment, jnp.arange(4096), causal=True, fused=fused
    )
    return seen.astype(jnp.float32).sum()

  def repeated(x, segment):
    return jax.lax.scan(lambda c, _: (c + attend(x * c, segment), None), 1.0, None, length=3)[0]

  def nested(x, segment):  # as layers are in micro-batches
    return jax.lax.scan(lambda c, _: (c + repeated(x * c, segment), None), 1.0, None, length=5)[0]

  side = 4096 // attention_splash.BLOCKS[0]
  product = 2 * 2 * 4096 * 4096 * 128 * (side + 1) / (2 * side)
  assert counted(repeated, query, segment)[0].flops == 3 * 2 * product
  assert counted(nested, query, segment)[0].flops == 5 * 3 * 2 * product
  assert counted(jax.grad(nested), query, segment)[0].flops == 5 * 3 * 9 * product
  assert counted(jax.grad(attend), query, segment)[0].flops == 9 * product
  fused = jax.grad(functools.partial(attend, fused=True))
  text = hlo.text_of(compiled(fused, query, segment))
  assert costs.count(hlo.parse(text), turns=None)[0].flops == 7 * product
  by_block = f"bf16[{side},2,4096,128]"  # gradients of the queries
  assert by_block in text
  for other in ("bf16[2,4096,128]", f"bf16[{side + 1},2,4096,128]"):
    with pytest.raises(ValueError, match="whether it is fused is not known"):
      costs.count(hlo.parse(text.replace(by_block, other)), turns=None)


@pytest.mark.parametrize("fused", [False, True])
def test_devices_that_share_a_prompt_compute_hardly_more_than_their_share_of_its_pairs(
  where, fused
):
  """In zigzag order; the pairs are those of a causal mask, and every device runs one kernel."""
  layout = mesh_lib.MeshLayout(mesh_lib.make_mesh((1, 1, 4, 1), where.devices))
  attend = attention.Attention(layout, "splash_fused" if fused else "splash").prompts
  length, heads, head_dim = 8192, 2, 128
  x = abstract(layout.mesh, (1, length, heads, head_dim), None, "sequence")
  valid = abstract(layout.mesh, (1, length), dtype=jnp.bool_)
  folded = abstract(layout.mesh, (1, length), None, "sequence", dtype=jnp.bool_)

  def loss(x, valid, folded):
    def layer(c, _):  # as one of many
      return c + attend(x * c, x, x, valid, folded).astype(jnp.float32).mean(), None

    return jax.lax.scan(layer, jnp.float32(1), None, length=3)[0]

  pairs = length * (length + 1) / 2
  least = 3 * 2 * heads * head_dim * pairs / 4  # of a product of a device, in three layers
  backward = (7, 2) if fused else (9, 3)
  for function, (products, kernels) in ((loss, (2, 1)), (jax.grad(loss), backward)):
    text = hlo.text_of(compiled(function, x, valid, folded))
    assert text.count('custom_call_target="tpu_custom_call"') == kernels
    once, _ = costs.count(hlo.parse(text), turns=None)
    assert least * products <= once.flops <= 1.25 * least * products


def test_devices_that_share_the_tokens_of_replies_run_one_kernel(where):
  """A block of 128 queries, which are all of one reply, sees one of its 512 keys of its own."""
  layout = mesh_lib.MeshLayout(mesh_lib.make_mesh((1, 1, 4, 1), where.devices))
  attend = attention.Attention(layout, "splash").replies
  group, time, prefix, heads, head_dim = 3, 512, 2048, 2, 128
  of = functools.partial(abstract, layout.mesh)
  prompt, own = (1, prefix), (1, group, time)
  text = hlo.text_of(
    compiled(
      attend,
      of((*own, heads, head_dim), None, None, "sequence"),
      attention.Block(*(of((*prompt, heads, head_dim)) for _ in "kv"), of(prompt, dtype=jnp.bool_)),
      attention.Block(*(of((*own, heads, head_dim)) for _ in "kv"), of(own, dtype=jnp.bool_)),
    )
  )
  assert text.count('custom_call_target="tpu_custom_call"') == 1
  once, _ = costs.count(hlo.parse(text), turns=None)
  blocks = group * (prefix // 512 + 1)
  assert once.flops == 2 * 2 * heads * head_dim * blocks * 128 * 512


@pytest.mark.parametrize(
  ("topology_name", "heads", "kv_heads"),
  [("v5e:2x2", 28, 4), ("v5p:2x2x1", 16, 2), ("v6e:2x2", 32, 8)],  # Qwen2.5-VL-7B, 3B, Qwen3-VL-8B
)
def test_the_decode_kernel_counts_what_it_states(topology_name, heads, kv_heads):
  """A prompt counts once for its replies, a cache of replies as half full, and no whole stack."""
  alone = jax.sharding.Mesh(np.asarray(topology.find(topology_name).devices[:1]), ("all",))
  layers, prompts, group, prefix, time, head_dim = 3, 2, 8, 8448, 1024, 128
  slots = prompts * group
  numbers = functools.partial(abstract, alone, dtype=jnp.int32)
  of_prompts, of_slots = (layers, prompts, kv_heads), (layers, slots, kv_heads)
  shapes = [(*of_prompts, head_dim, prefix), (*of_slots, head_dim, time)]
  sizes = attention_decode_plan.KernelSizes.choose(
    shapes, 2, slots=slots, group=group, per_key=heads // kv_heads
  )
  arguments = [
    *(abstract(alone, (slots, n, head_dim)) for n in (heads, kv_heads, kv_heads)),
    *(numbers((sizes.length,)), numbers(())),
    *(abstract(alone, (*of_prompts, *rest)) for rest in ((head_dim, prefix), (prefix, head_dim))),
    *(abstract(alone, (*of_slots, *rest)) for rest in ((head_dim, time), (time, head_dim))),
  ]
  once, _ = counted(functools.partial(attention_decode_kernel.step, group=group), *arguments)
  pairs = heads * slots * (prefix + time // 2)
  (kernel,) = once.kernels
  assert once.flops == kernel.passes == 4 * head_dim * pairs
  keys = 2 * 2 * kv_heads * head_dim * (prompts * prefix + slots * time // 2)
  assert keys <= kernel.bytes == once.kernel_bytes <= 1.05 * keys
  assert once.bytes <= 1.1 * kernel.bytes  # queries and their rows


@pytest.mark.parametrize(
  ("dtype", "heads", "kv_heads", "group", "head_dim", "prefix", "times"),
  [
    ("bfloat16", 8, 8, 3, 80, 200, (256, 72)),  # two caches, as later turns have
    ("float32", 14, 2, 4, 128, 640, (160,)),
    ("bfloat16", 96, 8, 8, 64, 4096, (512,)),  # 12 queries of a key, and so twice as many rows
  ],
)
def test_the_compiler_takes_the_decode_kernel_of_other_sizes(
  where, dtype, heads, kv_heads, group, head_dim, prefix, times
):
  """Of an odd group, of blocks that are no multiple of 128, and of float32."""
  alone = jax.sharding.Mesh(np.asarray(where.devices[:1]), ("all",))
  layers, prompts, per_key = 2, 2, heads // kv_heads
  slots = prompts * group
  owners = [(prompts, prefix), *((slots, time) for time in times)]
  shapes = [(layers, rows, kv_heads, head_dim, length) for rows, length in owners]
  sizes = attention_decode_plan.KernelSizes.choose(
    shapes, jnp.dtype(dtype).itemsize, slots=slots, group=group, per_key=per_key
  )
  assert sizes.heads * group * sizes.rows <= attention_decode_plan.MOST_ROWS
  of = functools.partial(abstract, alone, dtype=dtype)
  numbers = functools.partial(abstract, alone, dtype=jnp.int32)
  stacks = [of(shape) for whole in shapes for shape in (whole, (*whole[:3], *whole[:2:-1]))]
  once, _ = counted(
    functools.partial(attention_decode_kernel.step, group=group),
    *(of((slots, n, head_dim)) for n in (heads, kv_heads, kv_heads)),
    *(numbers((sizes.length,)), numbers(())),
    *stacks,
  )
  written = sum(time // 2 for time in times)
  (kernel,) = once.kernels
  expected = 4 * head_dim * heads * slots * (prefix + written)
  assert kernel.times * kernel.passes == pytest.approx(expected, rel=0.01)


def test_of_several_slices_gradients_are_reduced_within_each_and_then_exchanged():
  """Weights are split within a slice of four chips, batches over all; four slices."""
  where = topology.find("4xv5e-4")
  mesh = jax.sharding.Mesh(np.asarray(where.devices).reshape(4, 4), ("rows", "columns"))
  w = abstract(mesh, (WIDTH, WIDTH), "columns")
  x = abstract(mesh, (64, WIDTH), ("rows", "columns"))

  def gradient(w, x):
    grad = jax.grad(lambda w: (jnp.tanh(x @ w) ** 2).astype(jnp.float32).sum())(w)
    spec = jax.sharding.PartitionSpec("columns")
    return jax.lax.with_sharding_constraint(grad, jax.sharding.NamedSharding(mesh, spec))

  once, _ = counted(gradient, w, x)
  part = WIDTH * WIDTH * 2 / 4
  assert once.collectives(between_slices=True) == {"all-reduce": part}
  assert once.exchanges == 1
  assert once.collectives()["all-gather"] == 4 * part  # within a slice
  places = [where.place(device) for device in where.devices[:4]]
  found = roofline.estimate(once, where.chip, places, where.sides)
  assert found.dcn == pytest.approx(2 * 3 / 4 * part / where.chip.dcn)
  assert 0 < found.network < found.dcn


def test_a_plan_of_the_smallest_recipe():
  """The reference's log-probs of two layers on four chips; attention computes blocks of 128."""
  config = nano.config(
    rl__kl_weight=0.04, model__dtype="bfloat16", mesh=(2, 2, 1, 1), model__attention="xla"
  )
  where, names = topology.find("v5e:2x2"), ["reference log-probs"]
  found = analysis.analyse(config, where, names=names, layers=1)
  assert (found.layers, found.left_out) == ((1, 2), ["encoder", "rollout", "train step"])
  found = analysis.analyse(config, where, names=names)
  assert found.layers == (2, 2) and not found.is_whole
  (one,) = found.analyses
  (part,) = one.parts
  assert 1 <= report.over_count(found, part) <= 1.25
  assert one.fits
  assert one.memory.arguments + one.memory.resident < one.memory.peak < 64 * 2**20
  assert part.costs.bytes > 0
  assert sum(part.costs.collectives().values()) > 0
  assert 0 < report.utilisation(found, part) < 1


def test_cycles_are_the_compilers_of_each_turn_and_sorts_count_as_vector_work(mesh):
  x = abstract(mesh, (WIDTH, WIDTH))
  one, many = (counted(functools.partial(layers, count=n), x)[0] for n in (4, 12))
  assert one.cycles > 0
  assert 2.5 < many.cycles / one.cycles < 3.1
  ordered, _ = counted(lambda a: jnp.sort(a, axis=-1), abstract(mesh, (8, 4096)))
  # 12 levels: 78 stages of a comparison and a selection, 4,096 elements a cycle.
  assert ordered.vector_cycles >= 8 * 4096 * 78 * 2 / 4096
  assert ordered.flops == 0


@pytest.mark.parametrize("generation", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_the_compiler_takes_every_option_of_a_generation(generation):
  where = topology.find(generation)
  alone = jax.sharding.Mesh(np.asarray(where.devices[:1]), ("all",))
  x = abstract(alone, (128, 128))
  options: dict[str, str | bool] = {**compiler_options.options_for(where.devices[0].device_kind)}
  assert options == dict(compiler_options.OPTIONS[generation.partition(":")[0]])
  assert jax.jit(lambda a: a + 1).lower(x).compile(dict(options)) is not None


def product_cycles(options: Mapping[str, str]) -> float:
  """Cycles of a product of two matrices of 8,192, compiled with these options for a chip of v5e."""
  chip = topology.find("v5e:2x2").devices[0]
  x = abstract(jax.sharding.Mesh(np.asarray([chip]), ("all",)), (8192, 8192))
  program = jax.jit(jnp.matmul).lower(x, x).compile(dict(options))
  return costs.count(hlo.parse(hlo.text_of(program)), turns=None)[0].cycles


_AS_A_RUN = """
from pathlib import Path
import sys
from launch import topology
from tests.launch import test_tpu_compiler
from vr_jax.parallel import compiler_options
from vr_jax.parallel import mesh as mesh_lib

compiler_options.OPTIONS = {"v5e": compiler_options.scoped_vmem(64)}
topology.prepare()
compiler_options.set_for_machine((), pci=sys.argv[1])
print(test_tpu_compiler.product_cycles({}))
"""


def test_a_run_and_a_plan_compile_the_same_program_with_the_options_of_a_generation(
  tmp_path, monkeypatch
):
  (tmp_path / "0").mkdir()
  (tmp_path / "0" / "vendor").write_text("0x1ae0\n")
  (tmp_path / "0" / "device").write_text("0x0063\n")
  words = [sys.executable, "-c", _AS_A_RUN, str(tmp_path)]
  run = subprocess.run(words, capture_output=True, text=True, check=True, cwd=nano.ROOT)
  monkeypatch.setattr(compiler_options, "OPTIONS", {"v5e": compiler_options.scoped_vmem(64)})
  plan = product_cycles(compiler_options.options_for("TPU v5 lite"))
  assert float(run.stdout) == plan
  assert plan / chips.CHIPS["v5e"].clock < 6e-3  # without options it takes 6.37 ms


def test_a_plan_compiles_with_the_options_of_its_chips(where, monkeypatch):
  """With one that the compiler does not know, it refuses."""
  monkeypatch.setattr(compiler_options, "OPTIONS", {"v5e": {"xla_tpu_no_such_option": "1"}})
  config = nano.config(model__dtype="bfloat16", mesh=(2, 2, 1, 1), model__attention="xla")
  with pytest.raises(errors.InputError, match=r"encoder: .*xla_tpu_no_such_option"):
    analysis.analyse(config, where, names=["encoder"])
