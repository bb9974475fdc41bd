"""What OpenAI's clients send, checked, and the errors that they understand.

https://platform.openai.com/docs/api-reference/completions and /embeddings. A field that this server
does not know is refused by its name: what a client asks for is done, or it hears that it is not.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Prompts = Annotated[Any, Field(description="Text; a list of texts; ids; a list of lists of ids.")]
Model = Annotated[
    str | None, Field(description="The name that `GET /v1/models` gives. It may be left out.")
]
User = Annotated[str | None, Field(description="Ignored.")]


class ApiError(Exception):
    """A refusal, as OpenAI's clients know them.

    Attributes:
        status: of HTTP.
        param: the field that is wrong; None where it is not a field.
        code: one word for programs.
        headers: to send along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        told = {"message": self.message, "type": kinds.get(self.status, kind)}
        return {"error": {**told, "param": self.param, "code": self.code}}


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Request):
    include_usage: bool = Field(False, description="Count the tokens, in a last chunk.")


class CompletionRequest(_Request):
    """`POST /v1/completions`: Write on behind prompts."""

    model: Model = None
    prompt: Prompts
    max_tokens: int = Field(
        16, ge=0, description="At most so many tokens for each answer; the context's end comes "
        "first. 0 is for `echo`, which then only scores the prompt.",
    )  # fmt: skip
    temperature: float = Field(1.0, ge=0, description="0 is greedy; above 1 flattens.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Only the fewest tokens that have this probability together."
    )
    n: int = Field(1, ge=1, le=128, description="Answers to each of the prompts.")
    stop: str | list[str] | None = Field(
        None, description="Up to 16 texts that end an answer; they are not part of it."
    )
    seed: int | None = Field(
        None, ge=0, lt=2**64, description="The same seed, the same answer, whoever else is served."
    )
    logprobs: int | None = Field(
        None, ge=0, le=5, description="Log-probabilities of each token and of so many likeliest: "
        "the model's own, before temperature, bias and filters.",
    )  # fmt: skip
    echo: bool = Field(False, description="The prompt stands before the answer.")
    logit_bias: dict[str, float] | None = Field(
        None, description="By id: what is added to its logit, -100 to 100."
    )
    stream: bool = Field(False, description="Server-sent events, a piece at a time.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    top_k: int | None = Field(None, ge=1, description="Only so many tokens. (Not OpenAI's.)")
    min_p: float | None = Field(
        None, gt=0, le=1, description="Only tokens so many times as probable as the likeliest. "
        "(Not OpenAI's.)",
    )  # fmt: skip
    repetition_penalty: float = Field(
        1.0, gt=0, le=100, description="Above 1: what was said is less likely. (Not OpenAI's.)"
    )
    user: User = None
    best_of: Literal[1] | None = Field(None, description="Only 1.")
    frequency_penalty: Literal[0] | None = Field(None, description="Only 0.")
    presence_penalty: Literal[0] | None = Field(None, description="Only 0.")
    suffix: None = Field(None, description="Only null: the model writes from left to right.")


class EmbeddingRequest(_Request):
    """`POST /v1/embeddings`: The mean of the last hidden states (ln_f's output) over the tokens of
    each text. GPT-2 was not trained for this; it is what it has."""

    model: Model = None
    input: Prompts
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64 is of little-endian float32."
    )
    dimensions: int | None = Field(None, description="Only the model's own, n_embd.")
    user: User = None


def parse(body: bytes, kind: type[Any]) -> Any:
    """A body of JSON as the request that it should be.

    Raises:
        ApiError: 400, which names the field.

    >>> parse(b'{"prompt": "a", "n": 1e6}', CompletionRequest)
    Traceback (most recent call last):
    npgpt2.serve.protocol.ApiError: n: got 1000000.0, input should be a valid integer
    """
    try:
        # A number of 5,000 digits is no int (Python's limit): its field refuses what it gets.
        values = json.loads(body, parse_int=_whole)
    except (ValueError, RecursionError) as problem:
        deep = isinstance(problem, RecursionError)
        what = "nested too deep" if deep else str(problem).partition("\n")[0]
        raise ApiError(400, f"body: is not JSON ({what}), expected an object") from None
    if not isinstance(values, dict):
        shown = "null" if values is None else f"a {type(values).__name__}"
        raise ApiError(400, f"body: got {shown}, expected an object")
    # null is for "as it is by default": clients that pass on what they were not given send it.
    optional = {name for name, field in kind.model_fields.items() if not field.is_required()}
    values = {k: v for k, v in values.items() if v is not None or k not in optional}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    except RecursionError:
        raise ApiError(400, "body: nested too deep, expected an object") from None
    param = ".".join(str(part)[:40] for part in first["loc"] if not _is_arm(part))
    if first["type"] == "extra_forbidden":
        known = f", expected one of {', '.join(kind.model_fields)}" if "." not in param else ""
        raise ApiError(400, f"{param}: is not a field{known}", param)
    if first["type"] == "missing":
        raise ApiError(400, f"{param}: is missing", param)
    said = first["msg"][0].lower() + first["msg"][1:]
    raise ApiError(400, f"{param}: got {short(first['input'])}, {said}", param)


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else float("inf")


def _is_arm(part: Any) -> bool:
    """Whether it names an alternative of a type, as pydantic counts them in, not a field."""
    return isinstance(part, str) and (part in ("str", "int", "bool") or "[" in part)


def short(value: Any) -> str:
    """What was got, in few characters.

    >>> short("float"), short("a b"), short(list(range(100)))
    ('float', "'a b'", 'a list of 100')
    """
    if isinstance(value, (list, dict)) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value):,}"
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= 40 else f"{text[:36]}…"


def prompts_of(value: Any, param: str) -> list[str | list[int]]:
    """One prompt or several, as text or ids → several.

    >>> prompts_of([1, 2], "prompt"), prompts_of(["a", "b"], "prompt")
    ([[1, 2]], ['a', 'b'])
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(map(_is_id, value)):
            return [value]
        if all(isinstance(item, str) for item in value):
            return value
        if all(isinstance(item, list) and all(map(_is_id, item)) for item in value):
            return value
    raise ApiError(
        400, f"{param}: got {short(value)}, expected text, ids, or a list of either", param
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
