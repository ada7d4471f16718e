"""The report as a document: what it holds, what it says is missing, and which input it refuses."""

import dataclasses
import html
from html.parser import HTMLParser
import json
from pathlib import Path
import re
import shlex

import jinja2
import pytest

from tests.eval import conftest as runs
from vr_jax import errors
from vr_jax.envs import metric
from vr_jax.eval import report, report_curves, report_data, report_rollouts

HOSTILE = "</pre>\"'><script>document.title='owned'</script><img src=x onerror=alert(1)>&amp;"


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


def rewrite_replies(workdir, name, change):
  """Replaces the replies of an evaluation by `change` of them."""
  path = workdir / "eval" / f"{name}.jsonl"
  replies = change(runs.read_replies(path))
  path.write_text("".join(json.dumps(each) + "\n" for each in replies))


def remove(workdir, name):
  for path in (workdir / "eval").glob(f"{name}.*"):
    path.unlink()


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
  links = {attributes["href"] for attributes in page.all("a")}
  files = {link for link in links if not link.startswith("#")}
  assert files == {"eval/before_rl.jsonl", "eval/after_rl.jsonl"}  # only for who clicks
  [policy] = [each["content"] for each in page.all("meta") if "http-equiv" in each]
  assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_header_says_what_ran(workdir):
  header = report.write_report(workdir).read_text().split("<header>")[1].split("</header>")[0]
  for fact in ("<h1>moss_chatv</h1>", "3d844ac0f1e2-dirty", "0.10.2", "4 x TPU v6e", "2 min"):
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


@pytest.mark.parametrize("start", ["sft", "base"])
def test_evaluations_stand_in_the_order_of_training(workdir, start):
  path = workdir / "eval" / "before_rl.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), "stage": start, "step": 0}))
  run = report_data.read_run(workdir)
  assert [each.name for each in run.evaluations] == ["before_rl", "after_rl"]


def test_a_question_stands_once_with_the_replies_of_both_evaluations(workdir):
  page = page_of(workdir)
  cards = [each for each in page.all("details") if each.get("class") == "rollout"]
  assert [(each["data-id"], each["data-outcome"]) for each in cards] == [
    ("q-001", "wrong-to-right"),
    ("q-003", "wrong-to-right"),
    ("q-002", "right"),
  ]
  assert ["open" in each for each in cards] == [True, False, False]
  replies = [each["data-evaluation"] for each in page.all("section") if "data-evaluation" in each]
  assert replies == ["before_rl", "after_rl"] * 3


def test_a_question_of_one_evaluation_only_is_shown_too(workdir):
  rewrite_replies(workdir, "after_rl", lambda replies: replies[1:])
  text = report.write_report(workdir).read_text()
  assert 'data-id="q-001"' in text


def test_a_rollout_without_alignment_frames_or_reference_says_so(workdir):
  none = {"cost": [], "path": [], "distance": None}
  bare = {"times": [], "reference": [], "alignment": none, "metrics": {}}
  rewrite_replies(workdir, "before_rl", lambda replies: [replies[0] | bare])
  remove(workdir, "after_rl")
  text = report.write_report(workdir).read_text()
  for missing in ("No frames were shown", "No reference steps", "No alignment"):
    assert missing in text


def test_a_recipe_without_reference_steps_and_alignments_misses_none(workdir):
  bare = {"reference": [], "alignment": None}
  for name in ("before_rl", "after_rl"):
    rewrite_replies(workdir, name, lambda replies: [each | bare for each in replies])
  text = report.write_report(workdir).read_text()
  assert "No reference steps" not in text and "No alignment" not in text


def test_one_thing_is_not_counted_as_several(workdir):
  for name in ("before_rl", "after_rl"):
    rewrite_replies(workdir, name, lambda replies: [each | {"tokens": 1} for each in replies[:1]])
  text = report.write_report(workdir).read_text()
  assert "On 1 held-out question about 1 video, accuracy" in text
  assert "· 1 token<" in text and not re.search(r"\b1 (question|video|token)s", text)


