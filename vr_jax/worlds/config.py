"""The settings of a simulated world: one frozen dataclass that checks itself when it is made.

A `behaviour` is the way in which one attribute of an object changes over time. A question `family`
is a kind of question.
"""

import dataclasses

from vr_jax import errors

BEHAVIOURS = ("still", "move", "bounce", "cycle", "grow", "box", "hide")
# Behaviours of a display below the object. A world has them only if its config names them.
DISPLAYS = ("count", "charge")
# Behaviours for search questions. Nothing repeats, so only a look at the right time gives the
# answer. A world with these shows its whole video and allows no other behaviour but "still".
#   flicker  a colour drawn anew for each cell
#   peek     covered in all cells but one; a lamp around the object is lit in that cell and
#            LAMP_MARGIN cells before and after
SEARCH_BEHAVIOURS = ("flicker", "peek")
LAMP_MARGIN = 1
# The behaviour for queries about where an object is (tracks.py): tiny, and in the colour that all
# share, but for a few cells in which the object is large and in its own colour. Nothing repeats,
# the whole video is shown, and there is no other behaviour.
TRACK_BEHAVIOURS = ("approach",)
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "cyan")
SIZES = ("small", "medium", "large")  # "tiny", too, with TRACK_BEHAVIOURS
VISIBILITY = ("visible", "hidden")
BOX = ("inside", "outside")
# In percent. Each is twice the one before. The regression reward depends on the relative error, so
# no constant answer is close to most of them: the best constant earns 0.39 of the reward.
CHARGES = ("6.25", "12.5", "25", "50", "100")
FAMILIES = ("choice", "name", "look", "visits", "changes", "occupancy")
DISPLAY_FAMILIES = ("read", "measure")
SEARCH_FAMILIES = ("moment", "lamp")
TRACK_FAMILIES = ("described", "recoloured", "returned", "covered", "stayed", "absent")
WORDINGS = 4  # used by default
MOST_WORDINGS = 8  # that exist: the further ones also have other words for shapes, sizes, …
_LONGEST_PERIOD = 4
MOST_TELLINGS = 4  # all are in the part of a cell in which objects rest

# The attribute that each behaviour changes; a still object changes none.
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

# A question family needs at least one of these behaviours.
FAMILY_BEHAVIOURS = {
  "choice": (*BEHAVIOURS[1:], *DISPLAYS),
  "name": BEHAVIOURS[1:],
  "look": ("cycle", "grow"),
  "visits": ("cycle", "move"),
  "changes": ("box", "hide"),
  "occupancy": ("box",),
  "read": ("count",),
  "measure": ("charge",),
  "moment": ("flicker",),
  "lamp": ("peek",),
  **dict.fromkeys(TRACK_FAMILIES, TRACK_BEHAVIOURS),
}

