"""The fields that every recipe has, with the defaults of the engine, and the sizes that recipes share.

A recipe (configs/<recipe>.py) starts from `base` and a size, adds config.env, and sets what its paper says.
"""

from collections.abc import Callable

import ml_collections

# The pretrained sizes, by the names of Hugging Face's releases.
RELEASES = {size: f"Qwen2.5-VL-{size.upper()}-Instruct" for size in ("3b", "7b", "72b")}


def base(recipe: str) -> ml_collections.ConfigDict:
  """All fields but those of the environment, which are the recipe's own."""
  config = ml_collections.ConfigDict()
  config.recipe = recipe
  config.seed = 0  # of initial weights, order of data and sampling
  config.mesh = (-1, 1, 1, 1)  # devices on the axes data, fsdp, sequence, tensor; -1: what is left
  config.cpu_devices = 0  # that a CPU counts as, where JAX is not told; 0: as JAX says

  data = config.data = ml_collections.ConfigDict()
  data.directory = ""  # where the frame store and the examples live; empty: <workdir>/data
  data.videos = ""  # directory of videos; empty where they are simulated
  data.annotations = ""  # JSONL of annotations (docs/data.md)
  data.on_bad = "stop"  # stop | skip (counted, and listed in bad_records.jsonl)
  data.fps = 2.0  # frames stored a second
  data.quality = 90  # of the stored JPEGs
  data.max_side = 448  # longer side of stored frames in pixels; larger ones are scaled down
  data.validation_fraction = 0.0  # of the videos
  data.test_fraction = 0.2  # of the videos; the rest is for training
  data.split_seed = 0
  data.sampling = "uniform"  # uniform | fps | pool (what several turns choose from)
  data.frames = 16  # uniform: frames of a clip; pool: at most
  data.sample_fps = 2.0  # fps: rate, within
  data.min_frames = 4
  data.max_frames = 64
  data.threads = 4  # that read and cut frames ahead of the step

  simulate = data.simulate = ml_collections.ConfigDict()
  simulate.videos = 0  # how many to simulate; 0: data.videos and data.annotations are used
  simulate.questions_per_video = 1
  simulate.seed = 0
  simulate.world = ml_collections.ConfigDict()  # fields of worlds.scene.WorldConfig

  model = config.model = ml_collections.ConfigDict()
  model.pretrained = ""  # Hugging Face directory; empty: random weights of model.architecture
  model.architecture = ml_collections.ConfigDict()  # as in a config.json, with its model_type
  model.tokenizer = (
    ""  # tokenizer.json; "trained": learnt from the training split; empty: the pretrained one
  )
  model.min_pixels = 4 * 28 * 28  # of a frame
  model.max_pixels = 128 * 28 * 28  # of a frame [Video-R1]
  model.resampling = "pillow"  # torchvision | pillow: whose bicubic resizes frames (docs/design.md)
  model.system = "You are a helpful assistant."  # system turn; empty: none
  model.question_first = False  # the question stands before the video in the prompt, not after it
  model.text_follows = ""  # sides | largest (docs/design.md); empty: as the model says
  model.dtype = "bfloat16"  # of activations; parameters stay float32
  model.remat = (
    "full"  # none | full | attention | dots: what is computed again in the backward pass
  )
  model.attention = ""  # xla | splash (TPU) | cudnn (GPU); empty: that of the platform
  model.logit_chunk = 8192  # rows of the vocabulary whose logits an update has in memory at once
  model.freeze_vision = True  # Reconstruction: optional in the family
  # Features of a frozen tower kept on disk beside the frames, at most so many GiB; 0: none, as recipes of several turns must
  # say. A clip of 16 frames at the sizes below takes 4 MiB with 3b, 7 MiB with 7b, and 16 MiB with 72b.
  model.feature_cache_gib = 64.0
  lora = model.lora = ml_collections.ConfigDict()  # docs/checkpoints.md
  lora.rank = 0  # of the adapters, which alone are trained; 0: none, all weights are trained
  lora.alpha = 32.0  # what adapters say is multiplied by alpha / rank
  lora.text = ("query", "key", "value", "out", "gate", "up", "down")  # projections that get one
  lora.vision = ()  # of qkv, out, gate, up, down
  lora.base_dtype = "bfloat16"  # of all weights that are not trained
  # Prompt lengths that programs are compiled for, one after the other as they come: a batch takes that of its longest prompt.
  model.prefix_buckets = (640, 768, 1024, 1152, 1280, 1408, 1536, 2048, 3072, 4096)
  model.frame_buckets = (8, 32)  # temporal patches a prompt
  model.patch_buckets = (256, 512)  # patches a frame

  config.env = ml_collections.ConfigDict()

  sft = config.sft = ml_collections.ConfigDict()
  sft.steps = 0  # at most; 0: no supervised warm start
  sft.target_loss = 0.0  # it ends where the mean loss of 10 updates (nats a token) is this low
  sft.examples = 0  # of the training set that are used; 0: all
  sft.batch = 16  # prompts an update
  sft.microbatches = 1  # as rl.microbatches
  sft.learning_rate = 1e-6
  sft.schedule = "cosine"  # cosine | constant
  sft.warmup_steps = 0
  sft.b1, sft.b2 = 0.9, 0.999
  sft.moment_dtype = "float32"  # float32 | bfloat16: of Adam's first moment
  sft.weight_decay = 0.01
  sft.gradient_norm = 5.0
  sft.max_reply_tokens = 768  # longer reference replies are an error
  sft.checkpoint_every = 50
  sft.max_skipped = 5  # non-finite updates in a row that end the run
  sft.packing = 1.1  # as rl.packing
  sft.validate_every = 0  # updates between two looks at the validation split; 0: none
  sft.patience = 0  # it ends after so many in a row that find no lower loss; 0: it goes on

  rl = config.rl = ml_collections.ConfigDict()
  rl.initial = ""  # directory of checkpoints to start from; empty: this workdir's checkpoints/sft
  rl.steps = 1000
  rl.prompts = 16  # an update
  rl.group = 8  # replies to each prompt
  rl.epochs = 1  # updates on one batch of replies
  # Equal parts of an update, one after the other: as many as memory asks for, at most one for each prompt of a device.
  rl.microbatches = 1
  rl.temperature = 1.0
  rl.top_p = 0.95
  rl.max_new_tokens = 768
  # Shares of the replies that decoding goes down to as others end; each is compiled once. (): it computes all to the last.
  rl.rungs = (
    *(0.86, 0.74, 0.63, 0.54, 0.46, 0.38, 0.3, 0.24),
    *(0.18, 0.13, 0.09, 0.06, 0.04, 0.03, 0.02, 0.01),
  )
  rl.gather = True  # whole weights on each device while it decodes; False: less memory, and they are sent for every token
  # Updates are compiled for numbers of reply tokens this far apart, so that padding costs no more; 0: all of it is computed.
  rl.packing = 1.1
  rl.resampling = 0  # more batches a step at most, whose groups replace those without signal (DAPO)
  rl.shuffled = 0  # more replies to each prompt, to its frames in random order (T-GRPO compares)
  rl.curriculum = (
    "none"  # none: in random order | length: every epoch from the shortest clips to the longest
  )
  rl.one_step_off_policy = False  # replies of the next step are judged while this one updates
  rl.learning_rate = 1e-6
  rl.schedule = "cosine"
  rl.warmup_steps = 0
  rl.b1, rl.b2 = 0.9, 0.999
  rl.moment_dtype = "float32"  # float32 | bfloat16: of Adam's first moment
  rl.weight_decay = 0.01
  rl.gradient_norm = 5.0
  rl.normalise = True  # advantages by the group's std
  rl.baseline = "group_mean"  # group_mean | leave_one_out: the mean of the other replies (RLOO)
  rl.aggregation = "sequence_mean"  # sequence_mean | token_mean | constant_length
  rl.objective = "clip"  # clip: PPO's | cispo: clips the weight of each token's gradient
  rl.importance_sampling_level = "token"  # token | sequence: one ratio for a whole reply (GSPO)
  rl.clip_low, rl.clip_high = 0.2, 0.2
  rl.dual_clip = 0.0  # largest ratio that counts against a token of negative advantage; 0: any
  rl.kl_weight = 0.04
  rl.kl_estimator = "k3"  # k1 | k2 | k3
  rl.entropy_weight = 0.0  # of the replies' entropy, which the loss rewards
  # Which rewards count for which tokens. segments: each segment's for its own | joint: the sum for
  # all, of replies whose segments are all judged | episode: the sum of what is judged for all |
  # outcome: the last segment's for all | gae: turns by bi-level GAE, with a critic (config.critic)
  rl.credit = "segments"
  rl.overlong_buffer = 0  # last tokens over which a penalty of length grows (DAPO); 0: no penalty
  rl.overlong_max_tokens = 0  # where the penalty has grown to its end; 0: at rl.max_new_tokens
  rl.overlong_weight = 1.0  # of the penalty, which goes from 0 to -1, in the total reward
  rl.truncation = 2.0  # cap of the trainer/sampler importance weight
  rl.checkpoint_every = 50
  rl.max_skipped = 5

  evaluation = config.eval = ml_collections.ConfigDict()
  evaluation.examples = 0  # of the test set; 0: all
  evaluation.batch = 16
  evaluation.temperature = 0.0
  evaluation.rollouts = 24  # shown in the report
  evaluation.blind = True  # also without frames
  evaluation.shuffled = True  # also with frames in random order

  export = config.export = ml_collections.ConfigDict()
  export.directory = ""  # what --mode=export writes; empty: <workdir>/export
  export.dtype = "float32"  # of its tensors
  return config


