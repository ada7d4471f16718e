"""What a simulated world may hold: one frozen dataclass, checked when it is made."""

import dataclasses

from vr_jax import errors

LIVES = ("still", "move", "bounce", "cycle", "grow", "box", "hide")
# Lives of a display below the object: a world has them only where it names them.
DISPLAYS = ("count", "charge")
# Lives of what is searched for: nothing repeats, so that only a look at the right time tells. A world of these shows all of
# its video, and has none of the others but still objects.
#   flicker  another colour in each cell, or the same again
#   peek     covered but for one cell; a lamp is lit around the object in that cell and GLOW cells before and after
SOUGHT = ("flicker", "peek")
GLOW = 1
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "cyan")
SIZES = ("small", "medium", "large")
VISIBILITY = ("visible", "hidden")
BOX = ("inside", "outside")
# In percent. Each is twice the one before, so that no constant answer comes near most of them (a share of the right
# value is what counts): the best one earns 0.39 of a regression reward.
CHARGES = ("6.25", "12.5", "25", "50", "100")
FAMILIES = ("choice", "name", "look", "visits", "changes", "occupancy")
READINGS = ("read", "measure")  # families of displays
SEARCHES = ("moment", "lamp")  # families of what is searched for
WORDINGS = 4
_LONGEST_PERIOD = 4

# The attribute that each life changes; a still object changes none.
ATTRIBUTE = {
  "move": "place",
  "bounce": "place",
  "cycle": "colour",
  "grow": "size",
  "box": "box",
  "hide": "visibility",
  "count": "label",
  "charge": "charge",
  "flicker": "colour",
  "peek": "visibility",
}

# At least one of these lives must be allowed for a question family to be askable.
FAMILY_LIVES = {
  "choice": (*LIVES[1:], *DISPLAYS),
  "name": LIVES[1:],
  "look": ("cycle", "grow"),
  "visits": ("cycle", "move"),
  "changes": ("box", "hide"),
  "occupancy": ("box",),
  "read": ("count",),
  "measure": ("charge",),
  "moment": ("flicker",),
  "lamp": ("peek",),
}

