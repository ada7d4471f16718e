"""FLOPs, traffic and transfers of small programs, against numbers worked out by hand."""

import pytest

from launch import costs, hlo, products
from tests.launch import programs_text

PRODUCT = 2 * 8 * 16 * 16  # FLOPs of the loop's product


def count(text: str, **keywords):
  return costs.count(hlo.parse(text), **{"turns": None, **keywords})


def instruction(line: str, *operands: str) -> tuple[hlo.Computation, hlo.Instruction]:
  parameters = [f"  %p{i} = {shape} parameter({i})" for i, shape in enumerate(operands)]
  text = "\n".join(["ENTRY %main () -> f32[] {", *parameters, f"  ROOT {line}", "}", ""])
  module = hlo.parse(text)
  return module.computations["main"], module.computations["main"].root


def flops(line: str, *operands: str) -> float:
  return products.flops(*instruction(line, *operands))[0]


def test_what_a_loop_does_counts_as_often_as_it_runs():
  once, turned = count(programs_text.LOOP)
  assert once.flops == 8 * PRODUCT
  assert once.collectives() == {"all-reduce": 7 * 8 * 16 * 2}
  assert turned.flops == 0


def test_a_loop_of_unknown_length_is_counted_apart():
  text = programs_text.LOOP.replace("ROOT %less =", "%less =").replace(
    "direction=LT\n}", "direction=LT\n  ROOT %both = pred[] and(%less, %less)\n}"
  )
  once, turned = count(text, turns=1000)
  assert (once.flops, turned.flops) == (PRODUCT, 1000 * PRODUCT)
  with pytest.raises(ValueError, match="loop: how often the loop runs"):
    count(text)


def test_a_layer_cut_from_a_stack_or_written_into_one_moves_only_itself():
  once, _ = count(programs_text.SLICES)
  layer = 128 * 128 * 4
  assert layer * 4 <= once.bytes <= layer * 4 + 100


@pytest.mark.parametrize("in_place", [True, False])
def test_a_layer_of_a_stack_whose_tiles_are_read_in_another_order_moves_only_itself(in_place):
  inner = """\
%other_tiles (q: f32[28,128,128]) -> f32[28,128,128] {
  %q = f32[28,128,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %copy = f32[28,128,128]{2,1,0:T(8,128)(4,1)} copy(%q)
}

"""
  tiled = "  %tiled = f32[28,128,128]{2,1,0:T(8,128)(4,1)} fusion(%p), kind=kLoop, "
  tiled += "output_to_operand_aliasing={{}: (0, {})}, " * in_place + "calls=%other_tiles\n"
  text = programs_text.SLICES.replace("%one_layer (p", inner + "%one_layer (p")
  text = text.replace("  %cut =", tiled + "  %cut =").replace("slice(%p, %i,", "slice(%tiled, %i,")
  layer = 128 * 128 * 4
  moved = layer * (4 if in_place else 3 + 28)
  assert moved <= count(text)[0].bytes <= moved + 100


def test_what_lies_in_fast_memory_is_no_traffic():
  main, root = instruction("%y = f32[4]{0:S(1)} add(%p0, %p1)", "f32[4]{0}", "f32[4]{0:S(1)}")
  module = hlo.Module("main", {"main": main})
  assert costs.traffic(module, main, root) == 16


@pytest.mark.parametrize(
  ("line", "operands", "size"),
  [
    ("f32[1,4]{1,0:S(1)} dynamic-slice(%p0, %p1, %p1)", ["f32[8,4]{1,0}", "s32[]"], 16),
    ("f32[1,4]{1,0} dynamic-slice(%p0, %p1, %p1)", ["f32[8,4]{1,0}", "s32[]"], 32),
    ("f32[1,4]{1,0:S(1)} slice(%p0), slice={[0:1], [0:4]}", ["f32[8,4]{1,0:S(1)}"], 0),
    (
      "((f32[8,4]{1,0}), f32[1,4]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%p0), slice={[0:1], [0:4]}",
      ["f32[8,4]{1,0}"],
      16,
    ),
    ("f32[1,4]{1,0:S(1)} slice-done(%p0)", ["f32[8,4]{1,0}"], 0),
    (
      "f32[8,4]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)",
      ["f32[8,4]{1,0}", "f32[1,4]{1,0:S(1)}", "s32[]"],
      16,
    ),
    (
      "f32[8,4]{1,0:S(1)} dynamic-update-slice(%p0, %p1, %p2, %p2)",
      ["f32[8,4]{1,0:S(1)}", "f32[1,4]{1,0}", "s32[]"],
      16,
    ),
    ("(f32[8,4]{1,0:S(1)}, f32[8,4]{1,0}, u32[]{:S(2)}) copy-start(%p0)", ["f32[8,4]{1,0}"], 128),
    ("f32[8,4]{1,0:S(1)} copy-done(%p0)", ["f32[8,4]{1,0}"], 0),
    ('f32[8,4]{1,0} custom-call(), custom_call_target="AllocateBuffer"', [], 0),
  ],
)
def test_a_part_that_changes_memory_is_traffic_at_the_end_in_main_memory(line, operands, size):
  main, root = instruction(f"%y = {line}", *operands)
  assert costs.traffic(hlo.Module("main", {"main": main}), main, root) == size


