"""JSON of files: one kind of error, and types that are checked."""

import dataclasses
from typing import Any, Literal

import pytest

from vr_jax import plain_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  name: str
  count: int
  share: float = 0.5
  note: str | None = None
  sides: tuple[int, ...] = ()
  pair: tuple[int, str] = (0, "")
  kind: Literal["a", "b"] = "a"
  scores: dict[str, float] = dataclasses.field(default_factory=dict)


def test_an_object_with_the_declared_fields_is_built():
  value = {"name": "x", "count": 2, "share": 1, "note": None, "sides": [1, 2], "pair": [1, "y"]}
  built = plain_json.build(Entry, {**value, "kind": "b", "scores": {"k": 1}})
  assert built == Entry(
    name="x", count=2, share=1, sides=(1, 2), pair=(1, "y"), kind="b", scores={"k": 1}
  )


@pytest.mark.parametrize(
  ("changes", "problem"),
  [
    ({"count": "2"}, "field 'count' can't be '2'"),
    ({"count": True}, "field 'count' can't be True"),
    ({"count": 2.0}, "field 'count' can't be 2.0"),
    ({"share": float("nan")}, "field 'share' can't be nan"),
    ({"share": 10**400}, "field 'share' can't be 1000"),
    ({"note": 3}, "field 'note' can't be 3"),
    ({"sides": [1, "2"]}, "field 'sides' can't be"),
    ({"pair": [1]}, "field 'pair' can't be"),
    ({"kind": "c"}, "field 'kind' can't be 'c'"),
    ({"scores": {"k": None}}, "field 'scores' can't be"),
    ({"other": 1}, "field 'other' is unknown"),
  ],
)
def test_any_other_object_is_refused_with_the_field_at_fault(changes, problem):
  value: dict[str, Any] = {"name": "x", "count": 2, **changes}
  with pytest.raises(ValueError, match=problem.replace("(", r"\(")):
    plain_json.build(Entry, value)


@pytest.mark.parametrize("value", [None, [], "x", {"name": "x"}])
def test_what_lacks_a_field_or_is_no_object_is_refused(value):
  with pytest.raises(ValueError, match=r"needs an object|field 'count' is missing"):
    plain_json.build(Entry, value)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", b"\xff", "9" * 5000, ""])
def test_text_that_is_no_json_or_nested_too_deep_raises_one_kind_of_error(text):
  with pytest.raises(ValueError):
    plain_json.parse(text)
