"""Makes the prompt of a request, as `vr-jax ask` makes it of the same clip and question.

One message with one video is a question of the recipe: its environment says what is shown, adds the
instruction, and plays the turns. A recipe of one turn also answers conversations with images,
several videos, or none; the instruction is added to the last text then, unless the client has a
system message or asks without it. Media stand where the client put them. Evaluation knows more of
an example than a client can say (its type of problem, its options), so its prompt may differ where
the environment uses that.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

from jaxtyping import PyTree

from vr_jax import errors, records
from vr_jax.envs import episodes as env_episodes
from vr_jax.models import interface
from vr_jax.models.common import conversation
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.rollout import dialogue, episodes, play
from vr_jax.serve import chat_request, media, request_error, serving_slots, shown_media
from vr_jax.train import run_context

# Finds the features of a key, on the host; None if they are not known.
FeatureLookup = Callable[[str], PyTree | None]

_NAME = "the prompt"  # in messages


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedRequest:
  """A request that can be decoded.

  request: without its messages, whose data URLs are large.
  encoded: the first prompt.
  features_key: of the features of its media; equal keys have equal features.
  settings: of sampling.
  dialogue: encodes later turns, as row 0; None if there are none.
  example, pool: what is asked, and the number of frames, for `Environment.parse_action`.
  about_media: what was shown of each image and video, for the response.
  prompt_hash: of the text around a question, and of the instruction if it was added.
  """

  request: chat_request.ChatRequest
  encoded: prompts_lib.EncodedPrompt
  features_key: str
  settings: serving_slots.SlotSettings
  dialogue: dialogue.Dialogue | None
  example: records.Example
  pool: int
  about_media: tuple[dict[str, Any], ...]
  prompt_hash: str


class Preparer:
  """Prepares requests. Several threads may use it.

  max_tokens: the most tokens of a reply.
  reply: what a client gets that does not say it, full or answer.
  """

  def __init__(
    self,
    context: run_context.RunContext,
    library: media.MediaLibrary,
    *,
    max_tokens: int,
    reply: str = "",
  ):
    """Initialises it. reply: "": the answer where an episode has several turns, else full."""
    self._context, self.max_tokens = context, max_tokens
    self._media = shown_media.MediaOpener(context, library)
    self.reply = reply or ("answer" if context.environment.turns > 1 else "full")
    self._hashes = {each: _hash_template(context, add=each) for each in (True, False)}
    self._processor = functools.lru_cache(maxsize=16)(self._make_processor)

  def prepare(
    self, request: chat_request.ChatRequest, cached: FeatureLookup | None = None
  ) -> PreparedRequest:
    """Fetches and decodes the media of a request, and encodes its prompt.

    cached: finds the features of a prompt by their key, so that frames need not be encoded.

    Raises RequestError naming the field at fault.
    """
    request = dataclasses.replace(request, reply=request.reply or self.reply)
    settings = self._settings(request)
    self._check_pixels(request)
    clips = self._media.open_all(request)
    frames = min((len(clip.frames) for clip in clips if clip.kind == "video"), default=1)
    try:
      processor = self._processor(request.min_pixels, request.max_pixels, frames)
    except errors.InputError as error:
      raise chat_request.wrong("mm_processor_kwargs", str(error)) from None
    try:
      prepared = self._encode(request, settings, processor, clips, cached)
      serving_slots.find_buckets(self._context, prepared.encoded)
    except errors.InputError as error:
      raise request_error.RequestError(400, error, code="does_not_fit") from None
    return prepared

  def _settings(self, request: chat_request.ChatRequest) -> serving_slots.SlotSettings:
    config = self._context.config
    limit = request.max_tokens or min(config.rl.max_new_tokens, self.max_tokens)
    if limit > self.max_tokens:
      most = f"this server's replies have at most {self.max_tokens}"
      raise chat_request.wrong("max_tokens", f"is {limit}; {most}")
    if request.stop and self._context.environment.turns > 1:
      raise chat_request.wrong("stop", "this recipe's replies have several turns; leave it out")

    def given(value: Any, default: Any) -> Any:
      return default if value is None else value

    return serving_slots.SlotSettings(
      seed=given(request.seed, 0),
      temperature=given(request.temperature, config.eval.temperature),
      top_p=given(request.top_p, config.rl.top_p),
      top_k=max(0, given(request.top_k, config.rl.top_k)),
      min_p=given(request.min_p, config.rl.min_p),
      max_tokens=limit,
      stride=max(limit, config.rl.max_new_tokens),
    )

  def _check_pixels(self, request: chat_request.ChatRequest) -> None:
    """Refuses limits of pixels to which no prompt has room: resizing to them takes memory."""
    if self._context.model.vision_shapes.patches_per_image:
      return  # such a model has one size of images; its family refuses others
    most = self._most_patches() * self._context.model.vision_shapes.pixels_per_patch
    for field, value in (("min_pixels", request.min_pixels), ("max_pixels", request.max_pixels)):
      if value is not None and value > most:
        raise chat_request.wrong(
          f"mm_processor_kwargs.{field}",
          f"is {value}; the model's prompts hold {most} pixels a frame at most",
        )

  def _most_patches(self) -> int:
    return max(play.prompt_patch_buckets(self._context.config))

  def _make_processor(
    self, least: int | None, most: int | None, frames: int
  ) -> interface.Processor:
    """The run's processor, or one with other limits of pixels for a video of so many frames."""
    context, section = self._context, self._context.config.model
    if least is None and most is None:
      return context.processor
    low = least or min(section.min_pixels, most or section.min_pixels)
    high = shown_media.most_pixels(section, least, most, frames)
    return context.processor_with_limits(low, high, frames)

  def _encode(
    self,
    request: chat_request.ChatRequest,
    settings: serving_slots.SlotSettings,
    processor: interface.Processor,
    clips: Sequence[shown_media.ShownClip],
    cached: FeatureLookup | None,
  ) -> PreparedRequest:
    environment = self._context.environment
    message = request.messages[-1]
    text = message.text
    if not text.strip():
      raise chat_request.wrong(f"messages[{len(request.messages) - 1}]", "holds no text")
    is_question = len(request.messages) == 1 and [clip.kind for clip in clips] == ["video"]
    is_question &= request.adds_instruction
    if environment.turns > 1 and not is_question:
      raise request_error.RequestError(
        400,
        "messages: this recipe plays several turns about one video; send one message of the user "
        "with one video_url and a text, and leave recipe_instruction out",
        param="messages",
      )
    example = _example(text)
    pool = len(clips[0].frames) if is_question else 0
    opening = environment.observe(example, pool, ()) if is_question else None
    if opening is None or opening.clip is not None:
      self._check_media(processor, clips, opening)
    features_key = self._features_key(processor, clips, opening)
    found = cached(features_key) if cached else None
    talk = None
    if is_question:
      scene = dialogue.EpisodeScene(example=example, pool=clips[0].frames)
      talk = dialogue.Dialogue(
        environment=environment,
        processor=processor,
        scenes=(scene,),
        question_first=self._context.config.model.question_first,
      )
      encoded = self._encode_question(processor, talk, clips[0], opening, found)
    else:
      question = _last(message)
      if request.adds_instruction:
        question = environment.question(_example(question))
      turns = _conversation(request.messages, clips, question)
      encoded = processor.encode_conversation(turns, name=_NAME)
    if found is not None and encoded.features is None:
      encoded = dataclasses.replace(encoded, features=found)
    return PreparedRequest(
      request=dataclasses.replace(request, messages=()),
      encoded=encoded,
      features_key=features_key,
      settings=settings,
      dialogue=talk if environment.turns > 1 else None,
      example=example,
      pool=pool,
      about_media=self._describe(processor, clips, encoded),
      prompt_hash=self._hashes[request.adds_instruction],
    )

  def _check_media(
    self,
    processor: interface.Processor,
    clips: Sequence[shown_media.ShownClip],
    opening: env_episodes.Observation | None,
  ) -> None:
    """Raises InputError if media don't fit the largest buckets, before their frames are resized."""
    size = opening.clip.size if opening is not None and opening.clip is not None else None
    grids = [
      processor.media_grid(
        (len(clip.frames), *(size or (clip.height, clip.width))),
        None if clip.kind == "image" else clip.frames.timestamps,
        _NAME,
      )
      for clip in clips
    ]
    counts = [(_NAME, sum(grid.frames for grid in grids))]
    section, bucket = self._context.config.model, prompts_lib.smallest_bucket
    bucket(counts, section.frame_buckets, "temporal patches")
    sizes = [(_NAME, grid.patches) for grid in grids] or [(_NAME, 0)]
    bucket(sizes, play.prompt_patch_buckets(self._context.config), "patches a frame")

  def _encode_question(
    self,
    processor: interface.Processor,
    talk: dialogue.Dialogue,
    clip: shown_media.ShownClip,
    opening: env_episodes.Observation | None,
    found: PyTree | None,
  ) -> prompts_lib.EncodedPrompt:
    """Encodes a question about a video; with features that are known, without its frames."""
    if found is None or opening is None or opening.clip is None:
      return talk.prompt(0)
    (text,) = opening.texts
    height, width = opening.clip.size or (clip.height, clip.width)
    return processor.encode_with_features(
      text,
      (len(clip.frames), height, width),
      clip.frames.timestamps,
      found,
      question_first=talk.question_first,
      name=talk.scenes[0].example.id,
    )

  def _features_key(
    self,
    processor: interface.Processor,
    clips: Sequence[shown_media.ShownClip],
    opening: env_episodes.Observation | None,
  ) -> str:
    shown: list[Any] = [clip.digest for clip in clips]
    if opening is not None:
      shown += [opening.frames, repr(opening.clip)]
      shown += [part.size for part in opening.parts if isinstance(part, env_episodes.ShownFrame)]
    return shown_media.hash_json([processor.preprocessing, shown])

  def _describe(
    self,
    processor: interface.Processor,
    clips: Sequence[shown_media.ShownClip],
    encoded: prompts_lib.EncodedPrompt,
  ) -> tuple[dict[str, Any], ...]:
    """What was shown of each medium: frames, their times (s), and their size (pixels)."""
    sizes = [processor.frame_size(grid) for grid in encoded.grids]
    return tuple(
      {
        "type": clip.kind,
        "frames": len(clip.frames),
        "times": [round(float(time), 3) for time in clip.frames.timestamps],
        "height": size[0],
        "width": size[1],
      }
      for clip, size in zip(clips, sizes, strict=False)
    )


