"""The wheel holds the whole package and runs from any directory; `make wheel` tries it for real."""

from pathlib import Path
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from tests.train import nano

BUILT = ("vr_jax", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
  """Builds it in a copy of the tree, with the tools of this environment."""
  source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
  for name in BUILT:
    copy = shutil.copytree if (nano.ROOT / name).is_dir() else shutil.copy2
    copy(nano.ROOT / name, source / name)
  subprocess.run(
    [*(sys.executable, "-m", "build", "--wheel", "--no-isolation"), "--outdir", out, source],
    check=True,
    capture_output=True,
  )
  (path,) = out.glob("*.whl")
  return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
  """The Python of a new environment: the wheel's files, and this environment's libraries."""
  home = tmp_path_factory.mktemp("environment")
  subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
  (packages,) = home.glob("lib/python*/site-packages")
  zipfile.ZipFile(wheel).extractall(packages)
  # Directories of a .pth file are searched, but the editable install in them is not followed.
  (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
  return home / "bin" / "python"


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel):
  def files(folder, name):
    found = (nano.ROOT / folder).rglob("*")
    kept = [path for path in found if path.is_file() and "__pycache__" not in path.parts]
    return {name / path.relative_to(nano.ROOT / folder) for path in kept}

  expected = files("vr_jax", Path("vr_jax")) | files("configs", Path("vr_jax/configs"))
  held = {Path(name) for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
  assert {path for path in held if not path.parts[0].endswith(".dist-info")} == expected


def test_it_simulates_and_ingests_videos_from_a_directory_of_the_users(python, tmp_path):
  flags = [
    *("--config=grpo:tiny", "--workdir=run", "--mode=data"),
    "--config.data.simulate.videos=4",
    "--config.data.test_fraction=0.5",
  ]
  environment = {"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
  done = subprocess.run(
    [python, "-m", "vr_jax.main", *flags],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "4 videos" in done.stdout
  where = subprocess.run(
    [python, "-c", "import vr_jax; print(vr_jax.__file__)"],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert Path(where.stdout.strip()).is_relative_to(python.parent.parent)
