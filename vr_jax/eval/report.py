"""A run's report: one HTML file that holds everything it shows and asks the network for nothing.

    workdir/config.json      {"config": {"recipe", …}, "versions": {package: version}, "git_revision"}
    workdir/metrics.jsonl    {"stage": "sft", "step": 10, "values": {"loss": 1.9}}, one a line
    workdir/eval/*.json      report_data.Evaluation, its samples under "rollouts"

Model text is hostile until escaped: pages are built by report_markup alone, and the page's own policy lets no script
run but the one below, should anything slip through.
"""

import base64
import hashlib
import importlib.resources
import json
from pathlib import Path
import re

from vr_jax import atomic
from vr_jax.eval import report_curves, report_data, report_rollouts, report_table
from vr_jax.eval.report_markup import Html, element

SECTIONS = ("Results", "Curves", "Rollouts")


def write_report(workdir: Path) -> Path:
  """Writes report.html of a workdir anew, and returns its path.

  What the run has not made yet is said in the report rather than left out.

  Raises:
    InputError: there is no such workdir, or a file in it is not what a run writes.
  """
  page = render(report_data.read_run(workdir))
  path = workdir / "report.html"
  # A lone surrogate has no UTF-8.
  atomic.write_bytes(path, [page.encode("utf-8", errors="replace")])
  return path


def render(run: report_data.Run) -> str:
  """The page of a run."""
  script, style = _asset("report.js"), _asset("report.css")
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = (
    f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
  )
  name = _name(run)
  head = element(
    "head",
    element("meta", charset="utf-8"),
    element("meta", http_equiv="Content-Security-Policy", content=policy),
    element("meta", name="viewport", content="width=device-width, initial-scale=1"),
    element("meta", name="color-scheme", content="light dark"),
    element("title", f"{name} · vr_jax"),
    element("style", style),
  )
  contents = (
    report_table.results(run.evaluations),
    report_curves.curves(run.curves),
    report_rollouts.rollouts(run.evaluations),
  )
  sections = [
    element("section", element("h2", title), content, id=title.lower())
    for title, content in zip(SECTIONS, contents, strict=True)
  ]
  main = element("main", *sections, _configuration(run.config))
  tip = element("div", id="tip", role="status", hidden=True)
  body = element("body", _header(name, run), main, tip, element("script", script))
  return "<!doctype html>\n" + element("html", head, body, lang="en")


def _header(name: str, run: report_data.Run) -> Html:
  config = run.config or {}
  versions = config.get("versions")
  versions = versions if isinstance(versions, dict) else {}
  revision = str(config.get("git_revision") or "not recorded")
  facts = {"revision": re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", revision), **versions}
  items = [
    element("span", element("span", key, class_="key"), " ", element("code", str(value)))
    for key, value in facts.items()
  ]
  links = [element("a", title, href=f"#{title.lower()}") for title in SECTIONS]
  return element(
    "header",
    element("p", f"vr_jax · {run.workdir.resolve().name}", class_="kicker"),
    element("h1", name),
    element("div", *items, class_="facts"),
    element("nav", *links),
  )


def _configuration(config: dict | None) -> Html:
  if config is None:
    return element("p", "No config.json in this workdir.", class_="missing")
  text = json.dumps(config.get("config", config), indent=2, ensure_ascii=False)
  return element(
    "details", element("summary", "Configuration"), element("pre", text), class_="configuration"
  )


def _name(run: report_data.Run) -> str:
  """The recipe, or the workdir's name where no config says it."""
  config = (run.config or {}).get("config")
  recipe = config.get("recipe") if isinstance(config, dict) else None
  return str(recipe or run.workdir.resolve().name)


def _asset(name: str) -> Html:
  """A file of ours, put into the page as it is."""
  asset = importlib.resources.files("vr_jax.eval") / "report_assets" / name
  return Html(asset.read_text(encoding="utf-8"))
