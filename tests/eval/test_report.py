"""The report as a document: what it holds, what it says where a part is missing, and which input it refuses."""

from html.parser import HTMLParser
import json
import re

import pytest

from vr_jax import errors
from vr_jax.eval import report, report_curves, report_data, report_markup, report_reply


class Page(HTMLParser):
  """Tags in the order in which they open."""

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def all(self, tag: str) -> list[dict]:
    return [attributes for name, attributes in self.tags if name == tag]


def page_of(workdir) -> Page:
  return Page(report.write_report(workdir).read_text(encoding="utf-8"))


def rewrite(path, **fields):
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_an_empty_workdir_gives_a_report_that_says_what_is_missing(tmp_path):
  text = report.write_report(tmp_path).read_text()
  for missing in ("No evaluation yet", "No metrics yet", "No rollouts yet", "No config.json"):
    assert missing in text


def test_a_workdir_that_is_not_there_is_named(tmp_path):
  with pytest.raises(errors.InputError, match=r"nowhere: no such directory"):
    report.write_report(tmp_path / "nowhere")


def test_the_report_stands_alone(workdir):
  page = page_of(workdir)
  sources = [attributes["src"] for attributes in page.all("img")]
  assert len(sources) == 3 * 8
  assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
  assert not page.all("link")
  assert not any({"src", "srcset"} & set(attributes) for attributes in page.all("script"))
  assert all(attributes["href"].startswith("#") for attributes in page.all("a"))
  [policy] = [each["content"] for each in page.all("meta") if "http-equiv" in each]
  assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_header_says_what_ran(workdir):
  header = report.write_report(workdir).read_text().split("<header>")[1].split("</header>")[0]
  for fact in ("<h1>moss_chatv</h1>", "3d844ac0f1e2-dirty", "0.10.2", "flax"):
    assert fact in header


@pytest.mark.parametrize("config", [{}, {"config": 3, "versions": [], "git_revision": None}])
def test_a_config_that_records_little_is_shown_all_the_same(tmp_path, config):
  (tmp_path / "config.json").write_text(json.dumps(config))
  text = report.write_report(tmp_path).read_text()
  assert f"<h1>{tmp_path.name}</h1>" in text
  assert "not recorded" in text


def test_nothing_is_left_beside_the_report(workdir):
  before = set(workdir.iterdir())
  path = report.write_report(workdir)
  assert set(workdir.iterdir()) - before == {path}


def test_evaluations_stand_in_the_order_of_training(workdir):
  run = report_data.read_run(workdir)
  assert [each.name for each in run.evaluations] == ["before_rl", "after_rl"]


def test_a_question_stands_once_with_the_replies_of_both_evaluations(workdir):
  page = page_of(workdir)
  cards = [each for each in page.all("details") if each.get("class") == "rollout"]
  assert [each["data-id"] for each in cards] == ["q-001", "q-002", "q-003"]
  replies = [each["data-evaluation"] for each in page.all("section") if "data-evaluation" in each]
  assert replies == ["before_rl", "after_rl"] * 3


def test_a_question_of_one_evaluation_only_is_shown_too(workdir):
  path = workdir / "eval" / "after_rl.json"
  rewrite(path, rollouts=json.loads(path.read_text())["rollouts"][1:])
  text = report.write_report(workdir).read_text()
  assert 'data-id="q-001"' in text


def test_a_rollout_without_alignment_frames_or_reference_says_so(workdir):
  path = workdir / "eval" / "before_rl.json"
  sample = json.loads(path.read_text())["rollouts"][0]
  bare = {"frames": [], "times": [], "reference": [], "alignment": None, "trace_consistency": None}
  rewrite(path, rollouts=[sample | bare])
  (workdir / "eval" / "after_rl.json").unlink()
  text = report.write_report(workdir).read_text()
  for missing in ("No frames were shown", "No reference steps", "No alignment"):
    assert missing in text


def test_a_change_within_its_intervals_is_not_coloured(workdir):
  path = workdir / "eval" / "after_rl.json"
  metrics = json.loads(path.read_text())["metrics"]
  rewrite(path, metrics=metrics | {"accuracy": 0.45, "think_answer_mismatch": 0.9})
  text = report.write_report(workdir).read_text()
  assert row(text, "accuracy").endswith("<td>+3.8 points</td></tr>")
  assert row(text, "think_answer_mismatch").endswith('<td class="bad">+59.5 points</td></tr>')
  assert row(text, "process_reward").endswith('<td class="good">+0.310</td></tr>')
  assert row(text, "reply_tokens").endswith("<td>±0.0</td></tr>")


def row(text: str, metric: str) -> str:
  return re.search(rf'<tr data-metric="{re.escape(metric)}".*?</tr>', text)[0]


def test_a_metric_that_the_table_does_not_know_is_shown_by_its_name(workdir):
  text = report.write_report(workdir).read_text()
  assert "Decode seconds" in row(text, "decode_seconds")
  assert "1.750" in row(text, "decode_seconds")


@pytest.mark.parametrize(
  ("content", "complaint"),
  [
    ("{", r"before_rl\.json: is not JSON"),
    ("[]", r"before_rl\.json: should be a JSON object, is list"),
    (
      '{"name": "x"}',
      r"before_rl\.json: field 'rollouts'|before_rl\.json: field 'title' is missing",
    ),
    ("[" * 100_000, r"before_rl\.json: is not JSON"),
  ],
)
def test_a_malformed_evaluation_is_named(workdir, content, complaint):
  (workdir / "eval" / "before_rl.json").write_text(content)
  with pytest.raises(errors.InputError, match=complaint) as caught:
    report.write_report(workdir)
  assert "\n" not in str(caught.value)
  assert not (workdir / "report.html").exists()


