"""The tasks: generate, score and embed. Each takes rows and returns results in their order.

A row that fails gets an error; it does not affect the others. Rows of similar length are computed
together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from npgpt2.base.arrays import Array
from npgpt2.base.errors import InputError, NpGPT2Error, TokenizerError
from npgpt2.bulk.parts import Row
from npgpt2.generation.batcher import Batcher, Job
from npgpt2.generation.language_model import LanguageModel, Piece, Writing
from npgpt2.generation.options import GenerationOptions
from npgpt2.generation.scoring import require_two

SLOTS = 16  # texts generated at the same time
TOKENS = 1024  # per forward pass, including padding: the logits of all take 0.2 GB

Result = dict[str, Any]
Encoded = list[tuple[int, list[int]]]  # (index of a row in its part, its ids)


@dataclass
class Task:
    """A task with an open model."""

    model: LanguageModel

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """A result for each row: `row`, `id` if it has one, and the task's fields or `error`."""
        found: list[Result] = [{"error": row.error} for row in rows]
        todo: Encoded = []
        for n, row in enumerate(rows):
            if row.prompt is not None:
                try:
                    todo.append((n, self.encode(row.prompt)))
                except (InputError, TokenizerError) as error:
                    found[n] = {"error": str(error)}
        todo.sort(key=lambda item: -len(item[1]))
        self.work(todo, rows, found)
        return [
            {"row": row.number, **({} if row.id is None else {"id": row.id}), **result}
            for row, result in zip(rows, found, strict=True)
        ]

    def encode(self, prompt: str | list[int]) -> list[int]:
        return self.model.encode(prompt)

    def work(self, todo: Encoded, rows: Sequence[Row], found: list[Result]) -> None:
        """Put the results of `todo`, which is sorted by length, longest first, into `found`."""
        raise NotImplementedError

    def together(
        self, todo: Encoded, found: list[Result], f: Callable[[list[list[int]]], list[Result]]
    ) -> None:
        """Call f with all lists of ids; if it fails, with each alone."""
        try:
            results = f([ids for _, ids in todo])
        except NpGPT2Error as error:
            if len(todo) == 1:
                found[todo[0][0]] = {"error": str(error)}
                return
            for item in todo:
                self.together([item], found, f)
            return
        for (n, _), result in zip(todo, results, strict=True):
            found[n] = result


@dataclass
class Generate(Task):
    """Texts that continue prompts. Row r draws the random numbers of sample r of the seed, so its
    text does not depend on the other rows."""

    options: GenerationOptions

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.model.slots(SLOTS))

    def work(self, todo: Encoded, rows: Sequence[Row], found: list[Result]) -> None:
        self._write(todo, rows, found)
        # A row may have failed because of others in its batch: try it again alone.
        for item in todo:
            if "error" in found[item[0]]:
                self._write([item], rows, found)

    def _write(self, todo: Encoded, rows: Sequence[Row], found: list[Result]) -> None:
        for n, ids in todo:
            text = self.model.writing(ids, self.options, rows[n].number)
            self.batcher.add(_Collecting(text, found, n).job)
        while self.batcher.step():
            pass


class _Collecting:
    """Collects the pieces of a text; when the text ends, its result goes into `found[n]`."""

    def __init__(self, text: Writing, found: list[Result], n: int) -> None:
        self._texts: list[str] = []
        self._ids: list[int] = []
        self._found, self._n = found, n
        self.job = Job(text, self._tell, self._fail)

    def _tell(self, piece: Piece, _: Array) -> None:
        self._texts.append(piece.text)
        self._ids += piece.ids
        if piece.finish is not None:
            text = "".join(self._texts)
            self._found[self._n] = {"text": text, "ids": self._ids, "finish_reason": piece.finish}

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, NpGPT2Error):
            raise error
        self._found[self._n] = {"error": str(error)}


@dataclass
class ScoreTexts(Task):
    """The perplexity of texts of any length, as in `npgpt2 score`."""

    def encode(self, prompt: str | list[int]) -> list[int]:
        ids = self.model.ids(prompt)
        require_two(ids)
        return ids

    def work(self, todo: Encoded, rows: Sequence[Row], found: list[Result]) -> None:
        if todo:
            self.together(todo, found, self._scored)

    def _scored(self, texts: list[list[int]]) -> list[Result]:
        return [
            {
                "tokens": score.tokens,
                "nats": score.nats,
                "perplexity": score.perplexity if math.isfinite(score.perplexity) else None,
                "bits_per_byte": score.bits_per_byte if score.bytes else None,
            }
            for score in self.model.scores(texts, together=TOKENS)
        ]


@dataclass
class Embed(Task):
    """The mean of a text's last hidden states."""

    def work(self, todo: Encoded, rows: Sequence[Row], found: list[Result]) -> None:
        while todo:
            count = max(1, TOKENS // len(todo[0][1]))  # the first text is the longest
            self.together(todo[:count], found, self._embedded)
            todo = todo[count:]

    def _embedded(self, texts: list[list[int]]) -> list[Result]:
        return [
            {"tokens": len(ids), "embedding": [float(x) for x in vector]}
            for ids, vector in zip(texts, self.model.embeds(texts), strict=True)
        ]
