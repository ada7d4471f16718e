"""Scenes: objects that change as pure functions of time, and how scenes are sampled.

Nothing here knows about questions. Time is divided into cells: intervals of `dwell` seconds in
which discrete attributes stay as they are. A scene is sampled in two parts: the roles (how many
objects, which shapes, which behaviours), then the details (colours, places, periods, phases).
Given the roles, the distribution of the details is symmetric: it stays the same if colours or
places are permuted or the phase of a repeating behaviour is shifted. This keeps answers from being
guessable. The colours of a flickering object are independent from cell to cell.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float
import numpy as np

from vr_jax import errors
from vr_jax.worlds import config as config_lib

_GLIDE = 0.25  # objects move or grow to the next cell's state in this last fraction of a cell
# As fractions of a zone's side.
_DIAMETER = {"tiny": 0.18, "small": 0.36, "medium": 0.58, "large": 0.82}
_SLOT = 0.21  # from the box's centre to the centre of a quarter, along each axis
_LIFT = 0.24  # how far an object with a display is above its zone's centre
_BEYOND = "beyond "
_MAX_BOXED = 4  # a box has four quarters
_MAX_DRAWS = 1000  # attempts to draw roles that fit on the canvas


@dataclasses.dataclass(frozen=True, kw_only=True)
class Behaviour:
  """How one attribute of an object changes: values[0] for a cell, then values[1], …, repeated."""

  kind: str
  values: tuple[str, ...]

  @property
  def attribute(self) -> str:
    """The attribute that this behaviour changes."""
    return config_lib.ATTRIBUTE[self.kind]

  def value(self, cell: int) -> str:
    """The attribute's value in a cell."""
    return self.values[cell % len(self.values)]

  def blend(self, phase: float) -> float:
    """How far the object has changed towards the next cell's state, in [0, 1].

    phase: position within this cell, in [0, 1).

    Of places, sizes, boxes, covers and charges; other attributes jump at the start of a cell. A
    bouncing object moves all the time at constant speed. A peeking object changes at once. All
    others rest, then glide.
    """
    if self.kind == "bounce":
      return phase
    if self.kind == "peek":
      return 0.0
    late = max(0.0, (phase - 1 + _GLIDE) / _GLIDE)
    return late * late * (3 - 2 * late)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Object:
  """An object: its shape, its initial colour, place and size, and the behaviours that change them.

  slot: which quarter of the box it uses; None for the whole box.
  """

  shape: str
  colour: str
  place: str
  size: str
  behaviours: tuple[Behaviour, ...] = ()
  slot: int | None = None

  def behaviour(self, attribute: str) -> Behaviour | None:
    """The behaviour that changes an attribute, if any."""
    return next(
      (behaviour for behaviour in self.behaviours if behaviour.attribute == attribute), None
    )

  @property
  def displayed(self) -> tuple[str, ...]:
    """The attributes that the object's display shows."""
    return tuple(
      behaviour.attribute for behaviour in self.behaviours if behaviour.kind in config_lib.DISPLAYS
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """One simulated video.

  height, width: in pixels.
  seconds, dwell: length of the video and of a cell, in seconds.
  objects: from back to front.
  box: the place of the box, if there is one.
  graded: whether the ground's colour depends on the place.
  """

  height: int
  width: int
  rows: int
  columns: int
  seconds: float
  fps: int
  dwell: float
  objects: tuple[Object, ...]
  box: str | None = None
  graded: bool = False

  @property
  def cells(self) -> int:
    """Number of cells in the whole video."""
    return round(self.seconds / self.dwell)

  @property
  def frames(self) -> int:
    """Number of frames in the whole video."""
    return round(self.seconds * self.fps)

  def attributes(self, thing: Object) -> tuple[str, ...]:
    """The attributes of an object. Only scenes with a box have the attribute "box"."""
    box = ("box",) if self.box else ()
    return ("colour", "place", "size", "visibility", *box, *thing.displayed)

  def object(self, shape: str) -> Object:
    """The object with this shape. Shapes are distinct within a scene."""
    return next(thing for thing in self.objects if thing.shape == shape)

  def script(self, shape: str, attribute: str) -> tuple[str, ...]:
    """The values that a changing attribute of an object takes, one a cell, until they repeat.

    Raises ValueError if the attribute does not change.
    """
    behaviour = self.object(shape).behaviour(attribute)
    if behaviour is None:
      raise ValueError(f"{attribute} of {shape} does not change")
    return behaviour.values

  def value(self, thing: Object, attribute: str, cell: int) -> str:
    """The value of an object's attribute in a cell."""
    behaviour = thing.behaviour(attribute)
    if behaviour is not None:
      return behaviour.value(cell)
    if attribute == "visibility":
      return "visible"
    if attribute == "box":
      return "outside"
    if attribute == "place" and thing.behaviour("box") is not None and self.box is not None:
      return self.box if self.value(thing, "box", cell) == "inside" else thing.place
    return getattr(thing, attribute)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
  """How an object looks at an instant.

  x, y, diameter: in pixels.
  covered: fraction of the object behind its cover, from the bottom up.
  label: the number on its display; "" for none.
  charge: the bar on its display, in percent; None for none.
  lit: whether the lamp around it is lit.
  """

  x: float
  y: float
  diameter: float
  colour: str
  covered: float
  label: str = ""
  charge: float | None = None
  lit: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Role:
  """What is drawn first of an object: its shape, and the kinds of its behaviours."""

  shape: str
  kinds: tuple[str, ...]


def pose(scene: Scene, thing: Object, time: float) -> Pose:
  """Computes how an object looks at a time in seconds.

  Positions and sizes are continuous in time, and exact at the start of a cell.
  """
  # Rounding must not put a frame at a cell's start into the cell before.
  position = time / scene.dwell + 1e-9
  cell = int(position)
  phase = max(0.0, position - cell - 1e-9)

  def interpolate(attribute, measure):
    behaviour = thing.behaviour(attribute)
    fraction = behaviour.blend(phase) if behaviour is not None else 0.0
    now = measure(cell)
    return now if fraction == 0 else now + fraction * (measure(cell + 1) - now)

  moving_attribute = "box" if thing.behaviour("box") is not None else "place"
  spot = interpolate(moving_attribute, lambda at: _spot(scene, thing, at))
  diameter = interpolate("size", lambda at: _DIAMETER[scene.value(thing, "size", at)])
  covered = interpolate(
    "visibility", lambda at: float(scene.value(thing, "visibility", at) == "hidden")
  )
  return Pose(
    x=float(spot[0]),
    y=float(spot[1]),
    diameter=float(diameter * zone_side(scene)),
    colour=scene.value(thing, "colour", cell),
    covered=float(covered),
    label=scene.value(thing, "label", cell) if thing.behaviour("label") else "",
    charge=float(interpolate("charge", lambda at: float(scene.value(thing, "charge", at))))
    if thing.behaviour("charge")
    else None,
    lit=_is_lit(thing, cell),
  )


def zone_side(scene: Scene) -> float:
  """Side of the largest square that fits into a zone, in pixels."""
  return min(scene.height / scene.rows, scene.width / scene.columns)


def beyond(place: str) -> str:
  """The place outside of the picture at the height of a zone, on the side that is nearer to it."""
  return f"{_BEYOND}{place}"


def zone_centre(scene: Scene, place: str) -> Float[np.ndarray, "2"]:
  """Centre (x, y) of a zone, or of the place `beyond` it, in pixels."""
  index = config_lib.place_names(scene.rows, scene.columns).index(place.removeprefix(_BEYOND))
  row, column = divmod(index, scene.columns)
  if place.startswith(_BEYOND):
    column = -1 if column < scene.columns / 2 else scene.columns
  return np.array(
    [(column + 0.5) * scene.width / scene.columns, (row + 0.5) * scene.height / scene.rows]
  )


def _is_lit(thing: Object, cell: int) -> bool:
  """Whether the lamp around an object is lit: when it peeks, and just before and after."""
  behaviour = thing.behaviour("visibility")
  if behaviour is None or behaviour.kind != "peek":
    return False
  return abs(behaviour.values.index("visible") - cell) <= config_lib.LAMP_MARGIN


def _spot(scene: Scene, thing: Object, cell: int) -> Float[np.ndarray, "2"]:
  """Where an object rests in a cell, (x, y) in pixels: in its zone or its quarter of the box."""
  centre = zone_centre(scene, scene.value(thing, "place", cell))
  if thing.displayed:
    return centre - np.array([0, _LIFT * zone_side(scene)])
  if thing.slot is None or scene.value(thing, "box", cell) == "outside":
    return centre
  row, column = divmod(thing.slot, 2)
  return centre + _SLOT * zone_side(scene) * np.array([2 * column - 1, 2 * row - 1])


def sample_roles(rng: np.random.Generator, config: config_lib.WorldConfig) -> tuple[Role, ...]:
  """Samples shapes and kinds of behaviours.

  Objects share one or two kinds of behaviours, so that scenes differ from each other; each may have
  another kind beside.

  Raises errors.InputError if the canvas has too few places for any roles of this config.
  """
  for _ in range(_MAX_DRAWS):
    count = int(rng.integers(config.objects_min, config.objects_max + 1))
    shapes = rng.choice(config.shapes, count, replace=False)
    kinds = rng.choice(
      config.behaviours, min(int(rng.integers(1, 3)), len(config.behaviours)), replace=False
    )
    roles = tuple(
      Role(shape=str(shape), kinds=_sample_kinds(rng, config, str(rng.choice(kinds))))
      for shape in shapes
    )
    if _fit(roles, config):
      return roles
  raise _no_room(config)


def _no_room(config: config_lib.WorldConfig) -> errors.InputError:
  return errors.InputError(
    f"worlds.objects_min: {config.objects_min} objects with these behaviours don't fit on "
    f"{config.rows} x {config.columns} places, or more than {_MAX_BOXED} in the box; lower it, or "
    "add rows, columns or behaviours"
  )


def sample_scene(
  rng: np.random.Generator,
  config: config_lib.WorldConfig,
  roles: Sequence[Role] | None = None,
) -> Scene:
  """Samples a scene for roles (new ones if None). Outside of the box, objects share no place.

  Raises errors.InputError if these roles don't fit on the canvas or into the box.
  """
  roles = sample_roles(rng, config) if roles is None else roles
  if not _fit(roles, config):
    raise _no_room(config)
  free = [str(place) for place in rng.permutation(config.places)]
  boxed = [role for role in roles if "box" in role.kinds]
  box = free.pop() if boxed else None
  slots = {role.shape: index for index, role in enumerate(boxed)} if len(boxed) > 1 else {}
  objects = tuple(_sample_object(rng, config, role, free, slots.get(role.shape)) for role in roles)
  return Scene(
    height=config.height,
    width=config.width,
    rows=config.rows,
    columns=config.columns,
    seconds=config.seconds,
    fps=config.fps,
    dwell=config.dwell,
    objects=objects,
    box=box,
    graded=config.graded,
  )


def two_valued_patterns(values: Sequence[str], period: int) -> tuple[tuple[str, ...], ...]:
  """Every script of a period in which one value holds in one cell and the other in all others."""
  first, second = values
  scripts = [(first,) * (period - 1) + (second,), (second,) * (period - 1) + (first,)]
  return tuple(script[start:] + script[:start] for script in scripts for start in range(period))


def _sample_kinds(
  rng: np.random.Generator, config: config_lib.WorldConfig, kind: str
) -> tuple[str, ...]:
  """Returns the kind and, if objects may have two behaviours, perhaps a second one that fits it."""
  partners = {
    "cycle": ("move", "bounce", "grow", "box"),
    "grow": ("move", "bounce", "cycle"),
    "move": ("cycle", "grow"),
    "bounce": ("cycle", "grow"),
    "box": ("cycle",),
  }
  candidates = [other for other in partners.get(kind, ()) if other in config.behaviours]
  if config.behaviours_per_object == 1 or not candidates or rng.random() < 0.5:
    return (kind,)
  return (kind, str(rng.choice(candidates)))


def _fit(roles: Sequence[Role], config: config_lib.WorldConfig) -> bool:
  """Whether there are places for all objects, whatever is drawn, and quarters for those boxed."""
  needs = {"move": max(config.periods), "bounce": 2}
  places = sum(max(needs.get(kind, 1) for kind in role.kinds) for role in roles)
  boxed = sum("box" in role.kinds for role in roles)
  return places + bool(boxed) <= len(config.places) and boxed <= _MAX_BOXED


def _sample_object(
  rng: np.random.Generator,
  config: config_lib.WorldConfig,
  role: Role,
  free: list[str],
  slot: int | None,
) -> Object:
  """Samples an object with a role. Removes its places from `free`."""
  kinds = [kind for kind in role.kinds if kind != "still"]
  behaviours = tuple(_sample_behaviour(rng, config, kind, free) for kind in kinds)
  initial = {behaviour.attribute: behaviour.values[0] for behaviour in behaviours}
  must_be_small = {"box", "label", "charge"} & set(initial)
  size = "small" if must_be_small else str(rng.choice(config_lib.SIZES))
  return Object(
    shape=role.shape,
    colour=initial.get("colour") or str(rng.choice(config.colours)),
    place=initial["place"] if "place" in initial else free.pop(),
    size=initial.get("size", size),
    behaviours=behaviours,
    slot=slot,
  )


def _sample_behaviour(
  rng: np.random.Generator, config: config_lib.WorldConfig, kind: str, free: list[str]
) -> Behaviour:
  """Samples a behaviour of a kind. Removes its places from `free`.

  A period is drawn for every kind, also for grow, bounce, flicker and peek, which have a length of
  their own: without it, the seeds of worlds that exist would give other scenes.
  """
  period = int(rng.choice(config.periods))
  if kind in ("cycle", *config_lib.DISPLAYS):
    pool = config.values(config_lib.ATTRIBUTE[kind])
    values = tuple(str(value) for value in rng.choice(pool, period, replace=False))
  elif kind in ("move", "bounce"):
    values = tuple(free.pop() for _ in range(2 if kind == "bounce" else period))
  elif kind == "grow":
    first = int(rng.integers(len(config_lib.SIZES)))
    values = config_lib.SIZES[first:] + config_lib.SIZES[:first]
  elif kind == "flicker":
    values = tuple(str(value) for value in rng.choice(config.colours, config.cells))
  elif kind == "peek":
    margin = config_lib.LAMP_MARGIN
    visible_cell = int(rng.integers(margin, config.cells - margin))
    values = tuple("visible" if cell == visible_cell else "hidden" for cell in range(config.cells))
  elif kind in ("box", "hide"):
    pool = config_lib.BOX if kind == "box" else config_lib.VISIBILITY
    patterns = two_valued_patterns(pool, period)
    values = patterns[int(rng.integers(len(patterns)))]
  else:
    raise ValueError(f"unknown kind of behaviour {kind!r}")
  return Behaviour(kind=kind, values=values)
