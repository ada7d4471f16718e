"""Small releases of all benchmarks are read, asked, scored and aggregated by each protocol."""

import pytest

from benchmarks import benchmark_files
from vr_jax.data.benchmark_sets import registry
from vr_jax.eval.benchmarks import (
  aggregation,
  answer_rules,
  group_sums,
  protocols,
  scored_answer,
  scored_reply,
  tempcompass_rules,
)


@pytest.fixture(scope="module", params=benchmark_files.names())
def items(request, tmp_path_factory):
  root = tmp_path_factory.mktemp(request.param)
  benchmark_files.write(request.param, root)
  splits = [each for each in registry.BENCHMARKS[request.param].splits if each != "train"]
  found = {}
  for split in splits:
    for item in registry.read_items(request.param, root, split).items:
      found.setdefault(item.id, item)  # a later split may lack the answer
  return list(found.values())


def right_reply(item, protocol):
  """What a perfect model replies; where a judge is needed, its verdict."""
  if item.scorer == "caption_match" and protocol.rule == "tempcompass":
    return tempcompass_rules.caption_lines(item)["ABCD".index(item.answer)]
  return item.answer


def score(item, protocol, reply):
  if answer_rules.needs_judge(item):
    best = 10.0 if item.scorer == "rubric" else 1.0
    return scored_answer.ScoredAnswer(parsed=reply or None, score=best if reply else 0.0)
  return answer_rules.score(protocol.rule, reply, item)


def test_each_benchmark_has_protocols():
  assert {each.benchmark for each in protocols.PROTOCOLS.values()} == set(registry.BENCHMARKS)


def test_a_perfect_model_has_all_points_and_a_silent_one_none(items):
  for protocol in protocols.list_protocols(items[0].benchmark):
    asked = [item for item in items if protocol.asks(item) and item.answer]
    assert asked, protocol.name
    metric = aggregation.get(protocol.metric)
    for reply, points in ((right_reply, 100), (lambda item, protocol: "", 0)):
      replies = [
        scored_reply.make(item, score(item, protocol, reply(item, protocol)), counted=("answered",))
        for item in asked
      ]
      scored_reply.check_complete(replies, asked)
      values = aggregation.compute(metric, replies)
      assert values[metric.headline] == pytest.approx(points), protocol.name
      if "G-Avg" in values:
        assert values["G-Avg"] == pytest.approx(points / 10)


def test_each_question_is_asked_in_words(items):
  for protocol in protocols.list_protocols(items[0].benchmark):
    if protocol.prompt is not None:
      for item in filter(protocol.asks, items):
        prompt = protocol.render(item)
        assert item.question in prompt.user
        assert all(option in prompt.user for option in item.options)


def test_strata_are_those_that_the_metric_expects(items):
  for protocol in protocols.list_protocols(items[0].benchmark):
    metric = aggregation.get(protocol.metric)
    replies = [scored_reply.make(item, None) for item in items if protocol.asks(item)]
    sums = group_sums.add_up(replies, metric.grouping, metric.nest)
    kinds = {name.split("/")[0] for name in metric.expected}
    assert kinds <= {name.split("/")[0] for name in sums.groups}
    missing = aggregation.missing_groups(metric, sums)
    assert not metric.expected or len(missing) < len(metric.expected)
