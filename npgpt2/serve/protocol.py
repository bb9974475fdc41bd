"""The requests of OpenAI's clients, with their checks, and the errors in OpenAI's format.

https://platform.openai.com/docs/api-reference/completions and /embeddings. An unknown field is an
error that names it: the server never ignores a part of a request silently.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Prompts = Annotated[Any, Field(description="A text, a list of texts, ids, or a list of ids lists.")]
Model = Annotated[
    str | None, Field(description="The model's name from `GET /v1/models`. Optional.")
]
User = Annotated[str | None, Field(description="Ignored.")]


class ApiError(Exception):
    """An error in OpenAI's format.

    Attributes:
        status: HTTP status code.
        param: the wrong field; None if no field is wrong.
        code: a short word for programs.
        headers: additional HTTP headers.
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
    include_usage: bool = Field(False, description="Send token counts in a last chunk.")


class CompletionRequest(_Request):
    """`POST /v1/completions`: Generate text that continues prompts."""

    model: Model = None
    prompt: Prompts
    max_tokens: int = Field(
        16, ge=0, description="The largest number of tokens of each answer; a full context ends it "
        "earlier. With `echo`, 0 scores the prompt and generates nothing.",
    )  # fmt: skip
    temperature: float = Field(1.0, ge=0, description="0 is greedy; above 1 is flatter.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the fewest tokens whose probabilities sum to it."
    )
    n: int = Field(1, ge=1, le=128, description="Answers for each prompt.")
    stop: str | list[str] | None = Field(
        None, description="Up to 16 texts that end an answer; they are not part of it."
    )
    seed: int | None = Field(
        None, ge=0, lt=2**64, description="The same seed gives the same answer, whatever the load."
    )
    logprobs: int | None = Field(
        None, ge=0, le=5, description="Return log-probabilities of each token and of this many top "
        "tokens, from the model's logits before temperature, bias and filters.",
    )  # fmt: skip
    echo: bool = Field(False, description="Return the prompt before the answer.")
    logit_bias: dict[str, float] | None = Field(
        None, description="Token id → what is added to its logit, -100 to 100."
    )
    stream: bool = Field(False, description="Send the answer in pieces, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    top_k: int | None = Field(
        None, ge=1, description="Only the top k tokens. (Not an OpenAI option.)"
    )
    min_p: float | None = Field(
        None, gt=0, le=1, description="Sample from tokens at least this many times as probable as "
        "the best. (Not an OpenAI option.)",
    )  # fmt: skip
    repetition_penalty: float = Field(
        1.0, gt=0, le=100, description="Above 1, repetition is less likely. (Not an OpenAI option.)"
    )
    user: User = None
    best_of: Literal[1] | None = Field(None, description="Only 1.")
    frequency_penalty: Literal[0] | None = Field(None, description="Only 0.")
    presence_penalty: Literal[0] | None = Field(None, description="Only 0.")
    suffix: None = Field(None, description="Only null: GPT-2 generates from left to right.")


class EmbeddingRequest(_Request):
    """`POST /v1/embeddings`: The mean of the last hidden states (ln_f's output) over the tokens of
    each text. GPT-2 was not trained for embeddings."""

    model: Model = None
    input: Prompts
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64 is little-endian float32."
    )
    dimensions: int | None = Field(None, description="Only the model's width, n_embd.")
    user: User = None


def parse(body: bytes, kind: type[Any]) -> Any:
    """Parse and check a JSON body.

    Raises:
        ApiError: 400; the message names the wrong field.

    >>> parse(b'{"prompt": "a", "n": 1e6}', CompletionRequest)
    Traceback (most recent call last):
    npgpt2.serve.protocol.ApiError: n: got 1000000.0, input should be a valid integer
    """
    try:
        # Python refuses an int of 5,000 digits: it becomes infinity, which its field refuses.
        values = json.loads(body, parse_int=_whole)
    except (ValueError, RecursionError) as problem:
        deep = isinstance(problem, RecursionError)
        what = "nested too deep" if deep else str(problem).partition("\n")[0]
        raise ApiError(400, f"body: is not JSON ({what}), expected an object") from None
    if not isinstance(values, dict):
        shown = "null" if values is None else f"a {type(values).__name__}"
        raise ApiError(400, f"body: got {shown}, expected an object")
    # null means the default: some clients send it for arguments that were not given.
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
    """Whether a part of pydantic's `loc` names an alternative of a union type, not a field."""
    return isinstance(part, str) and (part in ("str", "int", "bool") or "[" in part)


def short(value: Any) -> str:
    """A value for an error message, in few characters.

    >>> short("float"), short("a b"), short(list(range(100)))
    ('float', "'a b'", 'a list of 100')
    """
    if isinstance(value, (list, dict)) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value):,}"
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= 40 else f"{text[:36]}…"


def prompts_of(value: Any, param: str) -> list[str | list[int]]:
    """One prompt or several, as text or ids → a list of prompts.

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