def test_a_collective_beside_which_others_compute_counts_once():
  """The same holds for a weight that a fusion reads through an inner fusion."""
  once, _ = count(programs_text.GATHER_BESIDE_PRODUCT)
  assert once.collectives() == {"all-gather": 4 * 32 * 2}
  assert once.flops == PRODUCT
  gathered = 4 * 8 + 4 * 32
  assert once.bytes == 2 * (gathered + 8 * 16 + 16 * 16 + 8 * 16)


def test_a_dot_counts_its_contracted_axes():
  line = (
    "%y = f32[4,8,32]{2,1,0} dot(%p0, %p1), lhs_batch_dims={0}, lhs_contracting_dims={2}, "
    "rhs_batch_dims={0}, rhs_contracting_dims={1}"
  )
  assert flops(line, "f32[4,8,16]{2,1,0}", "f32[4,16,32]{2,1,0}") == 2 * 4 * 8 * 16 * 32


def test_a_batched_product_written_as_a_padded_convolution_counts_as_the_product():
  line = (
    "%y = f32[4,2,8,72,2,32]{5,4,3,2,1,0} convolution(%p0, %p1), window={size=4x2x8x1 "
    "stride=3x1x7x1 lhs_dilate=4x2x8x1}, dim_labels=012b3f_02i1o3->012b3f, "
    "operand_precision={highest,highest}"
  )
  left, right = "f32[4,2,8,72,2,72]{5,4,3,2,1,0}", "f32[4,8,72,2,32,1]{5,4,3,2,1,0}"
  main, root = instruction(line, left, right)
  counted, passes = products.flops(main, root)
  assert counted == 2 * 4 * 2 * 8 * 72 * 2 * 72 * 32
  assert passes == 6 * counted


def test_padding_of_a_convolution_costs_nothing():
  line = (
    "%y = f32[1,5,1]{2,1,0} convolution(%p0, %p1), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"
  )
  assert flops(line, "f32[1,5,1]{2,1,0}", "f32[3,1,1]{2,1,0}") == 2 * (3 * 5 - 2)


@pytest.mark.parametrize(
  ("groups", "first"),
  [
    ("{{0,2},{1,3}}", (0, 2)),
    ("[2,4]<=[8]", (0, 1, 2, 3)),
    ("[4,2]<=[2,4]T(1,0)", (0, 4)),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", (0, 1, 2, 3)),
    ("mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_0'}", (0, 1)),
    ("mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}", (0, 1, 4, 5)),
  ],
)
def test_replica_groups_are_read_in_each_of_their_forms(groups, first):
  line = (
    f"%y = f32[8]{{0}} all-reduce(%p0), channel_id=1, replica_groups={groups}, "
    "use_global_device_ids=true"
  )
  _, root = instruction(line, "f32[8]{0}")
  assert costs.first_group(root) == first


def test_an_unknown_form_of_replica_groups_is_an_error():
  _, root = instruction("%y = f32[8]{0} all-reduce(%p0), replica_groups=all", "f32[8]{0}")
  with pytest.raises(ValueError, match="unknown form"):
    costs.first_group(root)


@pytest.mark.parametrize(
  ("line", "kind", "size"),
  [
    (
      "%y = bf16[8,4]{1,0} all-gather(%p0), replica_groups=[1,4]<=[4], dimensions={0}",
      "all-gather",
      64,
    ),
    (
      "%y = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%p0), replica_groups=[1,4]<=[4], "
      "dimensions={0}",
      "all-gather",
      64,
    ),
    (
      "%y = bf16[1,4]{1,0} reduce-scatter(%p0), replica_groups=[1,2]<=[2], dimensions={0}",
      "reduce-scatter",
      16,
    ),
    (
      "%y = (bf16[2,4]{1,0}, bf16[2,4]{1,0}, u32[], u32[]) collective-permute-start(%p0), "
      "source_target_pairs={{0,1},{1,0}}",
      "collective-permute",
      16,
    ),
  ],
)
def test_a_transfer_has_the_bytes_of_its_result_or_of_what_goes_in(line, kind, size):
  main, root = instruction(line, "bf16[2,4]{1,0}")
  found = costs.transfer(main, root, 3)
  assert found is not None
  assert (found.kind, found.bytes, found.times) == (kind, size, 3)


