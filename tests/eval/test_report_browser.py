"""The report in a real browser: what its reader's machine runs, computes and draws."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest

from tests.eval import conftest as runs
from vr_jax.eval import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(
  CHROMIUM is None and os.environ.get("CI") != "true",
  reason="needs a browser: apt-get install chromium (CI has one, and fails without)",
)

# Points at the middle of the first curve and of the first cell, and writes the tips into the page.
POINTER = """
const said = [];
for (const mark of [document.querySelector("svg.curve"), document.querySelector("rect.cell")]) {
  mark.scrollIntoView();
  const box = mark.getBoundingClientRect();
  const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true};
  mark.dispatchEvent(new PointerEvent("pointermove", at));
  said.push(document.getElementById("tip").textContent);
}
document.body.dataset.said = JSON.stringify(said);
"""
ORDER = ("q-001", "q-003", "q-002")  # of the cards: what changed stands first


# What a reader does with the filters and the keyboard; the page says what came of it.
READER = """
const form = document.getElementById("filters");
const visible = (selector) =>
  [...document.querySelectorAll(selector)].filter((each) => each.checkVisibility());
const shown = () => visible(".rollout").map((each) => each.dataset.id);
function filtered(values) {
  form.reset();
  Object.entries(values).forEach(([name, value]) => { form.elements[name].value = value; });
  form.dispatchEvent(new Event("input", { bubbles: true }));
  return [shown(), form.elements.count.textContent];
}
const said = { at_first: [shown(), form.elements.count.textContent] };
for (const [name, values] of Object.entries(%s)) said[name] = filtered(values);
said.groups = visible(".outcome").length;
const name = document.querySelector(".results [data-metric=accuracy] .explained");
name.focus();
said.focused = [document.activeElement === name, document.getElementById("tip").textContent];
document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
said.escaped = document.getElementById("tip").hidden;
const inputs = [...form.querySelectorAll("select, input, button")];
const isNamed = (each) => each.labels?.length || each.ariaLabel || each.textContent;
said.reachable = inputs.every((each) => each.tabIndex === 0 && isNamed(each));
document.body.dataset.said = JSON.stringify(said);
"""


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
  """dump(path) -> the page's DOM as the browser has it once scripts have run."""
  assert CHROMIUM, "no chromium: CI has to install it"
  profile = tmp_path_factory.mktemp("browser")

  def run(path, width=800):
    command = [
      CHROMIUM,
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      f"--user-data-dir={profile}",
      f"--window-size={width},2000",
      "--dump-dom",
      path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode("utf-8")

  return run


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
  """A complete run, only to be read."""
  return runs.make_workdir(tmp_path_factory.mktemp("complete"))


@pytest.fixture(scope="module")
def dom(complete, dump):
  return dump(report.write_report(complete))


def read_said(dom):
  """What a script left in the page."""
  return json.loads(html.unescape(re.search(r'data-said="([^"]*)"', dom)[1]))


def unguarded(path, script: str = ""):
  """A copy of the page without its policy, which lets any script run, and with one more script."""
  text = path.read_text(encoding="utf-8")
  text, removed = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
  assert removed == 1
  copy = path.with_name("unguarded.html")
  copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
  return copy


# Says which of our boxes are wider than a phone, or than what they scroll in. The window has the
# least width that a headless browser allows, so that the style for phones holds.
WIDE = """
document.documentElement.style.width = "420px";
document.querySelectorAll("details").forEach((each) => { each.open = true; });
const wide = [...document.querySelectorAll("body, .results, .run, .card, .rollout, #filters")]
  .filter((each) => each.getBoundingClientRect().right > 420.5
    || each.scrollWidth > each.clientWidth + 1);
document.body.dataset.said = JSON.stringify(wide.map((each) => each.className));
"""


def test_nothing_but_frames_and_matrices_runs_over_a_phone(workdir, dump):
  path = workdir / "eval" / "before_rl.json"
  content = json.loads(path.read_text())
  wide = {name: {"low": 0.101, "high": 0.999} for name in content["metrics"]}
  path.write_text(json.dumps(content | {"intervals": wide}))
  assert read_said(dump(unguarded(report.write_report(workdir), WIDE), 500)) == []


def test_no_text_of_the_model_became_markup(dom):
  assert "<title>moss_chatv · vr_jax</title>" in dom
  assert dom.count("<script>") == 1
  assert dom.count("<style>") == 1
  assert not re.search(r"<[^>]+ on(error|load)=", dom)
  assert dom.count("<img ") == 3 * 8
  assert "&lt;script&gt;document.title='owned'&lt;/script&gt;" in dom


def test_escaping_holds_without_the_policy_that_backs_it(workdir, dump):
  dom = dump(unguarded(report.write_report(workdir)))
  assert "<title>moss_chatv · vr_jax</title>" in dom


def test_the_policy_stops_a_script_that_escaping_would_have_missed(workdir, dump):
  path = report.write_report(workdir)
  text = path.read_text(encoding="utf-8")
  path.write_text(text.replace("</body>", "<script>document.title = 'owned'</script></body>"))
  assert "<title>moss_chatv · vr_jax</title>" in dump(path)


def test_the_numbers_of_every_evaluation_are_in_the_table(dom):
  [accuracy] = re.findall('<tr data-metric="accuracy".*?</tr>', dom)
  cells = re.sub("<[^>]*>", "|", accuracy)
  for text in ("41.2 %", "(35.2 to 47.2)", "72.2 %", "+66.7 points"):
    assert text in cells
  assert dom.count("<tr data-metric=") == 12
  assert "0.827" in dom


def test_a_curve_has_a_point_for_every_value_logged(complete, dom):
  logged: dict[tuple[str, str], int] = {}
  for line in (complete / "metrics.jsonl").read_text().splitlines():
    record = json.loads(line)
    for name, value in record["values"].items():
      key = record["stage"], name
      logged[key] = logged.get(key, 0) + (value == value)
  drawn, constant = {}, {}
  for stage, charts in re.findall(r'data-stage="(\w+)">(.*?)(?=data-stage=|<h2)', dom, re.DOTALL):
    for name, chart in re.findall(r'data-metric="([^"]+)">(.*?)</figure>', charts, re.DOTALL):
      path = re.search(r' d="([^"]*)" class="raw"', chart)[1]
      drawn[stage, name] = len(re.findall("[ML]", path))
      assert len(re.search('data-steps="([^"]*)"', chart)[1].split()) == drawn[stage, name]
    for name, value in re.findall(
      r'<li data-metric="([^"]+)">.*?"last">([^<]*)<', charts, re.DOTALL
    ):
      constant[stage, name] = value
  assert constant == {("rl", "learning_rate"): "2e-06", ("rl", "perf/time/rollout"): "0.9"}
  assert drawn.keys().isdisjoint(constant)
  assert drawn == {key: count for key, count in logged.items() if key not in constant}


def test_every_alignment_is_drawn_with_its_path(complete, dom):
  matrices = re.findall(r'<svg [^>]*class="matrix">.*?</svg>', dom, re.DOTALL)
  samples = [
    sample
    for pair in zip(
      *(
        sorted(
          runs.read_replies(complete / "eval" / name), key=lambda each: ORDER.index(each["id"])
        )
        for name in ("before_rl.jsonl", "after_rl.jsonl")
      ),
      strict=True,
    )
    for sample in pair
  ]
  assert len(matrices) == len(samples)
  for matrix, sample in zip(matrices, samples, strict=True):
    path = sample["alignment"]["path"]
    assert matrix.count('class="cell"') == len(sample["reference"]) * len(sample["steps"])
    assert matrix.count('class="node"') == len(path)
    assert matrix.count("<polyline") == bool(path)


def test_pointing_at_a_curve_or_a_cell_shows_what_stands_there(workdir, dump):
  dom = dump(unguarded(report.write_report(workdir), POINTER))
  curve, cell = read_said(dom)
  assert re.fullmatch(r"rewards · total · mean\nstep 5[12]: 2\.\d+", curve)
  assert cell.startswith("cost 0.02\nAt 0s, the circle is red.")


def test_the_filters_leave_what_the_reader_asks_for_and_the_keyboard_reaches_all(workdir, dump):
  """Three questions of the run, and one that became wrong, of another type."""
  for name, changes in (
    ("before_rl", {"accuracy": 1.0, "rewards": {"accuracy": 1.0, "process": 0.9}}),
    ("after_rl", {"accuracy": 0.0, "rewards": {"accuracy": 0.0, "process": 0.125}}),
  ):
    path = workdir / "eval" / f"{name}.jsonl"
    replies = runs.read_replies(path)
    other = {"id": "q-004", "problem_type": "numerical", "options": [], **changes}
    path.write_text("".join(json.dumps(e) + "\n" for e in [*replies, replies[0] | other]))
  with (workdir / "eval" / "frames.jsonl").open("a") as stream:
    stream.write(json.dumps(runs.frames("q-004")) + "\n")
  asked = {
    "all": {"outcome": ""},
    "to_wrong": {"outcome": "right-to-wrong"},
    "type": {"outcome": "", "type": "numerical"},
    "low_after": {"outcome": "", "reward": "process", "most": "0.125"},
    "low_before": {"reward": "process", "evaluation": "before_rl", "most": "0.1"},
    "between": {"outcome": "", "reward": "process", "least": "0.2", "most": "0.3"},
  }
  dom = dump(unguarded(report.write_report(workdir), READER % json.dumps(asked)))
  said = read_said(dom)
  changed, every = ["q-001", "q-003", "q-004"], ["q-001", "q-003", "q-004", "q-002"]
  assert said["at_first"] == [changed, "3 of 4 questions"]
  assert said["all"] == [every, "4 of 4 questions"]
  assert said["to_wrong"] == said["type"] == said["low_after"] == [["q-004"], "1 of 4 questions"]
  assert said["low_before"][0] == ["q-001"]  # q-003 is aligned, q-002 has not changed
  assert said["between"] == [[], "0 of 4 questions"]
  assert said["groups"] == 0
  explained = "Mean score of answers, by the rule of their problem type. Higher is better."
  assert said["focused"] == [True, explained]
  assert said["escaped"] and said["reachable"]
  headings = re.findall(r'<div class="outcome"[^>]*>\n<h3>([^<]*)<', dom)
  assert headings == ["Wrong → right", "Right → wrong", "Right"]