def test_a_run_that_learned_nothing_says_so_first(workdir):
  assert 'class="warning"' not in report.write_report(workdir).read_text()
  path = workdir / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for line in lines:
    line["values"] |= {"frac_reward_zero_std": 1.0} if line["stage"] == "rl" else {}
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  says = "Nothing was learned from the rewards: in 120 of 120 steps all replies of each group earne"
  text = report.write_report(workdir).read_text()
  assert f'<p class="warning">{says}' in text
  assert text.index(says) < text.index('class="cards"')


def test_a_change_is_coloured_where_its_interval_leaves_out_0(workdir):
  text = report.write_report(workdir).read_text()
  change = row(text, "accuracy").rpartition("<td>")[2]
  assert change.startswith("+66.7 points")  # wrong, right, wrong became right, right, right
  assert "(−" in change

  def repeated(replies):
    """Twenty questions about as many videos that behave as the first one."""
    return [replies[0] | {"id": f"q{i}", "video": f"{i}.mp4"} for i in range(20)]

  for name in ("before_rl", "after_rl"):
    rewrite_replies(workdir, name, repeated)
  text = report.write_report(workdir).read_text()
  assert '<td class="good">+100.0 points' in row(text, "accuracy")
  assert row(text, "think_answer_mismatch").endswith("<td>−15.5 points</td></tr>")  # no interval
  assert row(text, "completions/mean_length").endswith("<td>±0.0</td></tr>")


def row(text: str, metric: str) -> str:
  found = re.search(rf'<tr data-metric="{re.escape(metric)}".*?</tr>', text)
  assert found is not None
  return found[0]


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
      r"before_rl\.json: field 'intervals' is missing",
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
    ("times", ["0 s"], "times should be a list of numbers"),
    ("shown", [0.0], "shown should be [start, end]"),
    ("tokens", None, "tokens should be a whole number"),
    ("rewards", {"accuracy": "high"}, "rewards.accuracy should be a number, is 'high'"),
    ("steps", ["one"], "alignment: cost should be 4 reference x 1 reply steps"),
    ("alignment", {"cost": [[0], [0], [0], [0]], "path": [], "distance": True}, "cost should be 4"),
  ],
)
def test_a_wrong_field_of_a_rollout_is_named(workdir, field, value, complaint):
  rewrite_replies(workdir, "before_rl", lambda replies: [replies[1], replies[0] | {field: value}])
  with pytest.raises(errors.InputError) as caught:
    report.write_report(workdir)
  assert str(caught.value).startswith(f"{workdir / 'eval' / 'before_rl.jsonl'}:2: ")
  assert complaint in str(caught.value)


def test_a_path_outside_its_matrix_is_refused(workdir):
  rewrite_replies(
    workdir,
    "after_rl",
    lambda replies: [replies[0] | {"alignment": replies[0]["alignment"] | {"path": [[0, 4]]}}],
  )
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
  curve = report_curves.chart("loss", range(len(values)), values)["curve"]
  shown = [float(value) for value in curve["numbers"].split()]
  assert (max(shown), min(shown)) == (7.0, -3.0)
  assert len(shown) <= report_curves.MOST_POINTS


@pytest.mark.parametrize(
  "values",
  [[5.0], [0.0, 0.0], [1e-30, 2e-30], [-1e99, 1e99], [1e15, 1e15 + 1], [2e-6] * 30],
)
def test_any_finite_curve_has_ticks_and_stays_within_its_chart(values):
  curve = report_curves.chart("loss", range(len(values)), values)["curve"]
  heights = [float(pair.split()[1]) for pair in re.findall(r"[ML](\S+ [\d.-]+)", curve["raw"])]
  assert len(heights) == len(values)
  assert all(0 <= height <= report_curves.HEIGHT for height in heights)
  assert 1 <= len(curve["ticks"]) <= 5


