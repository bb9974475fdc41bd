"""Label text with a GPT-2 that has another head. The head decides what the command does.

GPT2ForSequenceClassification   the labels, or the reward, of each TEXT
GPT2ForTokenClassification      the label of each token of each TEXT
GPT2ForQuestionAnswering        two TEXTs, a question and a context: the answer in the context; with
                                --json also its first token and the token after its last
GPT2DoubleHeadsModel            the TEXTs are choices; the most probable comes first
"""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from npgpt2.base.errors import OptionError
from npgpt2.cli.inputs import add_engine, add_model, given_prompt, load_head
from npgpt2.cli.options import add_options
from npgpt2.cli.output import one_line, progress, say, table
from npgpt2.engines import ModelSpec

if TYPE_CHECKING:
    from npgpt2.heads import HeadModel

HELP = "label text with a classification, reward or question-answering model"
EXAMPLES = """examples:
  npgpt2 classify 'What a fine day' --model DIR
  npgpt2 classify 'Where is he?' 'He is in Verona.' --model DIR --json"""
SHOWN = 10  # labels of one text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts", metavar="TEXT", nargs="+", help="text to label; - reads standard input"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line per result")
    add_model(parser)
    add_options(parser, ModelSpec, "dtype", "strict")
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    texts = [given_prompt(text, "TEXT") for text in args.texts]
    model = load_head(args)
    found = FUNCTIONS[model.config.head](model, texts)
    if args.json:
        say(json.dumps(result, ensure_ascii=False) for result in found)
        return 0
    for result in found:
        if len(texts) > 1 and "text" in result:
            say([one_line(result["text"])])
        say(table(_rows(result), "rll"))
    return 0


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The rows of the printed table: a score, its text, and a label."""
    labels = result.get("labels", ())
    for one in labels[:SHOWN]:
        yield f"{one['score']:.4f}", one_line(one["label"]), ""
    if len(labels) > SHOWN:
        yield "", f"… and {len(labels) - SHOWN} more: --json prints all", ""
    for token in result.get("tokens", ()):
        yield f"{token['score']:.4f}", one_line(token["piece"]), one_line(token["label"])
    for choice in result.get("choices", ()):
        yield f"{choice['score']:.4f}", one_line(choice["text"]), ""
    if "answer" in result:
        yield f"{result['score']:.4f}", one_line(result["answer"]), ""


def _classify(model: "HeadModel", texts: list[str]) -> Iterator[dict[str, Any]]:
    for text in progress(texts, "classifying"):
        yield {"text": text, "labels": [one._asdict() for one in model.classify(text)]}


def _classify_tokens(model: "HeadModel", texts: list[str]) -> Iterator[dict[str, Any]]:
    for text in progress(texts, "classifying"):
        yield {"text": text, "tokens": [t._asdict() for t in model.classify_tokens(text)]}


def _answer(model: "HeadModel", texts: list[str]) -> Iterator[dict[str, Any]]:
    if len(texts) != 2:
        raise OptionError(
            "TEXT", f"got {len(texts)}, expected two: a question and a text with its answer"
        )
    found = model.answer(*texts)
    yield {"answer": found.text, "start": found.start, "end": found.end, "score": found.score}


def _choose(model: "HeadModel", texts: list[str]) -> Iterator[dict[str, Any]]:
    scores = zip(texts, model.choose(texts), strict=True)
    ordered = sorted(scores, key=lambda pair: -pair[1])
    yield {"choices": [{"text": text, "score": score} for text, score in ordered]}


FUNCTIONS = {
    "score": _classify,
    "classifier": _classify_tokens,
    "qa_outputs": _answer,
    "multiple_choice_head": _choose,
}
