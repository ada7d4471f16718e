"""The short form of `python -m benchmarks.asked_again`: the docs ask what is in the demo's data."""

import shlex

from benchmarks import asked_again
from vr_jax import recipe_config
from vr_jax.worlds import config as world_config
from vr_jax.worlds import write


def test_each_documented_question_is_one_of_the_demos_data():
  data = recipe_config.load("moss_chatv:tiny").data
  asked = {}
  for command in asked_again.documented_commands("runs/demo"):
    _, mode, video, question, *flags = shlex.split(command)
    assert mode == "ask"
    assert set(flags) <= {"--checkpoint=runs/demo", "--before_rl"}
    directory, _, name = video.rpartition("/")
    assert directory == "runs/demo/data/simulated/videos"
    asked.setdefault(name, set()).add(question)
  assert asked
  count = 1 + max(int(name.removesuffix(".mp4")) for name in asked)
  world = world_config.WorldConfig(**data.simulate.world)
  simulated = write.distinct_videos(
    world, videos=count, seed=data.simulate.seed, questions=data.simulate.questions_per_video
  )
  known = {
    each.video: {x.question for x in examples} for _, examples in simulated for each in examples
  }
  assert all(questions <= known[name] for name, questions in asked.items())


def test_an_answer_is_right_if_it_is_the_datas():
  printed = "One turn\n…\n\nAnswer: B. green\nThe data's answer: B. green\n"
  assert asked_again.is_right(printed)
  assert not asked_again.is_right(printed.replace("Answer: B", "Answer: C", 1))
  assert not asked_again.is_right("No answer.\nThe data's answer: green\n")
