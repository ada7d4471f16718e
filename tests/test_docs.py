"""The docs name only config fields and files that exist."""

from pathlib import Path
import re

import pytest

from vr_jax import recipe_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
# --config.a.b in a command, or `rl.a`, `config.rl.a` in a sentence.
FLAG = re.compile(r"--config\.([a-z_]+(?:\.[a-z_0-9]+)*)")
FIELD = re.compile(
  r"`(?:config\.)?((?:data|model|sft|rl|eval|export|log|env|judge|traces|turns|critic)"
  r"\.[a-z_0-9]+(?:\.[a-z_0-9]+)*)(?:=[^`]*)?`"
)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)]*))?\)")
# Written as examples of what is wrong, or of a user's own recipe.
OTHERS = {"rl.learning_rte", "field", "env.wanted", "env.weights.brevity"}


@pytest.fixture(scope="module")
def fields() -> set[str]:
  """Every section and field of every recipe at every size, with dots between."""
  found: set[str] = set()

  def add(node, prefix):
    for name, value in node.items():
      found.add(prefix + name)
      if hasattr(value, "items"):
        add(value, f"{prefix}{name}.")

  for recipe in recipe_config.names():
    for size in ("tiny", "3b"):
      add(recipe_config.load(f"{recipe}:{size}"), "")
  return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_config_fields_that_a_recipe_has(page, fields):
  text = page.read_text(encoding="utf-8")
  named = {*FLAG.findall(text), *FIELD.findall(text)}
  assert not named - fields - OTHERS


def anchors(page: Path) -> set[str]:
  """What GitHub calls the headings of a page in links."""
  headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
  return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
  for link, anchor in LINK.findall(page.read_text(encoding="utf-8")):
    if ":" not in link:
      target = page.parent / link
      assert target.exists(), link
      assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def test_a_field_that_does_not_exist_is_noticed(fields):
  text = "`--config.rl.rungs=3`, `rl.rungs` and `config.rl.steps`"
  assert {*FLAG.findall(text), *FIELD.findall(text)} - fields == {"rl.rungs"}