def judge(config: ml_collections.ConfigDict) -> None:
  """Adds config.judge, of recipes whose replies one judges (docs/judges.md)."""
  section = config.judge = ml_collections.ConfigDict()
  section.kind = "rule"  # rule (the simulator's truth) | local | openai | anthropic
  section.model = ""  # its name, or for local a Hugging Face directory
  section.base_url = ""  # of the endpoint; empty: that of the provider
  section.key_variable = ""  # environment variable that holds the key; empty: the provider's own
  section.in_flight = 32  # questions at a time
  section.requests_per_minute = 0.0  # at most; 0: no limit
  section.timeout = 30.0  # seconds
  section.retries = 4  # then there is no verdict
  section.budget = 0  # calls of one start of the program, in each process; 0: no limit
  section.max_tokens = 256  # of an answer
  section.blinded = (
    False  # it answers from the observation alone, and that answer is held against the right one
  )
  section.threshold = 0.6  # blinded: of the task metric, from which the observation suffices
  section.leak_filter = False  # an observation that states the answer outright does not suffice


def traces(config: ml_collections.ConfigDict) -> None:
  """Adds config.traces, of recipes whose replies hold an observation (docs/traces.md)."""
  section = config.traces = ml_collections.ConfigDict()
  section.writer = (
    "sampler"  # sampler (with the weights that RL would start from) | openai (an endpoint)
  )
  section.directory = ""  # what is written; empty: <workdir>/traces
  section.examples = 0  # of each split that are asked about; 0: all
  section.threshold = 0.6  # of the task metric: an answer that scores less is rejected [VideoP2R]
  section.batch = 16  # questions that are asked, decided and written together
  section.max_tokens = 1024  # of a reply
  section.model = ""  # openai: the writer's name at its endpoint
  section.base_url = ""  # openai: of the endpoint; empty: OpenAI's own
  section.key_variable = "OPENAI_API_KEY"  # openai: environment variable that holds the key
  section.in_flight = 16  # openai: requests at a time
  section.retries = 4  # openai: of a request
  section.timeout = 120.0  # openai: seconds that a request may take
  section.workers = (
    0  # processes of an Apache Beam pipeline (extra beam); 0: this process, without Beam
  )
  section.beam = ()  # Beam's own options, of another runner than that of this machine


