"""Each line that docs/troubleshooting.md explains is one that the code can write."""

import ast
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
# Rows of the tables that are headed by "line".
TABLES = re.findall(r"^\| line \|.*\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE)
LINES = [row.split("`")[1] for table in TABLES for row in table.splitlines()]


def _pattern(node: ast.expr) -> str | None:
  """A regular expression of a text in the code; what is formatted may be anything."""
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return re.escape(node.value)
  if isinstance(node, ast.JoinedStr):
    parts = [_pattern(value) or ".*" for value in node.values]
    return "".join(parts)
  return None


@pytest.fixture(scope="module")
def patterns() -> list[re.Pattern[str]]:
  """Those of all texts of 20 and more fixed characters."""
  found = set()
  for path in [*(ROOT / "vr_jax").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      pattern = _pattern(node) if isinstance(node, ast.expr) else None
      if pattern and len(pattern.replace(".*", "")) >= 12:
        found.add(pattern)
  return [*map(re.compile, found)]


def test_the_page_has_lines():
  assert len(LINES) > 40 and len(set(LINES)) == len(LINES)


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_page_is_one_of_the_code(line, patterns):
  assert any(pattern.fullmatch(line) for pattern in patterns), line
