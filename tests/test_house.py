"""Rules for all sources: which folder may import which, and what no file may contain."""

import ast
import collections
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vr_jax"

# Anyone may stand on these.
GROUND = frozenset(
  (
    *("records", "errors", "atomic", "model_endpoint", "endpoint_response"),
    *("schema", "user_code", "run_length", "frame_times", "process_state", "durations", "goodput"),
    *("plain_json", "inner_path", "json_lines"),
  )
)
ALL_ROOMS = frozenset(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
MAY_USE = {
  "records": frozenset(),
  "errors": frozenset(),
  "atomic": frozenset(),
  "model_endpoint": frozenset(),
  "endpoint_response": frozenset(),
  "schema": frozenset(),
  "user_code": frozenset(),
  "run_length": frozenset(),
  "frame_times": frozenset(),
  "process_state": frozenset(),
  "durations": frozenset(),
  "goodput": frozenset({"durations"}),
  "plain_json": frozenset(),
  "inner_path": frozenset(),
  "json_lines": frozenset(),
  "status": frozenset(),
  "buckets": frozenset(),
  "data_fields": frozenset(),
  "model_fields": frozenset(),
  "output_fields": frozenset({"model_fields"}),
  "config_fields": frozenset({"data_fields", "model_fields", "output_fields"}),
  "optional_sections": frozenset({"config_fields"}),
  "config_docs": frozenset({"config_fields", "optional_sections", "envs"}),
  "recipe_config": frozenset({"envs"}),
  "overrides": frozenset(),
  "worlds": frozenset(),
  "models": frozenset(),
  "rewards": frozenset(),
  "parallel": frozenset(),
  "rl": frozenset(),
  "base_config": frozenset({"config_fields", "optional_sections"}),
  "data": frozenset({"worlds", "buckets"}),
  "envs": frozenset({"rewards", "worlds"}),
  "rollout": frozenset({"models", "envs", "parallel", "optional_sections"}),
  "train": ALL_ROOMS - {"traces", "eval", "serve"}
  | {"base_config", "config_fields", "optional_sections", "status", "buckets"},
  "traces": ALL_ROOMS - {"eval", "serve"} | {"base_config", "config_fields", "optional_sections"},
  "eval": ALL_ROOMS - {"serve"} | {"buckets"},
  "serve": ALL_ROOMS | {"ask"},
  "main": ALL_ROOMS
  | {"ask", "segment", "judge_traces", "status", "buckets", "recipe_config", "overrides"},
  "segment": ALL_ROOMS - {"serve"} | {"ask"},
  "benchmark_arguments": frozenset({"ask", "eval", "parallel"}),
  "evaluate_benchmarks": ALL_ROOMS - {"serve"} | {"ask", "benchmark_arguments", "main"},
  "judge_traces": ALL_ROOMS - {"serve"} | {"ask"},
  "ask": ALL_ROOMS - {"serve"} | {"main", "recipe_config"},
  "__init__": frozenset(),
}

# Where a distribution's name on the package index is not that of the module it brings.
DISTRIBUTIONS = {
  "google": "protobuf",
  "PIL": "pillow",
  "absl": "absl-py",
  "grain": "grain",
  "ml_collections": "ml-collections",
  "orbax": "orbax-checkpoint",
  "tensorflow_datasets": "tensorflow-datasets",
}


def sources(*folders: str) -> list[pathlib.Path]:
  return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


def room_of(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> set[str]:
  """Dotted names of the modules that a file imports, also inside functions.

  `from a import b` gives a.b.
  """
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"line {node.lineno}: a relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def parsed(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def project_imports(tree: ast.AST) -> set[str]:
  """The rooms (or ground-floor modules) of vr_jax that a file imports."""
  return {module.split(".")[1] for module in imported_modules(tree) if module.startswith("vr_jax.")}


@pytest.mark.parametrize("path", sources("vr_jax"), ids=name)
def test_a_room_imports_only_the_rooms_that_the_design_allows(path):
  room = room_of(path)
  allowed_tokens = MAY_USE[room] | GROUND | {room}
  if room in GROUND:
    allowed_tokens = GROUND
  assert project_imports(parsed(path)) <= allowed_tokens


def test_every_room_has_its_rule():
  assert {room_of(path) for path in sources("vr_jax")} <= set(MAY_USE)


def test_a_forbidden_import_is_seen_wherever_it_stands():
  tree = ast.parse("def late():\n  from vr_jax import train\n  import vr_jax.eval.report as r\n")
  assert project_imports(tree) == {"train", "eval"}


@pytest.mark.parametrize("path", sources("configs"), ids=name)
def test_a_config_imports_nothing_but_ml_collections_and_the_fields_that_all_have(path):
  assert imported_modules(parsed(path)) <= {"ml_collections", "vr_jax.base_config"}


@pytest.mark.parametrize("path", sources("vr_jax"), ids=name)
def test_what_the_package_imports_is_what_setup_installs(path):
  needed = setup_requirements("REQUIRES")
  if room_of(path) == "serve":  # the extra of the same name
    needed += setup_requirements("SERVE")
  declared = {re.split(r"[\[><=!~]", value)[0].lower().replace("_", "-") for value in needed}
  foreign = {module.split(".")[0] for module in imported_modules(parsed(path))}
  foreign -= sys.stdlib_module_names | {"vr_jax"}
  missing = {module for module in foreign if distribution(module) not in declared}
  assert not missing, f"add to setup.py what brings {sorted(missing)}"


def distribution(module: str) -> str:
  return DISTRIBUTIONS.get(module, module).lower().replace("_", "-")


def setup_requirements(name: str) -> list[str]:
  """A list of setup.py."""
  for node in parsed(ROOT / "setup.py").body:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
      return ast.literal_eval(node.value)
  raise AssertionError(f"setup.py has no list {name}")


FAMILIES = sorted(path.parent.name for path in PACKAGE.glob("models/*/family.py"))
NAMES_A_FAMILY = re.compile(r"qwen|tinyllava|\bphi\b|\bphi-?\d|llama", re.IGNORECASE)
OUTSIDE_FAMILIES = [
  path
  for path in sources("vr_jax", "launch")
  if not set(path.relative_to(ROOT).parts) & set(FAMILIES)
  # The one place that lists them, and what is shared by the files of configs/.
  and name(path) not in ("vr_jax/models/registry.py", "vr_jax/base_config.py")
]


@pytest.mark.parametrize("path", OUTSIDE_FAMILIES, ids=name)
def test_only_its_own_folder_the_registry_and_configs_name_a_family_of_models(path):
  lines = path.read_text(encoding="utf-8").splitlines()
  found = [
    f"line {number}: {line.strip()}"
    for number, line in enumerate(lines, start=1)
    # Where a rule was read may be said anywhere.
    if NAMES_A_FAMILY.search(line) and not re.match(r"\s*(#\s*)?Source:", line)
  ]
  assert not found, found


def test_there_are_families_and_the_registry_knows_them():
  assert "qwen2_5_vl" in FAMILIES
  text = (PACKAGE / "models" / "registry.py").read_text(encoding="utf-8")
  assert [family for family in FAMILIES if f'"vr_jax.models.{family}.family"' not in text] == []


CODE = sources("vr_jax", "configs", "launch", "benchmarks", "examples", "tests")


@pytest.mark.parametrize("path", CODE, ids=name)
def test_nothing_runs_code_that_came_as_data(path):
  tree = parsed(path)
  assert not {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"} & {
    module.split(".")[0] for module in imported_modules(tree)
  }
  calls = {
    ast.unparse(node.func): node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call)
  }
  assert not {"eval", "exec", "compile", "__import__", "os.system"} & set(calls), calls
  unsafe_keywords = [
    node.lineno
    for node in ast.walk(tree)
    if isinstance(node, ast.keyword)
    and node.arg in ("allow_pickle", "shell")
    and not (isinstance(node.value, ast.Constant) and node.value.value is False)
  ]
  assert not unsafe_keywords, f"lines {unsafe_keywords}"


PRODUCT = sources("vr_jax", "configs", "launch", "benchmarks", "examples")


def unsafe_reads(tree: ast.AST) -> list[str]:
  """Calls that may run code of the file that they read, or write where an archive says."""
  found = []
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call):
      continue
    called = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called in ("np.load", "numpy.load", "jnp.load") and given.get("allow_pickle") != "False":
      found.append(f"line {node.lineno}: {called} without allow_pickle=False")
    if called == "torch.load" or called.endswith((".read_pickle", ".to_pickle")):
      found.append(f"line {node.lineno}: {called}")
    if called.startswith("yaml.") and called not in ("yaml.safe_load", "yaml.safe_dump"):
      found.append(f"line {node.lineno}: {called}")
    if called.endswith((".extractall", "unpack_archive")) or called.startswith("tarfile."):
      found.append(f"line {node.lineno}: {called}: members may lead out of the directory")
  return found


