"""A chat completion request, as OpenAI's clients write it, read as one question on one video."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated, Any, Literal

import pydantic

from vo3.agent import lettered
from vo3.chat.options import find_options
from vo3.rollout.errors import OptionError
from vo3.serve import media
from vo3.serve.errors import ApiError, invalid, shown
from vo3.serve.settings import Settings
from vo3.serve.uploads import Uploads

# Characters for each token of the context, at most: several times what texts take. What is longer fits no context, and is refused before
# it is looked at: the thread that tokenises a question writes everybody's answers too.
_DENSEST = 16
# What changes no answer of this server, whatever it says. The last ones are other servers': how a video is sampled and a prompt is laid out
# are the agent's own here.
_IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
     "prompt_cache_retention", "reasoning_effort", "verbosity",
     "media_io_kwargs", "mm_processor_kwargs", "chat_template_kwargs")
)  # fmt: skip
# What this server cannot do, and the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1, None),
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "repetition_penalty": (1, None),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "stop": (None, [], ""),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "moderation": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
}


class _Open(pydantic.BaseModel):
    """Other keys are looked at by hand, for a better message."""

    model_config = pydantic.ConfigDict(extra="allow", strict=False)


class _Closed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class _Url(_Closed):
    url: str
    detail: str | None = None  # OpenAI's, for pictures; ignored: quotas decide on sizes


class _File(_Closed):
    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


# Both ways to write one thing are read as the longer one: a union would put its own words into errors.
_AnyUrl = Annotated[_Url, pydantic.BeforeValidator(lambda given: {"url": given} if isinstance(given, str) else given)]  # fmt: skip


class _Part(_Closed):
    type: str
    text: str | None = None
    video_url: _AnyUrl | None = None
    image_url: _AnyUrl | None = None
    file: _File | None = None


def _as_parts(given: Any) -> Any:
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


class _Message(_Open):
    role: str
    content: Annotated[list[_Part] | None, pydantic.BeforeValidator(_as_parts)] = None


class Extension(_Closed):
    """The field `vo3` of a request: what only this server knows.

    Attributes:
      options: letter -> text, or the texts in order; None: read from the question's text; False: it has none, whatever it looks like.
      frame_fps: rate at which the pictures of a request were taken from their video.
      max_turns: rounds in which the model may look.
      top_k: most likely tokens that are drawn from.
      trajectory: whether the answer carries the whole conversation.
      events: whether a stream tells of every turn and token; "html" adds pieces of the page.
    """

    options: dict[str, str] | list[str] | Literal[False] | None = None
    frame_fps: Annotated[float, pydantic.Field(gt=0, le=1000)] = 1.0
    max_turns: Annotated[int, pydantic.Field(ge=1, le=64)] | None = None
    top_k: Annotated[int, pydantic.Field(ge=0, lt=2**31)] | None = None
    trajectory: bool = True
    events: bool | Literal["html"] = False


class _StreamOptions(_Open):
    include_usage: bool = False


class ChatRequest(_Open):
    """The body of POST /v1/chat/completions."""

    model: str | None = None
    messages: Annotated[list[_Message], pydantic.Field(min_length=1, max_length=64)]
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, pydantic.Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    seed: int | None = None
    max_tokens: Annotated[int, pydantic.Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, pydantic.Field(ge=1)] | None = None
    vo3: Extension = Extension()


@dataclasses.dataclass
class Ask:
    """What a request asks for.

    Attributes:
      question, options, video: the task.
      temperature, top_p, top_k, seed: None: the server's.
      max_tokens: in one turn; None: the server's.
      max_turns: rounds with looks; None: the server's.
      stream, include_usage, extension: how the answer is wanted.
    """

    question: str
    options: dict[str, str] | None
    video: media.Media
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    max_tokens: int | None
    max_turns: int | None
    stream: bool
    include_usage: bool
    extension: Extension


def read(body: bytes, settings: Settings, uploads: Uploads, *, context: int) -> Ask:
    """What the body of a request asks for.

    Args:
      body: JSON.
      settings, uploads: of the server.
      context: tokens of the model's longest context.

    Raises:
      ApiError: what is wrong with it, and what to do.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise _validation(error) from None
    _check_fields(request)
    if request.model is not None and request.model != settings.model:
        raise ApiError(404, "model_not_found", f"there is no model {shown(request.model)} here; ask for {settings.model!r}", param="model")  # fmt: skip
    text, video = _parts(request, settings, uploads)
    _check_length(text, request.vo3.options, context)
    options, question = _options(request.vo3.options, text)
    if not question.strip():
        raise invalid("there is no question in the messages; add a text part", param="messages")
    return Ask(
        question=question,
        options=options,
        video=video,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.vo3.top_k,
        seed=None if request.seed is None else request.seed % 2**32,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        max_turns=request.vo3.max_turns,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        extension=request.vo3,
    )


