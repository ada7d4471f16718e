"""Physics: objects whose lives are pure functions of time, and the law that draws them.

Nothing here knows about questions. The draw is made in two parts: a cast (how many objects, which shapes, which lives) and
the details (colours, places, periods, phases). Given the cast, the details are symmetric: permuting the colours, or the
places, or shifting a phase, leaves their law as it is. That is what keeps answers from being guessable. What flickers has a
colour in each cell that no other cell tells of.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float
import numpy as np

from vr_jax import errors
from vr_jax.worlds import config as config_lib

_GLIDE = (
  0.25  # the last share of a cell in which a moving or growing object goes over to the next state
)
_DIAMETER = {"small": 0.36, "medium": 0.58, "large": 0.82}  # shares of a zone's side
_SLOT = 0.21  # from the box's centre to that of a quarter, as a share of a zone's side
_LIFT = 0.24  # of an object above its display, likewise
_TRIES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Life:
  """One attribute's script: it holds values[0] for a cell, then values[1], …, and starts again."""

  kind: str
  values: tuple[str, ...]

  @property
  def attribute(self) -> str:
    """The attribute that this life changes."""
    return config_lib.ATTRIBUTE[self.kind]

  def value(self, cell: int) -> str:
    """What holds in a cell."""
    return self.values[cell % len(self.values)]

  def blend(self, phase: float) -> float:
    """How far the object has gone over to the next cell's state, at `phase` in [0, 1) of this cell.

    A bouncing object travels all the time, at constant speed; one that peeks is covered or not; the others rest, then glide.
    """
    if self.kind == "bounce":
      return phase
    if self.kind == "peek":
      return 0.0
    late = max(0.0, (phase - 1 + _GLIDE) / _GLIDE)
    return late * late * (3 - 2 * late)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Object:
  """A shape with what stays (colour, place, size where no life changes them) and the lives that change the rest."""

  shape: str
  colour: str
  place: str
  size: str
  lives: tuple[Life, ...] = ()
  slot: int | None = None  # which quarter of the box it takes; None: all of it

  def life(self, attribute: str) -> Life | None:
    """The life that changes an attribute, if any."""
    return next((life for life in self.lives if life.attribute == attribute), None)

  @property
  def displayed(self) -> tuple[str, ...]:
    """The attributes that the object has on a display."""
    return tuple(life.attribute for life in self.lives if life.kind in config_lib.DISPLAYS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """One simulated video: canvas in pixels, time in seconds, objects from back to front, the box's place if it has one."""

  height: int
  width: int
  rows: int
  columns: int
  seconds: float
  fps: int
  dwell: float
  objects: tuple[Object, ...]
  box: str | None = None

  @property
  def cells(self) -> int:
    """Cells of the whole video."""
    return round(self.seconds / self.dwell)

  @property
  def frames(self) -> int:
    """Frames of the whole video."""
    return round(self.seconds * self.fps)

  def attributes(self, thing: Object) -> tuple[str, ...]:
    """Attributes that have a value of an object; nothing is inside or outside a box that isn't there."""
    boxed = ("box",) if self.box else ()
    return ("colour", "place", "size", "visibility", *boxed, *thing.displayed)

  def object(self, shape: str) -> Object:
    """The object of a shape; shapes are distinct within a scene."""
    return next(thing for thing in self.objects if thing.shape == shape)

  def value(self, thing: Object, attribute: str, cell: int) -> str:
    """What is true of an object's attribute in a cell."""
    life = thing.life(attribute)
    if life is not None:
      return life.value(cell)
    if attribute == "visibility":
      return "visible"
    if attribute == "box":
      return "outside"
    if attribute == "place" and thing.life("box") is not None:
      return self.box if self.value(thing, "box", cell) == "inside" else thing.place
    return getattr(thing, attribute)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
  """How an object looks at an instant. Lengths in pixels."""

  x: float
  y: float
  diameter: float
  colour: str
  covered: float  # share of it behind its cover, from the bottom up
  label: str = ""  # on its display
  charge: float | None = None  # of the bar on its display, in percent
  lit: bool = False  # whether a lamp is lit around it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Role:
  """One member of a cast: a shape and the kinds of its lives."""

  shape: str
  kinds: tuple[str, ...]


def pose(scene: Scene, thing: Object, time: float) -> Pose:
  """How an object looks at a time in seconds: continuous, and at the start of a cell exactly that cell's state."""
  # A frame at a cell's start must not fall into the cell before by rounding.
  position = time / scene.dwell + 1e-9
  cell = int(position)
  phase = max(0.0, position - cell - 1e-9)

  def blended(attribute, measure):
    life = thing.life(attribute)
    share = life.blend(phase) if life is not None else 0.0
    now = measure(cell)
    return now if share == 0 else now + share * (measure(cell + 1) - now)

  mover = "box" if thing.life("box") is not None else "place"
  spot = blended(mover, lambda at: _spot(scene, thing, at))
  diameter = blended("size", lambda at: _DIAMETER[scene.value(thing, "size", at)])
  covered = blended(
    "visibility", lambda at: float(scene.value(thing, "visibility", at) == "hidden")
  )
  return Pose(
    x=float(spot[0]),
    y=float(spot[1]),
    diameter=float(diameter * zone_side(scene)),
    colour=scene.value(thing, "colour", cell),
    covered=float(covered),
    label=scene.value(thing, "label", cell) if thing.life("label") else "",
    charge=float(blended("charge", lambda at: float(scene.value(thing, "charge", at))))
    if thing.life("charge")
    else None,
    lit=_lit(thing, cell),
  )


def zone_side(scene: Scene) -> float:
  """Side in pixels of the largest square that fits every zone."""
  return min(scene.height / scene.rows, scene.width / scene.columns)


def zone_centre(scene: Scene, place: str) -> Float[np.ndarray, "2"]:
  """Centre (x, y) in pixels of a named zone."""
  index = config_lib.place_names(scene.rows, scene.columns).index(place)
  row, column = divmod(index, scene.columns)
  return np.array(
    [(column + 0.5) * scene.width / scene.columns, (row + 0.5) * scene.height / scene.rows]
  )


def _lit(thing: Object, cell: int) -> bool:
  """Whether the lamp around an object is lit: one that peeks shows in this cell, or does soon, or did just now."""
  life = thing.life("visibility")
  if life is None or life.kind != "peek":
    return False
  return abs(life.values.index("visible") - cell) <= config_lib.GLOW


def _spot(scene: Scene, thing: Object, cell: int) -> Float[np.ndarray, "2"]:
  """Where an object rests in a cell: the centre of its zone, or its quarter of the box."""
  centre = zone_centre(scene, scene.value(thing, "place", cell))
  if thing.displayed:
    return centre - np.array([0, _LIFT * zone_side(scene)])
  if thing.slot is None or scene.value(thing, "box", cell) == "outside":
    return centre
  row, column = divmod(thing.slot, 2)
  return centre + _SLOT * zone_side(scene) * np.array([2 * column - 1, 2 * row - 1])


def sample_cast(rng: np.random.Generator, config: config_lib.WorldConfig) -> tuple[Role, ...]:
  """Shapes and kinds of lives. The scene draws on one or two kinds, so that scenes differ and some have a theme.

  Raises errors.InputError where the canvas has too few places for any cast of this config.
  """
  for _ in range(_TRIES):
    count = int(rng.integers(config.objects_min, config.objects_max + 1))
    shapes = rng.choice(config.shapes, count, replace=False)
    repertoire = rng.choice(
      config.lives, min(int(rng.integers(1, 3)), len(config.lives)), replace=False
    )
    cast = tuple(
      Role(shape=str(shape), kinds=_sample_kinds(rng, config, str(rng.choice(repertoire))))
      for shape in shapes
    )
    if _places_needed(cast, config) <= len(config.places):
      return cast
  raise errors.InputError(
    f"worlds.objects_min: {config.objects_min} objects with these lives don't fit on "
    f"{config.rows} x {config.columns} places; lower it, or add rows or columns"
  )


def sample_scene(
  rng: np.random.Generator,
  config: config_lib.WorldConfig,
  cast: Sequence[Role] | None = None,
) -> Scene:
  """A scene of a cast (drawn here where none is given). No two objects ever rest in the same place."""
  cast = sample_cast(rng, config) if cast is None else cast
  free = [str(place) for place in rng.permutation(config.places)]
  boxed = [role for role in cast if "box" in role.kinds]
  box = free.pop() if boxed else None
  slots = {role.shape: index for index, role in enumerate(boxed)} if len(boxed) > 1 else {}
  objects = tuple(_sample_object(rng, config, role, free, slots.get(role.shape)) for role in cast)
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
  )


