"""Package vr_jax: what it needs, its extras and its command."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent

TORCH = "torch>=2.10,<3"

# Lower bounds are versions that the tests have run with: `make lowest`.
REQUIRES = [
  "absl-py>=2.3",
  "array_record>=0.8.1",
  "av>=17",  # 15 and 16 decode BT.709, BT.2020 and full-range 10 bit to wrong colours
  "flax>=0.12.8",
  "grain>=0.2.15",
  "jax>=0.10.2,<0.12",
  "jaxtyping>=0.3.11",
  "jinja2>=3.1.6",
  "ml-collections>=1.1",
  "numpy>=2.1",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12",
  "pillow>=12.1.1",
  "protobuf>=6.31.1",
  "pyarrow>=21",  # Parquet of benchmarks
  "pycocotools>=2.0.10",  # run-length masks
  "rich>=15",
  "safetensors>=0.6.1",
  "scipy>=1.14",  # matches proposals with objects; JAX brings it, too
  "simplejpeg>=1.9",
  "tensorboard>=2.20",
  "tensorflow-datasets>=4.9.9",
  "tokenizers>=0.22",
]

BEAM = ["apache-beam>=2.77"]

NOTEBOOK = ["ipykernel>=7", "matplotlib>=3.10"]

# libtpu is TPU's runtime and compiler; jax's own extra names the version that fits it, so that
# neither is pinned here.
TPU = "jax[tpu]>=0.10.2,<0.12"

# The major versions whose requests vr_jax/model_endpoint.py speaks.
JUDGE = ["anthropic>=2,<3", "openai>=3,<4"]

# An endpoint for a trained policy: vr_jax/serve.
SERVE = ["starlette>=1.0", "uvicorn>=0.38"]

EXTRAS = {
  "tpu": [TPU],
  "cuda": ["jax[cuda12]>=0.10.2,<0.12"],
  "notebook": [*NOTEBOOK, "jupyterlab>=4.4"],
  "test": [
    *NOTEBOOK,
    *JUDGE,
    *SERVE,
    *BEAM,
    "basedpyright>=1.40.2",
    "beartype>=0.22.9",
    "build>=1.3",
    "hypothesis>=6.140",
    "imageio-ffmpeg>=0.8",  # FFmpeg's command, the independent decoder
    "jsonschema>=4.26",  # checks the JobSets that launch.gke writes
    "nbclient>=0.10",
    "nbformat>=5.10",
    "opencv-python-headless>=4.12.0.88",  # what DAVIS's program dilates with
    "pytest>=9",
    "pytest-xdist>=3.8",
    "ruff>=0.17,<0.18",  # a formatter's next version may format differently
    "setuptools>=77.0.3",
    "wheel>=0.45",
    # Programs are compiled for chips that no test machine has; wheels exist for Linux on x86-64.
    f"{TPU} ; sys_platform == 'linux' and platform_machine == 'x86_64'",
  ],
  # The reference implementations that parity tests compare with; golden files stand in where they
  # are absent.
  "parity": [
    TORCH,
    "dtaidistance>=2.4",
    "peft>=0.18",
    "rouge-score>=0.1.2",
    "transformers>=5.20,<6",
    "trl>=1.10,<2",
  ],
  # What `benchmarks/text_rollout.py` compares with; in an environment of its own, since it excludes
  # what parity needs.
  "peers": ["google-tunix>=0.1.7"],
  "wandb": ["wandb>=0.31"],
  "mutation": ["cosmic-ray>=8.7"],
  "judge": JUDGE,
  "serve": SERVE,
  "beam": BEAM,  # brings releases of Pillow below 13, of protobuf below 7 and of pyarrow below 26
}


def version() -> str:
  """The version as `vr_jax/__init__.py` states it, read without importing the package."""
  text = (ROOT / "vr_jax" / "__init__.py").read_text(encoding="utf-8")
  match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
  if match is None:
    raise ValueError('vr_jax/__init__.py: no line __version__ = "…"')
  return match.group(1)


setuptools.setup(
  name="vr_jax",
  version=version(),
  description="Reinforcement learning of video language models that reason, in JAX",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  packages=[*setuptools.find_packages(include=["vr_jax", "vr_jax.*"]), "vr_jax.configs"],
  package_dir={"vr_jax.configs": "configs"},  # recipes by name, from any directory
  package_data={
    "vr_jax.eval": ["report_assets/*"],
    "vr_jax.models.qwen2_5_vl": ["exported/*"],
    "vr_jax.models.qwen3_vl": ["exported/*"],
  },
  python_requires=">=3.11",
  install_requires=REQUIRES,
  extras_require=EXTRAS,
  entry_points={"console_scripts": ["vr-jax = vr_jax.main:cli"]},
)