_ROWS = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COLUMNS = {2: ("left", "right"), 3: ("left", "centre", "right")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
  """The law that scenes and questions are drawn from.

  Time runs in cells of `dwell` seconds: what is discrete (colour, place, size, …) changes at the start of a cell. A
  life repeats after one of `periods` cells, so a shown span longer than a period tells the future. (But those of SOUGHT.)

  Raises errors.InputError naming the field where a value is impossible or fields contradict each other.
  """

  height: int = 224  # pixels, even (yuv420p)
  width: int = 224
  rows: int = 3  # places of the canvas: rows x columns zones, 2 or 3 of each
  columns: int = 3
  seconds: float = 10.0
  fps: int = 8
  dwell: float = 2.0  # seconds between two changes
  shown: float = (
    8.0  # seconds from the start that the model may see; the rest is masked. Of SOUGHT: all
  )
  objects_min: int = 1
  objects_max: int = 3
  lives: tuple[str, ...] = LIVES
  lives_per_object: int = 1  # 2: an object may change colour while it moves
  periods: tuple[int, ...] = (2, 3)  # cells after which a life repeats
  shapes: tuple[str, ...] = SHAPES
  colours: tuple[str, ...] = COLOURS[:6]
  digits: int = 2  # of the largest label that an object counts through
  families: tuple[str, ...] = FAMILIES
  options_in_order: bool = False  # of a multiple choice, as the values are listed; else shuffled
  wordings: int = WORDINGS  # how many of the wordings of questions and steps are in use

  def __post_init__(self):
    """Checks the fields, each alone and then together."""
    self._check_names()
    self._check_numbers()
    self._check_time()
    self._check_families()

  @property
  def cells(self) -> int:
    """Cells of the whole video."""
    return round(self.seconds / self.dwell)

  @property
  def shown_cells(self) -> int:
    """Cells that the model may see."""
    return round(self.shown / self.dwell)

  @property
  def searched(self) -> bool:
    """Whether questions are about what is shown for a while, and not about a masked future."""
    return bool(set(self.lives) & set(SOUGHT))

  @property
  def places(self) -> tuple[str, ...]:
    """Names of the zones, row by row."""
    return place_names(self.rows, self.columns)

  def values(self, attribute: str) -> tuple[str, ...]:
    """Every value that an attribute can take in this world."""
    pools = {
      "colour": self.colours,
      "place": self.places,
      "size": SIZES,
      "visibility": VISIBILITY,
      "box": BOX,
      "label": tuple(str(number) for number in range(10**self.digits)),
      "charge": CHARGES,
    }
    return pools[attribute]

  def _check_names(self):
    known = {
      "lives": LIVES + DISPLAYS + SOUGHT,
      "shapes": SHAPES,
      "colours": COLOURS,
      "families": FAMILIES + READINGS + SEARCHES,
    }
    for field, names in known.items():
      given = getattr(self, field)
      wrong = [name for name in given if name not in names]
      if wrong:
        raise _bad(field, f"{wrong[0]!r} is unknown; choose from {', '.join(names)}")
      if not given or len(set(given)) < len(given):
        raise _bad(field, "is empty or names one thing twice")

  def _check_numbers(self):
    for field in ("height", "width"):
      value = getattr(self, field)
      if value < 32 or value % 2:
        raise _bad(field, f"{value} must be an even number of pixels, 32 or more")
    for field in ("rows", "columns"):
      if getattr(self, field) not in (2, 3):
        raise _bad(field, f"{getattr(self, field)} must be 2 or 3")
    if not 1 <= self.objects_min <= self.objects_max:
      raise _bad("objects_min", f"{self.objects_min} must lie in 1..objects_max")
    if self.objects_max > 4:
      raise _bad("objects_max", f"{self.objects_max} objects: the box holds 4 at most")
    if self.objects_max > len(self.shapes):
      raise _bad("objects_max", f"{self.objects_max} objects need as many distinct shapes")
    if len(self.colours) < 4:
      raise _bad("colours", "a multiple choice needs at least 4 colours")
    if self.lives_per_object not in (1, 2):
      raise _bad("lives_per_object", f"{self.lives_per_object} must be 1 or 2")
    if self.digits not in (1, 2):
      raise _bad("digits", f"{self.digits} must be 1 or 2")
    if not 1 <= self.wordings <= WORDINGS:
      raise _bad("wordings", f"{self.wordings} must lie in 1..{WORDINGS}")
    if not self.periods or min(self.periods) < 2 or max(self.periods) > _LONGEST_PERIOD:
      raise _bad("periods", f"{self.periods} must lie in 2..{_LONGEST_PERIOD}")

  def _check_time(self):
    if self.dwell <= 0 or self.fps < 1 or (self.fps * self.dwell) % 1:
      raise _bad("dwell", f"{self.dwell} s must be positive and a whole number of frames")
    for field in ("seconds", "shown"):
      if getattr(self, field) / self.dwell % 1:
        raise _bad(field, f"{getattr(self, field)} s must be a multiple of dwell, {self.dwell} s")
    if self.searched:
      self._check_search()
      return
    if not 0 < self.shown < self.seconds:
      raise _bad("shown", f"{self.shown} s must be positive and less than seconds, {self.seconds}")
    # A period is certain once it was seen to repeat. Two-valued lives need a little more: by Fine and Wilf, periods p
    # and p - 1 can't both fit a sequence of 2p - 2 cells unless it is constant.
    longest = max(3 if "grow" in self.lives else 2, *self.periods)
    needed = max(longest + 1, 2 * max(self.periods) - 2)
    if self.shown_cells < needed:
      raise _bad("shown", f"{self.shown} s hides the future: these periods need {needed} cells")

  def _check_search(self):
    if not set(self.lives) <= {"still", *SOUGHT}:
      raise _bad("lives", f"{' and '.join(SOUGHT)} go with no life that repeats")
    if self.shown != self.seconds:
      raise _bad("shown", f"{self.shown} s must be all of seconds where lives are searched for")
    if self.cells < 2 * GLOW + 1:
      raise _bad("seconds", f"{self.seconds} s are fewer than the {2 * GLOW + 1} cells of a search")

  def _check_families(self):
    for family in self.families:
      needed = FAMILY_LIVES[family]
      if not set(needed) & set(self.lives):
        raise _bad("families", f"{family!r} needs one of the lives {', '.join(needed)}")
    if "changes" in self.families and len(self.periods) == 1 and self.periods[0] == 2:
      raise _bad("families", "'changes' has one answer only where every period is 2; add a period")
    if "occupancy" in self.families and self.objects_max < 2:
      raise _bad("families", "'occupancy' needs objects_max of 2 or more")


def longest_period(shown_cells: int) -> int:
  """The longest period, in cells, that a world with so many shown cells may have."""
  return min(shown_cells // 2 + 1, _LONGEST_PERIOD)


def place_names(rows: int, columns: int) -> tuple[str, ...]:
  """Names of the zones of a canvas, row by row; the middle one of 3 x 3 is "centre"."""
  names = [f"{row} {column}" for row in _ROWS[rows] for column in _COLUMNS[columns]]
  return tuple("centre" if name == "middle centre" else name for name in names)


def _bad(field: str, problem: str) -> errors.InputError:
  return errors.InputError(f"worlds.{field}: {problem}")