def turns(config: ml_collections.ConfigDict) -> None:
  """Adds config.turns and config.critic, of recipes whose replies ask for frames (docs/video_mtr.md)."""
  section = config.turns = ml_collections.ConfigDict()
  # Lengths that programs are compiled for: tokens of a whole episode behind its opening, and of what one turn shows; temporal
  # patches of one turn, and of all behind the first together.
  section.time_buckets = (2048, 3072, 4096)
  section.shown_buckets = (512, 1024, 1536)
  section.frame_buckets = (8, 16)
  section.chunk = 32  # steps of decoding; what a reply is shown next is made during one
  section.rows = 8  # replies a device that are shown frames together, at most

  critic = config.critic = ml_collections.ConfigDict()
  critic.placement = "every"  # every | last (docs/video_mtr.md): the ends of turns that the answer's reward is placed at
  critic.gamma_turn = 0.95  # discount between turns
  critic.gamma_token = 1.0  # within a turn
  critic.decay = 1.0  # lambda
  critic.kl_weight = 0.0  # of the penalty that is a reward; that of the loss is rl.kl_weight
  critic.value_clip = 0.5
  critic.learning_rate = 1e-5
  critic.schedule = "constant"
  critic.warmup_steps = 0
  critic.b1, critic.b2 = 0.9, 0.999
  critic.moment_dtype = "float32"
  critic.weight_decay = 0.01
  critic.gradient_norm = 1.0