def _example(question: str) -> records.Example:
  return records.Example(
    id=_NAME,
    video="",
    question=question,
    answer="",
    problem_type="free-form",
    shown=records.Span(start=0.0, end=0.0),
  )


def _last(message: chat_request.ChatMessage) -> str:
  """The last text of a message."""
  return [part for part in message.parts if isinstance(part, str)][-1]


def _conversation(
  messages: Sequence[chat_request.ChatMessage],
  clips: Sequence[shown_media.ShownClip],
  question: str,
) -> list[conversation.Message]:
  """The conversation with the media decoded; `question` replaces its last text."""
  remaining = iter(clips)
  turns = []
  for message in messages:
    parts = (
      part if isinstance(part, str) else shown_media.decode(next(remaining))
      for part in message.parts
    )
    turns.append(conversation.Message(role=message.role, parts=tuple(parts)))
  last = turns[-1]
  place = max(place for place, part in enumerate(last.parts) if isinstance(part, str))
  parts = (*last.parts[:place], question, *last.parts[place + 1 :])
  return [*turns[:-1], dataclasses.replace(last, parts=parts)]


def _hash_template(context: run_context.RunContext, *, add: bool) -> str:
  """The hash of a prompt without media: what stands around a question. add: the instruction."""
  question = "{question}"
  if add:
    question = context.environment.question(_example(question))
  encoded = context.processor.encode(question, None)
  ids = encoded.tokens.tolist()
  text = context.processor.tokenizer.decode(ids, skip_special_tokens=False)
  return shown_media.hash_json([text, context.config.model.question_first])[:16]


def later_turn(
  prepared: PreparedRequest, replies: episodes.ReplyTokens
) -> episodes.EncodedObservation | None:
  """Encodes what a reply is shown next; None if its episode has ended."""
  return prepared.dialogue.observe(0, 0, replies) if prepared.dialogue else None
