"""What metrics mean: the sentences of the report are those of docs/metrics.md."""

import re

import pytest

from tests.train import nano
from vr_jax.train import metric_meanings

PAGE = (nano.ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_page_and_the_report_explain_the_same_metrics_in_the_same_words():
  rows = re.findall(r"^\| `([^|]+)` \| (.*?) \|", PAGE, re.MULTILINE)
  assert {name: text.replace("`", "") for name, text in rows} == metric_meanings.MEANINGS


@pytest.mark.parametrize(
  ("name", "explained_as"),
  [
    ("completions/mean_length", "completions/mean_length"),
    ("completions/turn 2/mean_length", "completions/<segment>/mean_length"),
    ("rewards/my_own/std", "rewards/<name>/std"),
    ("rewards/perception/total/zero_ratio", "rewards/<segment>/<name>/…"),
    ("perf/time/step", "perf/time/step"),
    ("perf/time/rollout", "perf/time/<part>"),
  ],
)
def test_a_name_is_explained_by_the_entry_that_fits_it_best(name, explained_as):
  assert metric_meanings.meaning(name) == metric_meanings.MEANINGS[explained_as]


def test_a_metric_of_someone_elses_has_no_meaning_here():
  assert metric_meanings.meaning("rewards") == metric_meanings.meaning("brightness") == ""