_ROWS = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COLUMNS = {2: ("left", "right"), 3: ("left", "centre", "right")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
  """The distribution that scenes and questions are drawn from.

  Time is divided into cells of `dwell` seconds. Discrete attributes (colour, place, size, …)
  change at the start of a cell. A behaviour repeats after one of `periods` cells, so whoever sees
  more than a period can tell the future. SEARCH_BEHAVIOURS are the exception: they never repeat.

  Raises errors.InputError, naming the field, if a value is impossible or fields contradict.
  """

  height: int = 224  # pixels, even (yuv420p)
  width: int = 224
  rows: int = 3  # the canvas has rows x columns zones, each a place; 2 or 3 of each
  columns: int = 3
  seconds: float = 10.0
  fps: int = 8
  dwell: float = 2.0  # seconds between two changes
  # Seconds from the start that the model may see; the rest is masked. With SEARCH_BEHAVIOURS: all.
  shown: float = 8.0
  objects_min: int = 1
  objects_max: int = 3
  behaviours: tuple[str, ...] = BEHAVIOURS
  behaviours_per_object: int = 1  # 2: an object may change colour while it moves
  periods: tuple[int, ...] = (2, 3)  # cells after which a behaviour repeats
  shapes: tuple[str, ...] = SHAPES
  colours: tuple[str, ...] = COLOURS[:6]
  digits: int = 2  # digits of the largest label on a counting display
  families: tuple[str, ...] = FAMILIES
  options_in_order: bool = False  # options in the order of the values above instead of shuffled
  wordings: int = WORDINGS  # how many of the wordings of questions and steps to use, up to 8
  # Reference steps tell each cell 1 to so many times, drawn for each cell, at the start of equal
  # parts of it. So traces differ in length.
  tellings: int = 1
  # With TRACK_BEHAVIOURS: cells in which an object is large and in its own colour.
  large_cells: int = 2
  # Whether the ground gets redder to the right and bluer downwards, so that it tells places apart,
  # as most real scenes do. A network that starts from nothing then learns sooner where things are.
  graded: bool = False

  def __post_init__(self):
    """Checks each field, then that the fields fit together."""
    self._check_names()
    self._check_numbers()
    self._check_time()
    self._check_families()

  @property
  def cells(self) -> int:
    """Number of cells in the whole video."""
    return round(self.seconds / self.dwell)

  @property
  def shown_cells(self) -> int:
    """Number of cells that the model may see."""
    return round(self.shown / self.dwell)

  @property
  def is_search(self) -> bool:
    """Whether questions are about a short moment that is shown, not about a masked future."""
    return bool(set(self.behaviours) & set(SEARCH_BEHAVIOURS))

  @property
  def is_tracking(self) -> bool:
    """Whether queries are about where an object is, with masks as answers."""
    return bool(set(self.behaviours) & set(TRACK_BEHAVIOURS))

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
      "behaviours": BEHAVIOURS + DISPLAYS + SEARCH_BEHAVIOURS + TRACK_BEHAVIOURS,
      "shapes": SHAPES,
      "colours": COLOURS,
      "families": FAMILIES + DISPLAY_FAMILIES + SEARCH_FAMILIES + TRACK_FAMILIES,
    }
    for field, names in known.items():
      values = getattr(self, field)
      unknown = [name for name in values if name not in names]
      if unknown:
        raise _error(field, f"{unknown[0]!r} is unknown; choose from {', '.join(names)}")
      if not values or len(set(values)) < len(values):
        raise _error(field, "is empty or has a value twice")

  def _check_numbers(self):
    for field in ("height", "width"):
      value = getattr(self, field)
      if value < 32 or value % 2:
        raise _error(field, f"{value} must be an even number of pixels, 32 or more")
    for field in ("rows", "columns"):
      if getattr(self, field) not in (2, 3):
        raise _error(field, f"{getattr(self, field)} must be 2 or 3")
    if not 1 <= self.objects_min <= self.objects_max:
      raise _error("objects_min", f"{self.objects_min} must lie in 1..objects_max")
    if self.objects_max > 4:
      raise _error("objects_max", f"{self.objects_max} objects: the box holds 4 at most")
    if self.objects_max > len(self.shapes):
      raise _error("objects_max", f"{self.objects_max} objects need as many distinct shapes")
    if len(self.colours) < 4:
      raise _error("colours", "a multiple choice needs at least 4 colours")
    if self.behaviours_per_object not in (1, 2):
      raise _error("behaviours_per_object", f"{self.behaviours_per_object} must be 1 or 2")
    if self.digits not in (1, 2):
      raise _error("digits", f"{self.digits} must be 1 or 2")
    if not 1 <= self.wordings <= MOST_WORDINGS:
      raise _error("wordings", f"{self.wordings} must lie in 1..{MOST_WORDINGS}")
    if not 1 <= self.tellings <= MOST_TELLINGS:
      raise _error("tellings", f"{self.tellings} must lie in 1..{MOST_TELLINGS}")
    if not self.periods or min(self.periods) < 2 or max(self.periods) > _LONGEST_PERIOD:
      raise _error("periods", f"{self.periods} must lie in 2..{_LONGEST_PERIOD}")

  def _check_time(self):
    if self.dwell <= 0 or self.fps < 1 or (self.fps * self.dwell) % 1:
      raise _error("dwell", f"{self.dwell} s must be positive and a whole number of frames")
    if self.tellings > 1 and "bounce" in self.behaviours:
      raise _error("tellings", "'bounce' never rests, so it can't be told within a cell")
    for count in range(2, self.tellings + 1):
      if self.dwell * 100 % count:
        raise _error("tellings", f"{self.dwell} s in {count} parts are no whole hundredths of 1 s")
    for field in ("seconds", "shown"):
      if getattr(self, field) / self.dwell % 1:
        raise _error(field, f"{getattr(self, field)} s must be a multiple of dwell, {self.dwell} s")
    if self.is_search:
      self._check_search()
      return
    if self.is_tracking:
      self._check_tracking()
      return
    if not 0 < self.shown < self.seconds:
      raise _error("shown", f"{self.shown} s must be positive and below seconds, {self.seconds}")
    # A period is certain once it was seen to repeat. Behaviours with two values need a little more:
    # by the theorem of Fine and Wilf, periods p and p - 1 can't both fit a sequence of 2p - 2 cells
    # unless it is constant.
    longest = max(3 if "grow" in self.behaviours else 2, *self.periods)
    needed = max(longest + 1, 2 * max(self.periods) - 2)
    if self.shown_cells < needed:
      raise _error(
        "shown", f"{self.shown} s is too short to tell the future: periods need {needed} cells"
      )

  def _check_search(self):
    if not set(self.behaviours) <= {"still", *SEARCH_BEHAVIOURS}:
      raise _error(
        "behaviours",
        f"{' and '.join(SEARCH_BEHAVIOURS)} can't be mixed with behaviours that repeat",
      )
    if self.shown != self.seconds:
      raise _error(
        "shown", f"{self.shown} s must equal seconds with {' or '.join(SEARCH_BEHAVIOURS)}"
      )
    if self.cells < 2 * LAMP_MARGIN + 1:
      raise _error(
        "seconds", f"{self.seconds} s are fewer than the {2 * LAMP_MARGIN + 1} cells of a search"
      )

  def _check_tracking(self):
    if set(self.behaviours) != set(TRACK_BEHAVIOURS):
      raise _error(
        "behaviours", f"{' and '.join(TRACK_BEHAVIOURS)} can't be mixed with other behaviours"
      )
    if self.shown != self.seconds:
      raise _error(
        "shown", f"{self.shown} s must equal seconds with {' or '.join(TRACK_BEHAVIOURS)}"
      )
    if not 1 <= self.large_cells < self.cells:
      raise _error("large_cells", f"{self.large_cells} must lie in 1..{self.cells - 1}")
    if self.objects_max > self.cells - self.large_cells:
      raise _error(
        "seconds",
        f"{self.cells} cells are too few for {self.objects_max} objects to approach one by one",
      )
    if self.objects_max + 2 > len(self.colours):
      raise _error("colours", f"{self.objects_max} objects need at least {self.objects_max + 2}")
    needed = 1 if set(self.families) <= {"described", "absent"} else 2
    if self.objects_min < needed:
      raise _error("objects_min", f"{self.objects_min} must be {needed} for these families")
    if self.objects_max > self.rows * self.columns:
      raise _error("objects_max", f"{self.objects_max} objects need a place each")

  def _check_families(self):
    for family in self.families:
      needed = FAMILY_BEHAVIOURS[family]
      if not set(needed) & set(self.behaviours):
        raise _error("families", f"{family!r} needs one of the behaviours {', '.join(needed)}")
    if "changes" in self.families and len(self.periods) == 1 and self.periods[0] == 2:
      raise _error("families", "'changes' has only one answer if every period is 2; add a period")
    if "occupancy" in self.families and self.objects_max < 2:
      raise _error("families", "'occupancy' needs objects_max of 2 or more")


def longest_period(shown_cells: int) -> int:
  """The longest period, in cells, that a world with this number of shown cells may have."""
  return min(shown_cells // 2 + 1, _LONGEST_PERIOD)


def place_names(rows: int, columns: int) -> tuple[str, ...]:
  """Names of the zones of a canvas, row by row. The middle one of 3 x 3 is "centre"."""
  names = [f"{row} {column}" for row in _ROWS[rows] for column in _COLUMNS[columns]]
  return tuple("centre" if name == "middle centre" else name for name in names)


def _error(field: str, problem: str) -> errors.InputError:
  return errors.InputError(f"worlds.{field}: {problem}")
