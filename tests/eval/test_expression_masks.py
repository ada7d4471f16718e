"""What is done of a segmentation set's videos."""

import dataclasses

import pytest

from tests.eval import benchmark_items
from vr_jax.eval.benchmarks import expression_masks, protocols


@pytest.fixture
def masks(tmp_path):
  (tmp_path / "set" / "valid_u").mkdir(parents=True)
  (tmp_path / "set" / "valid_u" / "meta_expressions.json").write_text("{}")
  item = dataclasses.replace(benchmark_items.question(), cluster="park")
  return expression_masks.ExpressionMasks(
    directory=tmp_path / "out",
    root=tmp_path / "set",
    protocol=protocols.get("mevis@official"),
    items=[item],
  )


@pytest.mark.parametrize("changed", ["meta_expressions.json", "mask_dict.json"])
def test_a_video_is_not_done_once_the_annotations_are_others(masks, changed):
  (id_,) = masks.asked["park"]
  found = expression_masks.FoundExpression(
    id=id_, query="", replies=(), frame=None, description="", box=None, problem="", failed=True
  )
  done = expression_masks.FoundVideo(
    expressions=(found,), scores=None, annotations=masks.annotations
  )
  masks.write("park", done)
  assert not masks.left({})
  (masks.root / "valid_u" / changed).write_text('{"other": 1}')
  assert dataclasses.replace(masks).left({}) == ["park"]