@pytest.mark.parametrize(
  ("field", "value", "complaint"),
  [
    ("question", None, "question should be a string, is None"),
    ("options", ["A", 1], "options should be a list of strings"),
    ("times", [0.0], "8 frames but 1 times"),
    ("rewards", {"accuracy": "high"}, "rewards.accuracy should be a number, is 'high'"),
    ("steps", ["one"], "alignment: cost should be 4 reference x 1 reply steps"),
    ("alignment", {"cost": [[0], [0], [0], [0]], "path": [], "distance": True}, "cost should be 4"),
  ],
)
def test_a_wrong_field_of_a_rollout_is_named(workdir, field, value, complaint):
  path = workdir / "eval" / "before_rl.json"
  sample = json.loads(path.read_text())["rollouts"][0]
  rewrite(path, rollouts=[sample | {field: value}])
  with pytest.raises(errors.InputError) as caught:
    report.write_report(workdir)
  assert str(caught.value).startswith(f"{path}: rollouts[0]")
  assert complaint in str(caught.value)


def test_a_path_outside_its_matrix_is_refused(workdir):
  path = workdir / "eval" / "after_rl.json"
  sample = json.loads(path.read_text())["rollouts"][0]
  rewrite(path, rollouts=[sample | {"alignment": sample["alignment"] | {"path": [[0, 4]]}}])
  with pytest.raises(errors.InputError, match="path leaves the 4 x 4 matrix"):
    report.write_report(workdir)


@pytest.mark.parametrize(
  ("line", "complaint"),
  [
    ('{"stage": "rl", "step": 1, "val', "not a JSON object"),
    ('{"stage": "rl", "values": {}}', "needs stage, step and values"),
    ('{"stage": "rl", "step": 1.5, "values": {}}', "step should be a whole number, is 1.5"),
    ('{"stage": "rl", "step": 1, "values": {"loss": "low"}}', "values.loss should be a number"),
  ],
)
def test_a_malformed_metrics_line_is_named_with_its_number(tmp_path, line, complaint):
  good = '{"stage": "rl", "step": 0, "values": {}}'
  (tmp_path / "metrics.jsonl").write_text(f"{good}\n{line}\n{good}\n")
  with pytest.raises(errors.InputError) as caught:
    report.write_report(tmp_path)
  assert "metrics.jsonl:2: " in str(caught.value)
  assert complaint in str(caught.value)


def test_a_last_line_that_a_kill_cut_short_is_left_out(tmp_path):
  whole = '{"stage": "rl", "step": 1, "values": {"loss": 2.0}}\n'
  (tmp_path / "metrics.jsonl").write_text(whole + whole[:30])
  report.write_report(tmp_path)
  curves = report_data.read_curves(tmp_path / "metrics.jsonl")
  assert curves == {"rl": {"loss": ([1], [2.0])}}


def test_a_step_that_a_resumed_run_logs_again_counts_once(tmp_path):
  path = tmp_path / "metrics.jsonl"
  records = [(0, 3.0), (1, 2.0), (2, 9.0), (1, 2.0), (2, 1.0)]
  path.write_text(
    "".join(
      json.dumps({"stage": "rl", "step": step, "values": {"loss": loss}}) + "\n"
      for step, loss in records
    )
  )
  assert report_data.read_curves(path) == {"rl": {"loss": ([0, 1, 2], [3.0, 2.0, 1.0])}}


def test_a_long_curve_keeps_its_extremes():
  values = [0.0] * 50_000
  values[12_345], values[40_000] = 7.0, -3.0
  chart = report_curves.chart("loss", range(len(values)), values)
  shown = [float(value) for value in re.search('data-values="([^"]*)"', chart)[1].split()]
  assert (max(shown), min(shown)) == (7.0, -3.0)
  assert len(shown) <= report_curves.MOST_POINTS


@pytest.mark.parametrize(
  "values",
  [[5.0], [0.0, 0.0], [1e-30, 2e-30], [-1e99, 1e99], [1e15, 1e15 + 1], [2e-6] * 30],
)
def test_any_finite_curve_has_ticks_and_stays_within_its_chart(values):
  chart = report_curves.chart("loss", range(len(values)), values)
  path = re.search(r'd="([^"]*)"', chart)[1]
  heights = [float(pair.split()[1]) for pair in re.findall(r"[ML](\S+ [\d.-]+)", path)]
  assert len(heights) == len(values)
  assert all(0 <= height <= report_curves.HEIGHT for height in heights)
  assert 1 <= chart.count('class="y"') <= 5


def test_a_curve_without_a_finite_value_says_so():
  chart = report_curves.chart("loss", range(2), [float("nan"), float("inf")])
  assert "2 not finite" in chart
  assert "<svg" not in chart


def test_text_is_escaped_wherever_it_enters_an_element():
  made = report_markup.element("p", "<b>", title='"><script>', hidden=False, open=True)
  assert made == '<p title="&quot;&gt;&lt;script&gt;" open>&lt;b&gt;</p>'


def test_markup_alone_stays_as_it_is():
  inner = report_markup.element("b", "&")
  assert report_markup.element("p", inner, None) == "<p><b>&amp;</b></p>"


@pytest.mark.parametrize(
  "reply", ["", "</think>", "<think><think>", "<answer>", "<answer></think>x</answer>y<answer>"]
)
def test_any_reply_is_shown_whole(reply):
  shown = "".join(report_reply._highlighted(reply))
  text = re.sub(r"<[^>]*>", "", shown).replace("&lt;", "<").replace("&gt;", ">")
  assert text == (reply or "(an empty reply)")
