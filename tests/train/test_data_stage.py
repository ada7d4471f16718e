"""The data stage: simulated worlds, and what it finds in examples before anything is trained."""

import pytest

from tests.train import nano
from vr_jax import errors, main
from vr_jax.data import examples
from vr_jax.train import data_stage
from vr_jax.worlds import config as world_config
from vr_jax.worlds import write


def test_what_the_tiny_recipe_tests_on_it_never_trains_on():
  recipe = f"--config={nano.ROOT / nano.RECIPE}:tiny"
  data = main.parse_flags(["vr-jax", recipe, "--workdir=x"])[0].data
  world, count = world_config.WorldConfig(**data.simulate.world), 200
  settings = {"seed": data.simulate.seed, "questions": data.simulate.questions_per_video}
  made = [asked for _, asked in write.distinct_videos(world, videos=count, **settings)]
  shows = {asked[0].video: asked[0].states for asked in made}
  fractions = {"train": 1 - data.test_fraction, "test": data.test_fraction}
  split = examples.split_videos(list(shows), fractions, seed=data.split_seed)
  train, test = ({shows[video] for video in split[name]} for name in ("train", "test"))
  assert (len(train), len(test)) == (160, 40)
  assert not train & test


def test_simulated_videos_of_another_world_are_refused(data, tmp_path):
  config = nano.config(data__directory=str(data), data__simulate__world__wordings=1)
  with pytest.raises(errors.InputError, match="simulated: simulated from other values") as error:
    data_stage.prepare(config, tmp_path)
  assert str(data) in str(error.value)


def test_a_video_too_short_for_the_frames_of_a_clip_is_found_when_it_is_read_in(tmp_path):
  with pytest.raises(
    errors.InputError, match=r"annotations\.jsonl:1: .* holds 8 stored frames, .* 16"
  ):
    nano.make_data(tmp_path, data__frames=16)
  assert not (tmp_path / "shards").exists()
