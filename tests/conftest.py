"""Settings of all tests: eight CPU devices, shapes checked at run time, a compilation cache.

The environment is set before anything imports jax, and reaches the processes that tests start.
"""

import ctypes
import gc
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = (
  "worlds",
  "data",
  "models",
  "rollout",
  "envs",
  "rewards",
  "rl",
  "train",
  "traces",
  "eval",
  "serve",
  "parallel",
)

# What takes longest goes first, so that both workers end together; of these the first ones.
LONGEST = (
  *("train/test_multi_turn", "parallel/test_mesh", "test_launch", "train/test_killed"),
  "faults/test_kills",
  *("train/test_train_steps", "models/test_toy_family", "test_notebook"),
  *("train/test_export_replies", "train/test_export_replies_families", "train/test_revseg_steps"),
  *("launch/test_plan_compiled", "benchmarks/test_group_layout", "rollout/test_episodes"),
  *("train/test_critic", "train/test_rl_options", "train/test_experience", "train/test_step_timer"),
  *("models/test_family_groups", "models/test_family_turns", "traces/test_beam"),
  *("rollout/test_replicated", "rollout/test_packing", "models/test_qwen2_5_vl_tpu"),
  *("train/test_lora", "train/test_vision_features", "train/test_vision_once", "test_ask_data"),
  *("launch/test_tpu_compiler", "rollout/test_sampler", "models/test_qwen2_5_vl_attention"),
  *(
    "test_own_reward",
    "test_own_recipe",
    "benchmarks/test_turn_by_turn",
    "rollout/test_forgetting",
  ),
  *(
    "train/test_validation",
    "train/test_segments",
    "rollout/test_compilations",
    "launch/test_plan",
  ),
  *("benchmarks/test_accelerator", "benchmarks/test_padding", "rollout/test_one_forward"),
)

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile far longer than they compute: programs are built without the compiler's slow passes,
# and not split for threads that would wait for the other worker's core. On a busy machine a device
# may come late to a collective, for which XLA would end the process after 40 s.
os.environ["XLA_FLAGS"] = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
  "--xla_cpu_parallel_codegen_split_count=1 --xla_force_host_platform_device_count=8 "
  "--xla_cpu_collective_call_terminate_timeout_seconds=300"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import made_once  # noqa: E402
import shape_checks  # noqa: E402

# Not vr_jax.records: pytrees are rebuilt around objects that are no arrays while jax traces them.
shape_checks.install([f"vr_jax.{room}" for room in ROOMS])

# Programs are made of many small objects, hardly any of them garbage.
gc.set_threshold(200_000, 50, 100)

# The first example of a property compiles; a deadline would measure that.
hypothesis.settings.register_profile("vr_jax", deadline=None, print_blob=True)
hypothesis.settings.load_profile("vr_jax")


MOST_MEMORY = 5 << 30  # bytes of a worker; beyond, compiled programs are given up between two files


def pytest_runtest_teardown(item, nextitem):
  """Frees the programs of earlier files where they take much memory: two workers share 23 GB."""
  if nextitem is not None and nextitem.path == item.path:
    return
  pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
  if pages * os.sysconf("SC_PAGE_SIZE") > MOST_MEMORY:
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def pytest_collection_finish():
  made_once.install()


def pytest_collection_modifyitems(items):
  """Puts the files in LONGEST in front; those of a file stay together, and in order."""
  places = {ROOT / "tests" / f"{name}.py": place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: places.get(item.path, len(places)))
