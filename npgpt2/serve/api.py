"""The application: the paths and their answers, compatible with OpenAI's API.

`/v1/completions` generates text: a request becomes texts (`Writing`) on a `Ticket` of the engine,
and their pieces become parts of the answer, streamed or collected.
"""

import asyncio
import base64
import json
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import anyio
import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Lifespan, Receive, Scope, Send

from npgpt2.base.errors import InputError, NpGPT2Error, OptionError, TokenizerError
from npgpt2.generation.language_model import LanguageModel, Writing, fresh_seed
from npgpt2.generation.options import GenerationOptions
from npgpt2.serve.engine import Chosen, Engine, Ticket
from npgpt2.serve.guard import ALIVE, Guard, refusal
from npgpt2.serve.pages import docs_page, front_page
from npgpt2.serve.protocol import (
    ApiError,
    CompletionRequest,
    EmbeddingRequest,
    parse,
    prompts_of,
    short,
)

MAX_BODY = 1 << 20  # bytes; a full context of GPT-2 has a few thousand
BODY_SECONDS = 20.0  # to receive the whole body
MAX_STOP = 1000  # characters; each new token is compared with all of them
MAX_BIAS = 1024  # ids; they are applied for each token


@dataclass
class Service:
    """The state that all paths share."""

    engine: Engine
    name: str
    debug: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    # One text at a time: embedding shares the processor with generation.
    embedder: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "npgpt2 embedder")
    )

    def require_name(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise ApiError(
                404, f"model: got {short(name)}, expected {self.name}", "model", "model_not_found"
            )


def application(
    service: Service,
    hosts: Iterable[str] | None = None,
    keys: Iterable[str] = (),
    lifespan: Lifespan[Starlette] | None = None,
) -> Guard:
    """The ASGI application with its guard. The caller, or `lifespan`, starts and drains
    `service.engine`."""
    paths: dict[str, tuple[str, Callable[[Service, Request], Awaitable[Response]]]] = {
        "/v1/completions": ("POST", completions),
        "/v1/embeddings": ("POST", embeddings),
        "/v1/models": ("GET", models),
        "/v1/models/{name:path}": ("GET", one_model),
        ALIVE: ("GET", alive),
        "/readyz": ("GET", ready),
        "/metrics": ("GET", metrics),
        "/docs": ("GET", docs),
        "/": ("GET", front),
    }

    def bound(answer: Callable[[Service, Request], Awaitable[Response]]) -> Any:
        async def endpoint(request: Request) -> Response:
            try:
                return await answer(service, request)
            except ApiError as error:
                return refusal(error, close=error.status in (408, 411, 413, 415))
            except ClientDisconnect:
                return Response(status_code=499)  # the client is gone
            except Exception as error:
                return refusal(internal(service, error))

        return endpoint

    app = Starlette(
        routes=[Route(p, bound(answer), methods=[how]) for p, (how, answer) in paths.items()],
        exception_handlers={HTTPException: _no_such_path},
        lifespan=lifespan,
    )
    return Guard(app, service.engine.metrics, hosts, keys, [p for p in paths if "{" not in p])


async def _no_such_path(request: Request, error: Any) -> Response:
    text = str(error.detail)
    if error.status_code == 404:
        talk = request.url.path.startswith(("/v1/chat", "/v1/responses"))
        text = "no such path. See /docs"
        if talk:
            text = "no such path: GPT-2 is not a chat model. Use /v1/completions"
    elif error.status_code == 405:
        allowed = dict(error.headers or {}).get("Allow", "another method")
        text = f"{request.method}: expected {allowed}. See /docs"
    return refusal(ApiError(error.status_code, text, headers=error.headers))


def internal(service: Service, error: Exception) -> ApiError:
    """An unexpected error → 500. Its text may contain a prompt: the log has only type and place."""
    if service.debug:
        traceback.print_exception(error)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {frame.name}, line {frame.lineno}" for frame in place)
    print(f"npgpt2: error: {type(error).__name__}{where}", file=sys.stderr, flush=True)
    said = str(error) if isinstance(error, NpGPT2Error) else type(error).__name__
    return ApiError(500, f"the model failed: {said}", None, "internal")


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


async def body_of(request: Request) -> bytes:
    """The JSON body of a request, with limits on size and time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site cannot send this without a preflight
        raise ApiError(
            415, f"Content-Type: got {short(kind)}, expected application/json", "Content-Type"
        )
    length = request.headers.get("content-length")
    if length is None and "transfer-encoding" not in request.headers:
        raise ApiError(411, "Content-Length: is missing", "Content-Length")
    too_long = ApiError(413, f"body: is longer than {MAX_BODY:,} bytes. Split the request", "body")
    if length is not None and int(length) > MAX_BODY:
        raise too_long
    read = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in request.stream():
                read += chunk
                if len(read) > MAX_BODY:
                    raise too_long
    except TimeoutError:
        raise ApiError(408, f"body: did not arrive within {BODY_SECONDS:g} s", "body") from None
    return bytes(read)


async def _asked(
    service: Service, request: Request, kind: type[Any], texts: str
) -> tuple[LanguageModel, Any, list[Any]]:
    """The model, the parsed request, and the texts in its field `texts`."""
    model = service.engine.require_ready()
    asked = parse(await body_of(request), kind)
    service.require_name(asked.model)
    return model, asked, prompts_of(getattr(asked, texts), texts)


def _encoded(model: LanguageModel, prompts: list[Any], param: str) -> list[list[int]]:
    """Prompts → ids; raises ApiError. Called in a thread: a megabyte takes time to encode."""
    ids = []
    for n, prompt in enumerate(prompts):
        where = param if len(prompts) == 1 else f"{param}.{n}"
        try:
            ids.append(model.encode(prompt, param))
        except (InputError, TokenizerError) as error:
            text = str(error)
            for what in ("prompt: ", "input: ", "text: "):
                text = text.removeprefix(what)
            raise ApiError(400, f"{where}: {text}", where) from None
    return ids


def options_of(asked: CompletionRequest) -> GenerationOptions:
    """A request's options as `GenerationOptions`."""
    bias = {}
    for token, number in (asked.logit_bias or {}).items():
        if not token.isdecimal() or len(token) > 9:
            raise ApiError(
                400, f"logit_bias: got {short(token)}, expected a token id", "logit_bias"
            )
        bias[int(token)] = number
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if len(stop) > 16:
        raise ApiError(400, f"stop: got {len(stop)} texts, expected at most 16", "stop")
    if (longest := max(map(len, stop), default=0)) > MAX_STOP:
        text = f"stop: got {longest:,} characters, expected at most {MAX_STOP:,}"
        raise ApiError(400, text, "stop")
    if len(bias) > MAX_BIAS:
        text = f"logit_bias: got {len(bias):,} ids, expected at most {MAX_BIAS:,}"
        raise ApiError(400, text, "logit_bias")
    try:
        return GenerationOptions(
            max_new_tokens=max(1, asked.max_tokens),
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            min_p=asked.min_p,
            repetition_penalty=asked.repetition_penalty,
            logit_bias=bias,
            stop=tuple(stop),
            seed=fresh_seed() if asked.seed is None else asked.seed,
        )
    except OptionError as error:
        raise ApiError(400, str(error), error.option) from None


# ── completions ──────────────────────────────────────────────────────────────────────────────────


class Part(NamedTuple):
    """What one step adds to one choice of an answer."""

    number: int
    text: str
    logprobs: dict[str, list[Any]] | None
    finish: str | None


@dataclass
class Answering:
    """A valid completion request: its texts, and their parts as they are generated."""

    asked: CompletionRequest
    model: LanguageModel
    prompts: list[Any]
    ids: list[list[int]]
    texts: list[Writing]
    written: int = 0

    @classmethod
    def of(cls, asked: CompletionRequest, model: LanguageModel, prompts: list[Any]) -> "Answering":
        """Raises ApiError. Called in a thread."""
        options = options_of(asked)
        if asked.max_tokens == 0 and not asked.echo:
            raise ApiError(400, "max_tokens: got 0, expected at least 1, or echo", "max_tokens")
        if asked.stream_options is not None and not asked.stream:
            raise ApiError(400, "stream_options: needs stream. Leave it out", "stream_options")
        ids = _encoded(model, prompts, "prompt")
        try:
            texts = [model.writing(one, options, n) for one in ids for n in range(asked.n)]
        except OptionError as error:
            raise ApiError(400, str(error), error.option) from None
        return cls(asked, model, prompts, ids, texts)

    async def parts(self, ticket: Ticket) -> AsyncIterator[Part]:
        """The parts as they are generated. OpenAI's API has two finish reasons: stop and length."""
        asked = self.asked
        ticket.submit(self.texts, asked.logprobs, asked.echo, write=asked.max_tokens > 0)
        tellers = [self._teller(n // asked.n) for n in range(len(self.texts))]
        async for heard in ticket:
            finish = heard.piece.finish
            self.written += len(heard.piece.ids)
            text, logprobs = tellers[heard.number].take(heard.piece.text, heard.chosen, finish)
            told = {"eos": "stop", "context": "length"}.get(finish or "", finish)
            if text or logprobs or told:
                yield Part(heard.number, text, logprobs, told)

    def _teller(self, prompt: int) -> "Teller":
        given = self.prompts[prompt]
        if self.asked.echo and not isinstance(given, str):
            given = self.model.tokenizer.decode(self.ids[prompt])
        return Teller(self.model, given if self.asked.echo else "", self.asked.logprobs is not None)

    def usage(self) -> dict[str, int]:
        read = sum(map(len, self.ids))
        return {
            "prompt_tokens": read,
            "completion_tokens": self.written,
            "total_tokens": read + self.written,
        }


class Teller:
    """Text and, on request, log-probabilities of one choice. Each token comes with the text in
    which it begins."""

    def __init__(self, model: LanguageModel, before: str, thinks: bool) -> None:
        self._model, self._before, self._thinks = model, before, thinks
        self._shown, self._offset = 0, 0
        self._decoder = model.tokenizer.decoder()
        self._held: list[tuple[int, Chosen]] = []  # (offset of its text, its log-probability)

    def take(
        self, text: str, chosen: list[Chosen], finish: str | None
    ) -> tuple[str, dict[str, list[Any]] | None]:
        text, self._before = self._before + text, ""
        self._shown += len(text)
        if not self._thinks:
            return text, None
        for one in chosen:
            self._held.append((self._offset, one))
            self._offset += len(self._decoder.push(one.token))
        # Held-back text may begin a stop text; the tokens of a stop text are not returned.
        told = [(at, one) for at, one in self._held if at < self._shown]
        self._held = self._held[len(told) :] if finish is None else []
        if not told:
            return text, None
        return text, {
            "tokens": [self._name(one.token) for _, one in told],
            "token_logprobs": [one.logprob for _, one in told],
            "top_logprobs": [
                {self._name(t): p for t, p in one.top} if one.top else None for _, one in told
            ],
            "text_offset": [at for at, _ in told],
        }

    def _name(self, token: int) -> str:
        """A token as text; part of a character as its bytes, in OpenAI's notation."""
        raw = self._model.tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


async def completions(service: Service, request: Request) -> Response:
    model, asked, prompts = await _asked(service, request, CompletionRequest, "prompt")
    ticket = service.engine.admit(len(prompts) * asked.n, "n" if asked.n > 1 else "prompt")
    try:
        answering = await asyncio.to_thread(Answering.of, asked, model, prompts)
    except BaseException:
        ticket.close()
        raise
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.name,
    }
    if asked.stream:
        return Streamed(_events(service, answering, ticket, head), ticket)
    choices = await _unless_gone(request, _collected(answering, ticket), ticket)
    if choices is None:
        return Response(status_code=499)  # the client is gone
    return JSONResponse({**head, "choices": choices, "usage": answering.usage()})


async def _collected(answering: Answering, ticket: Ticket) -> list[dict[str, Any]]:
    choices: list[dict[str, Any]] = [
        {"text": "", "index": n, "logprobs": None, "finish_reason": None}
        for n in range(len(answering.texts))
    ]
    async for part in answering.parts(ticket):
        choice = choices[part.number]
        choice["text"] += part.text
        choice["finish_reason"] = part.finish
        if part.logprobs is not None and choice["logprobs"] is None:
            choice["logprobs"] = part.logprobs
        elif part.logprobs is not None:
            for name, values in part.logprobs.items():
                choice["logprobs"][name] += values
    return choices


async def _events(
    service: Service, answering: Answering, ticket: Ticket, head: Mapping[str, Any]
) -> AsyncIterator[str]:
    asked = answering.asked
    counts = asked.stream_options is not None and asked.stream_options.include_usage
    more = {"usage": None} if counts else {}

    def event(choices: list[dict[str, Any]], **rest: Any) -> str:
        return f"data: {json.dumps({**head, 'choices': choices, **rest})}\n\n"

    try:
        async for part in answering.parts(ticket):
            choice = {"text": part.text, "index": part.number, "logprobs": part.logprobs}
            yield event([choice | {"finish_reason": part.finish}], **more)
        if counts:
            yield event([], usage=answering.usage())
        yield "data: [DONE]\n\n"
    except Exception as problem:
        error = problem if isinstance(problem, ApiError) else internal(service, problem)
        yield f"data: {json.dumps(error.body)}\n\n"


class Streamed(StreamingResponse):
    """Server-sent events. The ticket is closed when the answer ends or the client disconnects, even
    before the first event."""

    def __init__(self, events: AsyncIterator[str], ticket: Ticket) -> None:
        headers = {"Cache-Control": "no-store"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._ticket:
            await super().__call__(scope, receive, send)


async def _gone(request: Request) -> None:
    """Wait until the client disconnects. Its body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(request: Request, work: Awaitable[Any], ticket: Ticket) -> Any:
    """The result of `work`; if the client disconnects first, cancel `work` and return None."""
    with ticket:
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return tasks[0].result() if tasks[0].done() else None
        finally:
            for task in tasks:
                task.cancel()


# ── other paths ──────────────────────────────────────────────────────────────────────────────────


async def embeddings(service: Service, request: Request) -> Response:
    model, asked, inputs = await _asked(service, request, EmbeddingRequest, "input")
    width = model.config.n_embd
    if asked.dimensions not in (None, width):
        text = f"dimensions: got {asked.dimensions}, expected {width}, the model's own"
        raise ApiError(400, text, "dimensions")
    found, loop = [], asyncio.get_running_loop()
    gone = asyncio.ensure_future(_gone(request))
    try:
        # The ticket stays open until the thread has finished its text, even if the client is gone.
        with service.engine.admit(len(inputs), "input"):
            ids = await asyncio.to_thread(_encoded, model, inputs, "input")
            for one in ids:
                if gone.done():
                    return Response(status_code=499)  # the client is gone
                found.append(await loop.run_in_executor(service.embedder, model.embed, one))
    finally:
        gone.cancel()
    read = sum(map(len, ids))
    data = [
        {"object": "embedding", "index": n, "embedding": _spelled(vector, asked.encoding_format)}
        for n, vector in enumerate(found)
    ]
    usage = {"prompt_tokens": read, "total_tokens": read}
    return JSONResponse({"object": "list", "data": data, "model": service.name, "usage": usage})


def _spelled(vector: Any, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return np.asarray(vector, np.float64).tolist()


def _about(service: Service) -> dict[str, Any]:
    return {
        "id": service.name, "object": "model", "created": service.created, "owned_by": "npgpt2"
    }  # fmt: skip


async def models(service: Service, request: Request) -> Response:
    service.engine.require_ready()
    return JSONResponse({"object": "list", "data": [_about(service)]})


async def one_model(service: Service, request: Request) -> Response:
    service.engine.require_ready()
    service.require_name(request.path_params["name"])
    return JSONResponse(_about(service))


async def alive(service: Service, request: Request) -> Response:
    return JSONResponse({"status": "alive"})


async def ready(service: Service, request: Request) -> Response:
    service.engine.require_ready()
    return JSONResponse({"status": "ready"})


async def metrics(service: Service, request: Request) -> Response:
    return Response(service.engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def docs(service: Service, request: Request) -> Response:
    return HTMLResponse(docs_page(service.name, str(request.base_url).rstrip("/")))


async def front(service: Service, request: Request) -> Response:
    return HTMLResponse(front_page(service.name))
