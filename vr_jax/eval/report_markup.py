"""HTML that is safe by construction: whatever is not marked as HTML is escaped when it enters an element."""

import html

VOID = frozenset({"br", "img", "meta"})  # elements that have no end tag


class Html(str):
  """Text that is already HTML. Only `element`, `joined` and the report's own assets make one."""

  __slots__ = ()


def element(tag: str, *children: str | None, **attributes: object) -> Html:
  """One element. Children that are no Html are text, and escaped; None is left out.

  Attribute names: `_` stands for `-`, and a trailing `_` is dropped (`class_`). A value of None or False leaves the
  attribute out, True gives it without a value; every other value is escaped.
  """
  parts = [f"<{tag}"]
  for key, value in attributes.items():
    name = key.rstrip("_").replace("_", "-")
    if value is True:
      parts.append(f" {name}")
    elif value is not None and value is not False:
      parts.append(f' {name}="{html.escape(str(value))}"')
  parts.append(">")
  if tag not in VOID:
    parts += [joined(*children), f"</{tag}>"]
  return Html("".join(parts))


def joined(*children: str | None) -> Html:
  """The children one after the other, escaped where they are no Html."""
  return Html(
    "".join(
      child if isinstance(child, Html) else html.escape(child)
      for child in children
      if child is not None
    )
  )
