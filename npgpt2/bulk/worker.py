"""One worker: an open model that processes one part after another."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from npgpt2.base.blas import openblas
from npgpt2.bulk.folder import Settings, write_part
from npgpt2.bulk.parts import Part, rows_of
from npgpt2.bulk.tasks import Embed, Generate, ScoreTexts, Task
from npgpt2.engines import ModelSpec, open_model
from npgpt2.generation.options import GenerationOptions


class Done(NamedTuple):
    """A finished part."""

    number: int
    rows: int
    errors: int
    tokens: int  # generated, scored or embedded


class Worker:
    """Opens the model on creation, with `threads` threads."""

    def __init__(self, settings: Settings, out: str, threads: int) -> None:
        self._settings, self._out = settings, Path(out)
        self._task = _open(settings, threads)

    def __call__(self, part: Part) -> Done:
        results = self._task(rows_of(part))
        write_part(self._out, part.number, self._settings, results)
        errors = sum("error" in result for result in results)
        tokens = sum(len(r["ids"]) if "ids" in r else r.get("tokens", 0) for r in results)
        return Done(part.number, part.rows, errors, tokens)


def _open(settings: Settings, threads: int) -> Task:
    if (blas := openblas()) is not None:  # else every worker would use every core
        blas.use(threads)
    spec = ModelSpec(settings.model, **settings.engine)
    if spec.engine == "onnx":
        spec = replace(spec, threads=threads)
    with contextlib.redirect_stderr(io.StringIO()):  # the main process has shown these notes
        model = open_model(spec)
    if settings.task == "generate":
        return Generate(model, GenerationOptions(**settings.options))
    return ScoreTexts(model) if settings.task == "score" else Embed(model)