def test_the_end_of_an_asynchronous_transfer_is_not_another_one():
  main, root = instruction("%y = bf16[2,4]{1,0} all-gather-done(%p0)", "bf16[2,4]{1,0}")
  assert costs.transfer(main, root, 1) is None


def test_of_a_conditional_the_costliest_branch_counts():
  text = programs_text.LOOP.replace(
    "  ROOT %last = bf16[8,16]{1,0:T(8,128)(2,1)} fusion(%out, %arg1), kind=kOutput, "
    "calls=%product",
    "  %which = s32[] constant(0)\n"
    "  ROOT %last = bf16[8,16]{1,0} conditional(%which, %initial, %initial), "
    "branch_computations={%body, %body}",
  )
  assert count(text)[0].flops == 8 * PRODUCT


def test_the_largest_temporaries_come_first_and_results_are_none():
  found = costs.temporaries(hlo.parse(programs_text.LOOP), count=5)
  sizes = [temporary.shape.bytes for temporary in found]
  assert sizes == sorted(sizes, reverse=True)
  assert str(found[0].shape) == "bf16[8,16]"
  assert any("dot_general" in temporary.op_name for temporary in found)
  assert not any(temporary.shape.sizes == (16, 16) for temporary in found)


SEND = (
  "(bf16[4,8,128]{{2,1,0}}, u32[], token[]) send(%p0, %p1), channel_id=2, is_host_transfer=true, "
  'frontend_attributes={{_xla_host_transfer_handler_name="xla_megascale_runtime",'
  '_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_target={target},'
  '_xla_megascale_transfer_type="{kind}"}}'
)
SENT = 4 * 8 * 128 * 2


def exchanged(kind: str, target: str) -> costs.Transfer | None:
  line = f"%send = {SEND.format(kind=kind, target=target)}"
  return costs.transfer(*instruction(line, "bf16[4,8,128]{2,1,0}", "token[]"), 3)


@pytest.mark.parametrize(
  ("kind", "target", "expected"),
  [
    ("ALL_REDUCE", '"{1,2,3,4}x{0:3}"', ("all-reduce", 4)),
    ("ALL_GATHER", '"{1,2}x{0:63}"', ("all-gather", 2)),
    ("REDUCE_SCATTER", "{{100000,300000},{100001,300001}}", ("reduce-scatter", 2)),
    # Two devices of each of three slices.
    ("ALL_TO_ALL", "{{100000,100002,200000,200002,300000,300002}}", ("all-to-all", 3)),
    ("ONE_TO_ONE", "{{100001->200000},{200000->100002}}", ("collective-permute", 2)),
  ],
)
def test_what_slices_exchange_is_told_from_what_chips_of_a_slice_do(kind, target, expected):
  found = exchanged(kind, target)
  assert found is not None
  assert (found.kind, found.slices) == expected
  assert (found.bytes, found.times, found.devices) == (SENT, 3, ())
  spent = costs.Costs(transfers=[found, costs.Transfer("all-reduce", 8.0, (0, 1), 2)])
  assert spent.collectives() == {"all-reduce": 16.0}
  assert spent.collectives(between_slices=True) == {found.kind: 3 * SENT}
  assert spent.exchanges == 3


def test_a_send_to_the_host_is_no_exchange_and_reads_its_operand_once():
  main, root = instruction(
    "%send = (f32[64]{0}, u32[], token[]) send(%p0, %p1), is_host_transfer=true",
    "f32[64]{0}",
    "token[]",
  )
  assert costs.transfer(main, root, 1) is None
  assert costs.traffic(hlo.Module("main", {"main": main}), main, root) == 256


def test_an_unknown_exchange_is_not_counted_as_nothing():
  for kind, target in (("SOMETHING", '"{1,2}x{0:3}"'), ("ALL_REDUCE", "everyone")):
    with pytest.raises(ValueError, match="send: unknown exchange between slices"):
      exchanged(kind, target)