def two_valued_patterns(values: Sequence[str], period: int) -> tuple[tuple[str, ...], ...]:
  """Every script of a period in which one of two values holds for one cell and the other for the rest."""
  first, second = values
  scripts = [(first,) * (period - 1) + (second,), (second,) * (period - 1) + (first,)]
  return tuple(script[turn:] + script[:turn] for script in scripts for turn in range(period))


def _sample_kinds(
  rng: np.random.Generator, config: config_lib.WorldConfig, kind: str
) -> tuple[str, ...]:
  """The kind, and with two lives to an object perhaps one more that can be seen at the same time."""
  partners = {
    "cycle": ("move", "bounce", "grow", "box"),
    "grow": ("move", "bounce", "cycle"),
    "move": ("cycle", "grow"),
    "bounce": ("cycle", "grow"),
    "box": ("cycle",),
  }
  able = [other for other in partners.get(kind, ()) if other in config.lives]
  if config.lives_per_object == 1 or not able or rng.random() < 0.5:
    return (kind,)
  return (kind, str(rng.choice(able)))


def _places_needed(cast: Sequence[Role], config: config_lib.WorldConfig) -> int:
  """Places that a cast takes at most; each object has its own, so that resting objects never overlap."""
  needs = {"move": max(config.periods), "bounce": 2}
  own = sum(max(needs.get(kind, 1) for kind in role.kinds) for role in cast)
  return own + any("box" in role.kinds for role in cast)