def test_a_curve_without_a_finite_value_says_so(tmp_path):
  lines = [
    {"stage": "rl", "step": step, "values": {"loss": value}}
    for step, value in enumerate((float("nan"), float("inf")))
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  page = report.write_report(tmp_path).read_text()
  chart = page[page.index('<figure class="chart"') : page.index("</figure>")]
  assert "2 not finite" in chart
  assert "<svg" not in chart


FILES = {"config", "recipe", "versions", "git_revision", "stage", "step", "values", "alignment"}
FILES |= {*map(str, range(8)), "frames", "low", "high", "turns", "history", "mode", "accuracy"}
RECORDS = (
  report_data.Evaluation,
  report_data.Sample,
  report_data.ReferenceStep,
  report_data.ReportAlignment,
)
FIELDS = FILES | {
  field.name for record in (*RECORDS, metric.Metric) for field in dataclasses.fields(record)
}


def _with_hostile_texts(value: object) -> object:
  """JSON whose texts, and names that are not fields, all end with markup."""
  if isinstance(value, dict):
    return {
      key if key in FIELDS else key + HOSTILE: _with_hostile_texts(each)
      for key, each in value.items()
    }
  if isinstance(value, list):
    return [_with_hostile_texts(each) for each in value]
  return value + HOSTILE if isinstance(value, str) else value


def test_no_text_of_any_file_becomes_markup(workdir):
  tags = Page(report.write_report(workdir).read_text(encoding="utf-8")).tags
  for path in (workdir / "config.json", *(workdir / "eval").iterdir()):
    lines = [_with_hostile_texts(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  hostile = [json.dumps(_with_hostile_texts(json.loads(line))) for line in lines]
  (workdir / "metrics.jsonl").write_text("\n".join(hostile) + "\n")
  text = report.write_report(workdir).read_text(encoding="utf-8")
  page = Page(text)
  assert text.count("&lt;script&gt;document.title=") > 200
  for tag in ("script", "style", "img", "pre", "figure", "section", "details"):
    assert len(page.all(tag)) == sum(name == tag for name, _ in tags)
  assert {name for name, _ in page.tags} == {name for name, _ in tags}
  names = {name for _, attributes in page.tags for name in attributes}
  assert names == {name for _, attributes in tags for name in attributes}
  assert "data-tip" in names and not any(name.startswith("on") for name in names)


def test_templates_trust_our_own_style_and_script_alone():
  assets = Path(report.__file__).parent / "report_assets"
  templates = [path.read_text(encoding="utf-8") for path in assets.glob("*.html")]
  assert len(templates) == 8
  trusted = re.findall(r"\{\{[^}]*\|\s*safe\b[^}]*\}\}|autoescape", "".join(templates))
  # report.html has both, benchmarks_page.html the style.
  assert sorted(trusted) == ["{{ script|safe }}", "{{ style|safe }}", "{{ style|safe }}"]
  assert report.make_environment().autoescape is True


def test_a_value_that_a_template_misses_is_an_error_and_not_an_empty_place():
  template = report.make_environment().get_template("results.html")
  with pytest.raises(jinja2.UndefinedError, match="results"):
    template.render()


@pytest.mark.parametrize(
  "reply", ["", "</think>", "<think><think>", "<answer>", "<answer></think>x</answer>y<answer>"]
)
def test_any_reply_is_cut_without_loss(reply):
  assert "".join(span["text"] for span in report_rollouts._spans(reply)) == reply


def test_an_empty_reply_is_said_to_be(workdir):
  rewrite_replies(workdir, "before_rl", lambda replies: [replies[0] | {"reply": ""}])
  text = report.write_report(workdir).read_text()
  assert text.count("(an empty reply)") == 1


def test_below_each_reply_stands_the_command_that_asks_for_it_again(workdir):
  text = report.write_report(workdir).read_text(encoding="utf-8")
  found = re.findall(r"Ask again: <code>(.*?)</code>", text, re.DOTALL)
  commands = [shlex.split(html.unescape(command)) for command in found]
  question = "Which colour will the circle have at 9s?"
  options = "--options=A. red,B. green,C. blue,D. yellow"
  checkpoint = f"--checkpoint={workdir}"
  assert sorted(commands) == sorted(
    ["vr-jax", "ask", f"q-00{number}.mp4", question, checkpoint, options, *flags]
    for number in (1, 2, 3)
    for flags in ([], ["--before_rl"])
  )
