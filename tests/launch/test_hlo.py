"""The texts of compiled programs are parsed."""

import pytest

from launch import hlo, loops
from tests.launch import programs_text


def loop_of(text: str):
  module = hlo.parse(text)
  entry = module.computations[module.entry]
  loop = next(i for i in entry.instructions if i.operation == "while")
  return module, loops.Scope(entry), loop


def turns(text: str) -> int | None:
  return loops.trip_count(*loop_of(text))


def test_instructions_have_shapes_operands_and_attributes():
  module = hlo.parse(programs_text.LOOP)
  body = module.computations["body"]
  fused = body.by_name["fused"]
  assert module.entry == "main"
  assert [str(shape) for shape in fused.shapes] == ["bf16[8,16]"]
  assert fused.operands == ("x", "w")
  assert fused.called == ("product",)
  assert fused.op_name == "jit(f)/while/body/dot_general"
  assert body.root.operands == ("next", "reduced", "w")
  assert [shape.sizes for shape in body.parameters[0].shapes] == [(), (8, 16), (16, 16)]


def test_the_layout_says_in_which_memory_an_array_lies():
  product = hlo.parse(programs_text.LOOP).computations["product"]
  assert [parameter.shapes[0].space for parameter in product.parameters] == [1, 0]


def test_bytes_of_shapes_follow_their_element_type():
  assert hlo.Shape("bf16", (3, 5)).bytes == 30
  assert hlo.Shape("pred", (7,)).bytes == 7
  assert hlo.Shape("s4", (6,)).bytes == 3
  assert hlo.Shape("f32", ()).bytes == 4


def test_a_text_without_entry_is_refused():
  with pytest.raises(ValueError, match="no entry computation"):
    hlo.parse("HloModule nothing\n")


@pytest.mark.parametrize(
  ("changes", "count"),
  [
    ({}, 7),
    ({"constant(7)": "constant(1)"}, 1),
    ({"direction=LT": "direction=LE"}, 8),
    ({"constant(0)": "constant(3)"}, 4),
    ({"%one = s32[]{:T(128)} constant(1)": "%one = s32[]{:T(128)} constant(2)"}, 4),
    ({"constant(0)": "constant(9)"}, 0),
    ({"compare(%counter.1, %limit), direction=LT": "compare(%limit, %counter.1), direction=GT"}, 7),
  ],
)
def test_the_turns_of_a_loop_follow_from_start_step_and_limit(changes, count):
  text = programs_text.LOOP
  for old, new in changes.items():
    assert old in text
    text = text.replace(old, new)
  assert turns(text) == count


def test_a_counter_that_counts_down_is_read_too():
  text = programs_text.LOOP.replace("constant(0)", "constant(12)").replace(
    "constant(1)", "constant(-1)"
  )
  assert turns(text.replace("direction=LT", "direction=GT")) == 5


def test_a_counter_inside_a_fusion_is_read_too():
  text = programs_text.LOOP.replace(
    "  %next = s32[]{:T(128)} add(%counter, %one)",
    "  %next = s32[]{:T(128)} fusion(%counter, %one), kind=kLoop, calls=%step",
  )
  step = """\
%step (c: s32[], d: s32[]) -> s32[] {
  %c = s32[] parameter(0)
  %d = s32[] parameter(1)
  ROOT %stepped = s32[] add(%c, %d)
}

"""
  assert turns(text.replace("%body (", step + "%body (", 1)) == 7


def test_a_limit_that_the_loop_carries_is_read_where_it_starts():
  text = programs_text.LOOP.replace("s32[], bf16", "s32[], s32[], bf16").replace(
    "%limit = s32[]{:T(128)} constant(7)",
    "%limit = s32[] get-tuple-element(%state.1), index=3",
  )
  text = text.replace("/*index=2*/%w)", "/*index=2*/%w, %same)").replace(
    "  ROOT %tuple", "  %same = s32[] get-tuple-element(%state), index=3\n  ROOT %tuple"
  )
  text = text.replace("tuple(%start, %arg0, %arg1)", "tuple(%start, %arg0, %arg1, %five)")
  text = text.replace("  %initial", "  %five = s32[] constant(5)\n  %initial")
  assert turns(text) == 5


def test_a_loop_that_something_else_may_end_has_no_count():
  text = programs_text.LOOP.replace("ROOT %less =", "%less =").replace(
    "direction=LT\n}", "direction=LT\n  ROOT %both = pred[] and(%less, %less)\n}"
  )
  assert turns(text) is None


def test_a_computation_of_another_thread_ends_where_it_ends():
  module = hlo.parse(
    """HloModule two

%copied (p.1: f32[2]) -> f32[2] {
  %p.1 = f32[2]{0} parameter(0)
  ROOT %copy = f32[2]{0} copy(%p.1)
}, execution_thread="sparsecore"

%doubled (p.2: f32[2]) -> f32[2] {
  %p.2 = f32[2]{0} parameter(0)
  ROOT %sum = f32[2]{0} add(%p.2, %p.2)
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %fused = f32[2]{0} fusion(%p), kind=kLoop, calls=%doubled
}
"""
  )
  assert set(module.computations) == {"copied", "doubled", "main"}
  assert [i.name for i in module.computations["copied"].instructions] == ["p.1", "copy"]
