"""Writes a run's report: one self-contained HTML file, which makes no network requests.

    workdir/config.json      {"config": {"recipe", …}, "versions": {package: …}, "git_revision"}
    workdir/metrics.jsonl    {"stage": "sft", "step": 10, "values": {"loss": 1.9}}, one a line
    workdir/eval/            what stage.py writes; docs/evaluation.md describes it
    workdir/benchmarks/      table.json of `vr-jax eval`; may be absent

The other report_* modules compute plain data. The templates in report_assets/ hold all of the
markup. Model text may be hostile: Jinja escapes what a template inserts, and in case that fails,
the page's content security policy allows only our own script.
"""

import base64
import hashlib
import importlib.resources
import json
from pathlib import Path

import jinja2

from vr_jax import atomic
from vr_jax.eval import (
  report_changes,
  report_curves,
  report_data,
  report_facts,
  report_judged,
  report_rollouts,
  report_table,
)


def write_report(workdir: Path) -> Path:
  """Writes report.html in a workdir, and returns its path.

  The report says what is missing if the run is not complete.

  Raises:
    InputError: there is no such workdir, or a file in it has a wrong format.
  """
  page = render(report_data.read_run(workdir))
  path = workdir / "report.html"
  # UTF-8 can't encode lone surrogates.
  atomic.write_bytes(path, [page.encode("utf-8", errors="replace")])
  return path


def render(run: report_data.ReportRun) -> str:
  """Renders the report of a run as HTML."""
  script, style = read_asset("report.js"), read_asset("report.css")
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  workdir = run.workdir.resolve().name
  config = None if run.config is None else run.config.get("config", run.config)
  groups = report_rollouts.groups(run)
  facts = report_facts.facts(run)
  return (
    make_environment()
    .get_template("report.html")
    .render(
      name=facts.pop("recipe", None) or workdir,
      workdir=workdir,
      facts=facts,
      stages_done=[*report_facts.stages(run), *report_facts.evaluations(run)],
      config=None if config is None else json.dumps(config, indent=2, ensure_ascii=False),
      warning=report_facts.warning(run),
      summary=report_changes.summary(run.evaluations),
      results=report_table.results(run.evaluations),
      judged=report_judged.section(run),
      benchmarks=report_data.read_benchmarks(run.workdir),
      stages=report_curves.stages(run.curves),
      groups=groups,
      filters=report_rollouts.filters(groups),
      style=style,
      script=script,
      digest=digest,
    )
  )


def make_environment() -> jinja2.Environment:
  """Makes the Jinja environment of report_assets/: it escapes values; missing ones are errors."""
  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(read_asset),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["counted"] = report_facts.counted
  return environment


def read_asset(name: str) -> str:
  """A file of report_assets/."""
  asset = importlib.resources.files("vr_jax.eval") / "report_assets" / name
  return asset.read_text(encoding="utf-8")