def _validation(error: pydantic.ValidationError) -> ApiError:
    """The first fault, by its place in the request; what the client wrote there is not repeated."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(shown(part) for part in first["loc"]) or None
    unknown = first["type"] == "extra_forbidden"
    message = "is not known here; remove it" if unknown else first["msg"]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    code = "unknown_field" if unknown else "invalid_value"
    return invalid(f"{where or 'the body'}: {shown(message, 200)}{more}", param=where, code=code)


def _check_fields(request: ChatRequest) -> None:
    known = set(ChatRequest.model_fields) | _IGNORED | set(_NEUTRAL)
    for name, value in (request.model_extra or {}).items():
        if name in _IGNORED:
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else "; remove it"
            raise invalid(f"the field {shown(name)} is not known{hint}", param=shown(name), code="unknown_field")  # fmt: skip
        if value not in _NEUTRAL[name]:
            raise invalid(f"{name}: not supported here; leave it out", param=name, code="unsupported_value")  # fmt: skip


def _check_length(text: str, options: Any, context: int) -> None:
    given = options.values() if isinstance(options, dict) else options or ()
    length, most = len(text) + sum(map(len, given)), _DENSEST * context
    if length > most:
        raise ApiError(
            413, "text_too_long",
            f"the question and its options have {length:,} characters, and this server takes {most:,}, more than the model's context of "
            f"{context:,} tokens holds; shorten them", param="messages")  # fmt: skip


def _parts(request: ChatRequest, settings: Settings, uploads: Uploads) -> tuple[str, media.Media]:
    """The text of all messages, and the one video among them."""
    texts: list[str] = []
    videos: list[media.Media] = []
    pictures: list[tuple[str, bytes]] = []
    for number, message in enumerate(request.messages):
        where = f"messages.{number}"
        if message.role not in ("system", "developer", "user"):
            raise invalid(
                f"{where}.role is {shown(message.role)}; this model answers one question at a time: send the question alone, "
                "in user messages, without earlier answers", param=f"{where}.role", code="unsupported_role")  # fmt: skip
        for index, part in enumerate(message.content or ()):
            at = f"{where}.content.{index}"
            if part.type in ("text", "input_text"):
                texts.append(part.text or "")
            elif part.type in ("video_url", "input_video"):
                videos.append(media.video(_url(part.video_url, at), settings, uploads, param=at))
            elif part.type in ("image_url", "input_image"):
                pictures.append(media.picture(_url(part.image_url, at), settings, param=at))
            elif part.type == "file":
                videos.append(_file(part.file, settings, uploads, at))
            else:
                raise invalid(f"{at}.type is {shown(part.type)}; send text, video_url, image_url or file", param=f"{at}.type")  # fmt: skip
    if len(pictures) > settings.limits.images:
        raise invalid(f"{len(pictures)} pictures; this server takes {settings.limits.images}", param="messages")  # fmt: skip
    if len(videos) + bool(pictures) != 1:
        what = "no video" if not videos and not pictures else f"{len(videos)} videos" if not pictures else f"{len(videos)} videos and {len(pictures)} pictures"  # fmt: skip
        raise invalid(
            f"{what} in the messages; a question is asked on one video: one video_url or file part, or pictures alone, which are taken as "
            "its frames in order", param="messages", code="one_video")  # fmt: skip
    found = videos[0] if videos else media.Pictures(f"{len(pictures)} pictures", pictures, request.vo3.frame_fps)  # fmt: skip
    return "\n".join(text for text in texts if text.strip()), found


def _url(given: _Url | None, at: str) -> str:
    if given is None:
        raise invalid(f"{at} has no address; write it as {{'url': ...}}", param=at)
    return given.url


def _file(file: _File | None, settings: Settings, uploads: Uploads, at: str) -> media.Media:
    if file is None or (file.file_id is None) == (file.file_data is None):
        raise invalid(f"{at}.file holds a file_id or file_data, one of them", param=f"{at}.file")
    if file.file_id is not None:
        return media.Uploaded.find(file.file_id, uploads, param=f"{at}.file.file_id")
    if not file.file_data.lower().startswith("data:"):
        raise invalid(f"{at}.file.file_data is no data URL; write it as data:video/mp4;base64,...", param=f"{at}.file")  # fmt: skip
    found = media.video(file.file_data, settings, uploads, param=f"{at}.file.file_data")
    found.label = shown(file.filename or found.label, 200)
    return found


def _options(given: Any, text: str) -> tuple[dict[str, str] | None, str]:
    if given is False:
        return None, text
    if given is None:
        found = find_options(text)
        if found is None:
            return None, text.strip()
        return found.options, "\n".join(filter(None, (found.before, found.after)))
    try:
        options = lettered(given)
    except OptionError as error:
        raise invalid(f"vo3.options: {error}", param="vo3.options") from None
    if options is not None and len(options) < 2:
        raise invalid("vo3.options: one option leaves no choice; give two or more", param="vo3.options")  # fmt: skip
    return options, text