def at_size(
  config: ml_collections.ConfigDict,
  size: str,
  *,
  of_tiny: Callable[[ml_collections.ConfigDict], None],
  of_released: Callable[[ml_collections.ConfigDict, str], None],
) -> ml_collections.ConfigDict:
  """The recipe at a size, locked: what that size is in all recipes, then what `of_tiny(config)` or `of_released(config, size)` add.

  Raises ValueError for a size that there is none of.
  """
  if size == "tiny":
    tiny(config)
    of_tiny(config)
  elif size in RELEASES:
    released(config, RELEASES[size])
    of_released(config, size)
  else:
    known = ", ".join(("tiny", *RELEASES))
    raise ValueError(f"configs/{config.recipe}.py:{size}: no such size; one of {known}")
  return config.lock()


def tiny(config: ml_collections.ConfigDict) -> None:
  """Simulated videos and a random network of 1 M parameters: two cores of a CPU are enough."""
  data = config.data
  data.simulate.videos = 1000
  data.simulate.questions_per_video = 2
  data.simulate.world = ml_collections.ConfigDict(
    {
      "height": 112,  # pixels
      "width": 112,
      "rows": 2,  # places of the canvas: rows x columns
      "columns": 2,
      "seconds": 10.0,
      "fps": 8,
      "dwell": 2.0,  # seconds between two changes
      "shown": 8.0,  # seconds from the start that the model may see
      "objects_min": 1,
      "objects_max": 1,
      "lives": ("cycle",),
      "lives_per_object": 1,
      "periods": (2, 3),  # changes after which a life repeats
      "shapes": ("circle", "square", "triangle", "star", "cross", "diamond"),
      "colours": ("red", "green", "blue", "yellow"),
      "families": ("choice", "name"),
      "options_in_order": True,  # a letter then stands for one value, which is sooner learnt
      "wordings": 1,  # of questions and steps
    }
  )
  data.fps = 1.0
  data.frames = 8
  data.threads = 1

  model = config.model
  model.tokenizer = "trained"
  model.min_pixels = model.max_pixels = 56 * 56
  model.system = ""
  model.question_first = True  # a fixed distance from frames to reply is learnt sooner
  model.dtype = "float32"
  model.remat = "none"
  model.freeze_vision = False
  model.prefix_buckets = (64, 96)
  model.frame_buckets = (4,)
  model.patch_buckets = (16,)
  model.architecture = ml_collections.ConfigDict(
    {
      "model_type": "qwen2_5_vl",
      "text_config": {
        "vocab_size": 448,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"mrope_section": (4, 6, 6), "type": "mrope"},
        "tie_word_embeddings": True,
        "initializer_range": 0.08,  # about 1 / sqrt(width): a network this narrow learns faster
      },
      "vision_config": {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_heads": 4,
        "out_hidden_size": 128,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 56,
        "fullatt_block_indexes": (2,),
      },
    }
  )
  # The warm start ends where traces tell most of what happens, but answers do not yet follow from them. Networks get
  # there at different steps, after a long time of seeing nothing: hence a loss, and not a number of steps.
  sft = config.sft
  sft.steps = 250
  sft.target_loss = 0.03
  sft.batch = 16
  sft.learning_rate = 2e-3
  sft.schedule = "constant"
  sft.warmup_steps = 20
  sft.gradient_norm = 1.0
  sft.max_reply_tokens = 72

  rl = config.rl
  rl.steps = 200
  rl.prompts = 16
  rl.microbatches = 4  # what each leaves for its gradient stays in the caches of a CPU
  rl.top_p = 1.0
  rl.max_new_tokens = 72
  rl.rungs = (0.5,)  # its replies are all about as long
  rl.learning_rate = 3e-4
  rl.schedule = "constant"
  rl.warmup_steps = 5
  rl.gradient_norm = 1.0
  rl.kl_weight = 0.0  # nothing pretrained is to be kept

  config.eval.batch = 64
  config.cpu_devices = 2  # one a core


def released(config: ml_collections.ConfigDict, name: str) -> None:
  """A Hugging Face release of Qwen2.5-VL, in the directory of that name."""
  config.model.pretrained = name
  config.model.text_follows = "largest"  # as the released weights were trained
  config.model.resampling = "torchvision"  # as transformers resizes for them
  config.export.dtype = "bfloat16"  # as the releases
  # The 8 key heads of the largest stand one a device.
  config.mesh = (1, -1, 1, 8) if "72B" in name else (1, -1, 1, 1)