@pytest.mark.parametrize("path", PRODUCT, ids=name)
def test_no_file_is_read_by_what_could_run_its_code_and_no_archive_is_unpacked(path):
  assert unsafe_reads(parsed(path)) == []


@pytest.mark.parametrize(
  ("code", "count"),
  [
    ("np.load(f)", 1),
    ("np.load(f, allow_pickle=True)", 1),
    ("np.load(f, allow_pickle=False)", 0),
    ("torch.load(f)", 1),
    ("yaml.load(f)", 1),
    ("yaml.safe_load(f)", 0),
    ("zipfile.ZipFile(f).extractall(d)", 1),
    ("shutil.unpack_archive(f)", 1),
    ("pd.read_pickle(f)", 1),
  ],
)
def test_an_unsafe_read_is_seen(code, count):
  assert len(unsafe_reads(ast.parse(code))) == count


@pytest.mark.parametrize("path", CODE, ids=name)
def test_a_file_stays_short_enough_to_hold_one_subject(path):
  assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


@pytest.mark.parametrize("path", CODE, ids=name)
def test_a_file_is_named_for_its_subject(path):
  assert path.stem not in {"utils", "util", "helpers", "misc", "common"}


def test_a_class_name_exists_once():
  places = collections.defaultdict(list)
  for path in sources("vr_jax", "configs", "launch", "benchmarks", "examples"):
    for node in ast.walk(parsed(path)):
      if isinstance(node, ast.ClassDef):
        places[node.name].append(name(path))
  assert not {found: files for found, files in places.items() if len(files) > 1}


TEXTS = [
  path
  for pattern in ("*.py", "*.md", "*.toml", "*.ipynb", "*.css", "*.js", "*.sh", "Makefile", "run")
  for folder in (
    "vr_jax",
    "configs",
    "launch",
    "benchmarks",
    "examples",
    "tests",
    "docs",
    "notebooks",
    ".ci",
  )
  for path in sorted((ROOT / folder).rglob(pattern))
] + [path for path in sorted(ROOT.iterdir()) if path.suffix in (".md", ".py", ".toml")]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_no_file_names_a_place_on_one_machine(path):
  homes = re.compile(r"(?<![\w.~$}])/(?:work|home|root|Users)/")
  lines = path.read_text(encoding="utf-8").splitlines()
  found = [number for number, line in enumerate(lines, start=1) if homes.search(line)]
  assert not found, f"lines {found}"


def test_no_stored_file_is_a_link_that_another_machine_can_not_follow():
  """A link into nowhere in place of a folder of caches leaves fresh clones without a cache."""
  words = ("git", "-C", str(ROOT), "ls-files", "--stage")
  listed = subprocess.run(words, capture_output=True, text=True, check=False).stdout
  links = [line for line in listed.splitlines() if line.startswith("120000")]
  assert not links
