"""The report's strips of frames."""

from collections.abc import Sequence

from vr_jax.eval.report_markup import Html, element


def strip(frames: Sequence[str], names: Sequence[str]) -> Html:
  """Frames (base64 JPEG) that the model saw, in order, each with its name below."""
  if not frames:
    return element("p", "No frames were shown.", class_="missing")
  figures = [
    element(
      "figure",
      element("img", src=f"data:image/jpeg;base64,{frame}", alt=f"frame at {name}"),
      element("figcaption", name),
    )
    for frame, name in zip(frames, names, strict=True)
  ]
  return element("div", *figures, class_="strip")