def _sample_object(
  rng: np.random.Generator,
  config: config_lib.WorldConfig,
  role: Role,
  free: list[str],
  slot: int | None,
) -> Object:
  """One object of a cast; takes its places from `free`."""
  kinds = [kind for kind in role.kinds if kind != "still"]
  lives = tuple(_sample_life(rng, config, kind, free) for kind in kinds)
  script = {life.attribute: life.values[0] for life in lives}
  cramped = {"box", "label", "charge"} & set(script)
  size = "small" if cramped else str(rng.choice(config_lib.SIZES))
  return Object(
    shape=role.shape,
    colour=script.get("colour") or str(rng.choice(config.colours)),
    place=script["place"] if "place" in script else free.pop(),
    size=script.get("size", size),
    lives=lives,
    slot=slot,
  )


def _sample_life(
  rng: np.random.Generator, config: config_lib.WorldConfig, kind: str, free: list[str]
) -> Life:
  """A script of a kind, its period and phase drawn; a moving one takes its places from `free`."""
  period = int(rng.choice(config.periods))
  if kind in ("cycle", *config_lib.DISPLAYS):
    pool = config.values(config_lib.ATTRIBUTE[kind])
    values = tuple(str(value) for value in rng.choice(pool, period, replace=False))
  elif kind in ("move", "bounce"):
    values = tuple(free.pop() for _ in range(2 if kind == "bounce" else period))
  elif kind == "grow":
    turn = int(rng.integers(len(config_lib.SIZES)))
    values = config_lib.SIZES[turn:] + config_lib.SIZES[:turn]
  elif kind == "flicker":
    values = tuple(str(value) for value in rng.choice(config.colours, config.cells))
  elif kind == "peek":
    shows = int(rng.integers(config_lib.GLOW, config.cells - config_lib.GLOW))
    values = tuple("visible" if cell == shows else "hidden" for cell in range(config.cells))
  else:
    pool = config_lib.BOX if kind == "box" else config_lib.VISIBILITY
    patterns = two_valued_patterns(pool, period)
    values = patterns[int(rng.integers(len(patterns)))]
  return Life(kind=kind, values=values)
