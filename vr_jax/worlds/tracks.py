"""Samples scenes and queries about where an object is, which need a look at the right time.

For most of the video all objects are tiny and of one colour. Each approaches for a few cells, one
after the other: then it is large and in a colour of its own, and that is when to look at it. One
object may leave the picture and come back, and one may be hidden by another that approaches on top
of it.

    described   "the red star": its colour is seen only while it is large
    recoloured  the object that changed its colour last
    returned    the object that left the picture and came back
    covered     the object that another one hid
    stayed      all objects that never left the picture: several instances
    absent      an object that is not in the video

Given a query's words, every object is equally likely to be the right one. The masks of all objects
are known (`render`), so that a tracker that makes no mistake can be had (exact_tracker.py).
"""

from collections.abc import Callable
import dataclasses
import itertools

import numpy as np

from vr_jax import errors, records, run_length
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import render
from vr_jax.worlds import scene as scene_lib

_MAX_SCENES = 500  # attempts to draw a scene in which every query has one answer
_LONGEST_AWAY = 2  # cells that an object is out of the picture

_QUERIES = {
  "described": ("the {colour} {shape}", "the {shape} that turns {colour}"),
  "recoloured": ("the object that changed its colour last", "what is the last to change colour"),
  "returned": ("the object that left and came back", "the one that leaves and later returns"),
  "covered": ("the object that another one hid", "the one that was hidden behind another"),
  "stayed": ("all objects that never left the picture", "everything that stays in the picture"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackQuery:
  """A query, and the objects that it means.

  text: what is asked for.
  shapes: of the objects, which name them; () if there are none.
  description: what the object looks like while it is large; "" unless it is one object.
  """

  family: str
  text: str
  shapes: tuple[str, ...]
  description: str = ""


def sample(
  rng: np.random.Generator, config: config_lib.WorldConfig, count: int
) -> tuple[scene_lib.Scene, tuple[TrackQuery, ...]]:
  """Samples a scene and `count` different queries about it.

  Raises errors.InputError if the config allows too few queries about a scene.
  """
  most = sum(config.objects_max if family == "described" else 1 for family in config.families)
  for _ in range(_MAX_SCENES if count <= most else 0):
    scene = _sample_scene(rng, config)
    if scene is None:
      continue
    possible = _possible_queries(rng, config, scene)
    if len(possible) >= count:
      # First a family, so that those of many possible queries are not more frequent.
      chosen: list[TrackQuery] = []
      while len(chosen) < count:
        families = sorted({query.family for query in possible})
        family = str(rng.choice(families))
        matching = [query for query in possible if query.family == family]
        chosen.append(matching[int(rng.integers(len(matching)))])
        possible.remove(chosen[-1])
      return scene, tuple(chosen)
  raise errors.InputError(
    f"worlds.families: no scene allows {count} different queries; ask fewer a video, or allow more "
    "families, objects or cells"
  )


def example(
  scene: scene_lib.Scene, query: TrackQuery, *, name: str, video: str, masks: str
) -> records.Example:
  """Makes the record of a query. Its track is None: that takes the masks, see `object_track`.

  masks: name of the file with the masks of the scene's objects.
  """
  spans = sorted(
    (
      records.Span(start=start * scene.dwell, end=end * scene.dwell)
      for start, end in (_window(scene, shape) for shape in query.shapes)
    ),
    key=lambda span: span.start,
  )
  return records.Example(
    id=name,
    video=video,
    question=query.text,
    answer="",
    problem_type=records.SEGMENTATION,
    shown=records.Span(start=0.0, end=scene.seconds),
    relevant=tuple(spans),
    steps=_steps(scene, query),
    source="simulator",
    extra={
      "masks": masks,
      "instances": list(query.shapes),
      **({"description": query.description} if query.description else {}),
    },
  )


def object_track(
  scene: scene_lib.Scene, rendering: render.Rendering, shapes: tuple[str, ...]
) -> records.ObjectTrack:
  """Where the objects of some shapes are, together, in every frame of a scene."""
  chosen = [index for index, thing in enumerate(scene.objects) if thing.shape in shapes]
  boxes = render.compute_boxes(np.any(rendering.masks[chosen], axis=0)[None])[0]
  return records.ObjectTrack(
    times=np.round(np.arange(scene.frames) / scene.fps, 6),
    boxes=np.where(boxes[:, 2:3] > 0, boxes, np.nan).astype(np.float32),
    height=scene.height,
    width=scene.width,
    instances=shapes,
  )


class MaskWriter:
  """Collects the masks of a video, frame after frame, for the file that annotations name."""

  def __init__(self, scene: scene_lib.Scene):
    self._scene = scene
    self._masks: dict[str, list] = {thing.shape: [] for thing in scene.objects}

  def add(self, frame: render.Frame) -> None:
    """Adds the masks of the next frame."""
    for masks, mask in zip(self._masks.values(), frame.masks, strict=True):
      masks.append(run_length.encode(mask))

  def to_json(self) -> dict:
    """What the file holds (docs/data.md)."""
    scene = self._scene
    return {
      "height": scene.height,
      "width": scene.width,
      "times": [round(frame / scene.fps, 6) for frame in range(scene.frames)],
      "instances": self._masks,
    }


def _sample_scene(
  rng: np.random.Generator, config: config_lib.WorldConfig
) -> scene_lib.Scene | None:
  """Samples a scene; None if objects get into each other's way."""
  cells, large = config.cells, config.large_cells
  count = int(rng.integers(config.objects_min, config.objects_max + 1))
  shapes = [str(shape) for shape in rng.choice(config.shapes, count, replace=False)]
  homes = [str(place) for place in rng.permutation(config.places)[:count]]
  shared, *own = [str(colour) for colour in rng.choice(config.colours, count + 1, replace=False)]
  starts = [int(start) for start in rng.choice(cells - large + 1, count, replace=False)]
  windows = [range(start, start + large) for start in starts]
  places = [[home] * (cells + 1) for home in homes]
  order = list(range(count))
  behind = None
  if "covered" in config.families:
    front, behind = (int(index) for index in rng.choice(count, 2, replace=False))
    for cell in windows[front]:
      if cell in windows[behind]:
        return None
      places[front][cell] = homes[behind]
    order.remove(behind)
    order.insert(0, behind)
  if {"returned", "stayed"} & set(config.families):
    leaver = int(rng.integers(count))
    length = int(rng.integers(1, _LONGEST_AWAY + 1))
    if cells < length + 2:
      return None
    begin = int(rng.integers(1, cells - length))
    for cell in range(begin, begin + length):
      if places[leaver][cell] != homes[leaver] or cell in windows[leaver]:
        return None
      places[leaver][cell] = scene_lib.beyond(homes[leaver])
  objects = []
  for index in order:
    is_large = [cell in windows[index] for cell in range(cells)]
    is_large.append(is_large[-1])  # what is interpolated goes on beyond the last cell
    places[index][cells] = places[index][cells - 1]
    behaviours = (
      scene_lib.Behaviour(kind="cycle", values=_choose(is_large, own[index], shared)),
      scene_lib.Behaviour(kind="grow", values=_choose(is_large, "large", "tiny")),
      scene_lib.Behaviour(kind="move", values=tuple(places[index])),
    )
    objects.append(
      scene_lib.Object(
        shape=shapes[index],
        colour=behaviours[0].values[0],
        size=behaviours[1].values[0],
        place=behaviours[2].values[0],
        behaviours=behaviours,
      )
    )
  scene = scene_lib.Scene(
    height=config.height,
    width=config.width,
    rows=config.rows,
    columns=config.columns,
    seconds=config.seconds,
    fps=config.fps,
    dwell=config.dwell,
    objects=tuple(objects),
    graded=config.graded,
  )
  return scene if _hidden(scene) <= ({shapes[behind]} if behind is not None else set()) else None


def _choose(is_large: list[bool], large: str, other: str) -> tuple[str, ...]:
  return tuple(large if each else other for each in is_large)


def _hidden(scene: scene_lib.Scene) -> set[str]:
  """The shapes of objects whose centre is ever within the circle around one in front of them."""
  found = set()
  # At rest at home, objects are too far from each other.
  moving = {
    cell
    for cell in range(scene.cells)
    for thing in scene.objects
    for places in [scene.script(thing.shape, "place")]
    if {places[cell], places[cell + 1]} != {places[-1]} or places[-1] != places[0]
  }
  for frame in range(scene.frames):
    if int(frame / scene.fps / scene.dwell + 1e-9) not in moving:
      continue
    poses = [scene_lib.pose(scene, thing, frame / scene.fps) for thing in scene.objects]
    pairs = itertools.combinations(zip(scene.objects, poses, strict=True), 2)
    for (back, behind), (_, front) in pairs:
      if np.hypot(front.x - behind.x, front.y - behind.y) < front.diameter / 2:
        found.add(back.shape)
  return found


def _possible_queries(
  rng: np.random.Generator, config: config_lib.WorldConfig, scene: scene_lib.Scene
) -> list[TrackQuery]:
  """Every query that has exactly one answer in a scene."""
  shapes = [thing.shape for thing in scene.objects]
  left = [shape for shape in shapes if _is_away(scene, shape)]
  meant = {
    "described": [(shape,) for shape in shapes],
    "recoloured": _last_to_change(scene),
    "returned": [(shape,) for shape in left],
    "covered": [(shape,) for shape in sorted(_hidden(scene))],
    "stayed": [tuple(shape for shape in shapes if shape not in left)],
  }
  queries = []
  for family in config.families:
    ask: Callable[..., str] = _QUERIES.get(family, _QUERIES["described"])[
      int(rng.integers(min(config.wordings, 2)))
    ].format
    if family == "absent":
      shape = str(rng.choice([shape for shape in config.shapes if shape not in shapes] or shapes))
      shown = {colour for each in shapes for colour in scene.script(each, "colour")}
      colour = str(rng.choice([colour for colour in config.colours if colour not in shown]))
      queries.append(TrackQuery(family=family, text=ask(colour=colour, shape=shape), shapes=()))
      continue
    for group in meant[family]:
      colour = _own_colour(scene, group[0])
      queries.append(
        TrackQuery(
          family=family,
          text=ask(colour=colour, shape=group[0]),
          shapes=group,
          description=f"the {colour} {group[0]}" if len(group) == 1 else "",
        )
      )
  return queries


def _last_to_change(scene: scene_lib.Scene) -> list[tuple[str]]:
  """The object that changes its colour last; none if two do so at the same time."""
  last = {}
  for thing in scene.objects:
    colours = scene.script(thing.shape, "colour")[: scene.cells]
    changes = [cell for cell in range(1, scene.cells) if colours[cell] != colours[cell - 1]]
    last[thing.shape] = max(changes, default=0)
  latest = [shape for shape, cell in last.items() if cell == max(last.values())]
  return [(latest[0],)] if len(latest) == 1 and len(last) > 1 and max(last.values()) else []


def _is_away(scene: scene_lib.Scene, shape: str) -> list[int]:
  """The cells in which an object is out of the picture."""
  places = scene.script(shape, "place")[: scene.cells]
  beyond = scene_lib.beyond("")
  return [cell for cell, place in enumerate(places) if place.startswith(beyond)]


def _window(scene: scene_lib.Scene, shape: str) -> tuple[int, int]:
  """The first cell in which an object is large, and the one after the last."""
  sizes = scene.script(shape, "size")[: scene.cells]
  large = [cell for cell, size in enumerate(sizes) if size == "large"]
  return large[0], large[-1] + 1


def _own_colour(scene: scene_lib.Scene, shape: str) -> str:
  return scene.script(shape, "colour")[_window(scene, shape)[0]]


def _steps(scene: scene_lib.Scene, query: TrackQuery) -> tuple[records.Step, ...]:
  """The reasoning that leads to the objects: what they do, in order of time."""
  found: list[tuple[int, int, str]] = []
  for thing in scene.objects:
    shape = thing.shape
    start, end = _window(scene, shape)
    # Which object changes its colour last can only be told from all of them.
    if shape in query.shapes or query.family == "recoloured":
      found.append((start, end, f"the {shape} is large and {_own_colour(scene, shape)}"))
    away = _is_away(scene, shape)
    if away and query.family in ("returned", "stayed"):
      found.append((away[0], away[-1] + 1, f"the {shape} is out of the picture"))
    if query.family == "covered" and shape not in query.shapes:
      hidden = scene.object(query.shapes[0])
      places = scene.script(shape, "place")
      cells = [cell for cell in range(scene.cells) if places[cell] == hidden.place]
      if cells:
        found.append((cells[0], cells[-1] + 1, f"the {shape} hides the {hidden.shape}"))
  return tuple(
    records.Step(
      text=f"At {start * scene.dwell:g}s, {text}.",
      start=start * scene.dwell,
      end=end * scene.dwell,
    )
    for start, end, text in sorted(found)
  )
