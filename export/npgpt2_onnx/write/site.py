"""Write a static site that runs a GPT-2 in the browser, with onnxruntime's WebAssembly.

    SITE/index.html, worker.mjs    the page, and the worker that computes for it
    SITE/site.json                 the files that the page fetches, with their sizes
    SITE/model/                    model.onnx with every intermediate value as an output, lens.onnx,
                                   their weights, config.json, the vocabulary, and pieces.json with
                                   the text of each token
    SITE/vendor/                   onnxruntime-web and @huggingface/tokenizers, and their licences

The page loads files only from its own server. The two libraries are copied from an npm folder. The
same model always gives the same bytes.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from npgpt2 import GPT2
from npgpt2.base.errors import ConfigError, FileError, MissingPackage, OptionError, TokenizerError
from npgpt2.base.files import holds_only, named_errors, new_folder, read_file, read_json
from npgpt2.checkpoints.checkpoint import Checkpoint
from npgpt2.checkpoints.hub import resolve
from npgpt2.model.config import GPT2Config
from npgpt2.pictures.explain import WEB
from npgpt2.pictures.record import LENS, piece
from npgpt2.tokenizer.interface import Tokenizer
from npgpt2.tokenizer.load import load_tokenizer
from npgpt2_onnx.graph.language_model import OPSET
from npgpt2_onnx.graph.layout import layout
from npgpt2_onnx.graph.lens import build_lens
from npgpt2_onnx.run.exported import Exported
from npgpt2_onnx.write.clients import small_files, to_json
from npgpt2_onnx.write.save import FP32, export
from npgpt2_onnx.write.verify import check_lens, reference

Progress = Callable[[Iterable[Any], str], Iterable[Any]]

ASSETS = ("worker.mjs",)  # from `npgpt2.pictures`, next to index.html
INDEX, MANIFEST, LICENSES = "index.html", "site.json", "vendor/LICENSES.txt"
GRAPH, WEIGHTS, LENS_GRAPH = "model.onnx", "model.onnx_data", "lens.onnx"
PIECES = "pieces.json"
MODEL = (GRAPH, WEIGHTS, LENS_GRAPH, "config.json", "tokenizer.json", "tokenizer_config.json",
         PIECES)  # fmt: skip


class Package(NamedTuple):
    """A library on npm: its name, the files of its `dist` that the page loads, and its licence."""

    name: str
    version: str  # the tested version
    files: tuple[str, ...]
    license: str  # SPDX
    text: str | None = None  # of the licence; None: the package has a LICENSE file


MIT = """\
MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.

What ONNX Runtime itself is built from, and under which licences:
https://github.com/microsoft/onnxruntime/blob/main/ThirdPartyNotices.txt
"""

PACKAGES = (
    Package(
        "onnxruntime-web",
        "1.30.0",
        ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
        "MIT",
        MIT,
    ),
    Package("@huggingface/tokenizers", "0.2.0", ("tokenizers.min.mjs",), "Apache-2.0"),
)
INSTALL = " ".join(["npm install", *(f"{package.name}@{package.version}" for package in PACKAGES)])


def site(
    model: str | Path,
    out: str | Path,
    page: Callable[[GPT2Config], str],
    *,
    node_modules: str | Path | None = None,
    force: bool = False,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress = lambda loop, what: loop,
) -> Path:
    """Write a folder that any web server can serve, and return it.

    Args:
        model: a checkpoint folder of a language model, or a name on the hub.
        out: the folder to write.
        page: returns the text of index.html.
        node_modules: npm's folder with onnxruntime-web and @huggingface/tokenizers; None: the
            nearest `node_modules` with onnxruntime-web, from the current folder upwards.
        force: replace an existing site once the new one is good.
        progress: wraps the long loops.

    Raises:
        MissingPackage: one of the two libraries, or one of its files, is missing.
        ConfigError, TokenizerError: the page cannot show this model, or cannot tokenize its text.
        CheckFailed: a graph does not compute what NumPy computes; nothing was written.
        FileError, CheckpointError: reading or writing failed.
    """
    if str(out) == "":
        raise OptionError("out", "got '', expected a folder")
    modules = _nearest() if node_modules is None else Path(node_modules)
    for package in PACKAGES:
        _require_package(package, modules)
    checkpoint = Checkpoint.open(resolve(model, revision, token))
    _require_shown(checkpoint)
    pieces = _pieces(load_tokenizer(checkpoint.folder), checkpoint.config.vocab_size)
    with new_folder(Path(out), lambda there: _may_replace(there, force)) as work:
        _write_model(checkpoint, work / "model", progress)
        (work / "model" / PIECES).write_bytes(pieces)
        (work / "vendor").mkdir()
        for name, source in _copied(modules).items():
            with named_errors(source):
                shutil.copyfile(source, work / name)
        (work / LICENSES).write_bytes(_licenses(modules).encode())
        (work / MANIFEST).write_bytes(to_json(_manifest(work)))
        (work / INDEX).write_bytes(page(checkpoint.config).encode())
    return Path(out)


def _may_replace(folder: Path, force: bool) -> bool:
    """Like `save._may_replace`, for the files of a site."""
    names = {"model", "vendor", INDEX, MANIFEST, LICENSES, *_loaded()}
    return force and holds_only(folder, names.__contains__, "a site")


def _loaded() -> list[str]:
    """Return the files that a browser loads, without index.html and site.json."""
    vendor = (f"vendor/{file}" for package in PACKAGES for file in package.files)
    return [*ASSETS, *vendor, *(f"model/{name}" for name in MODEL)]


def _manifest(work: Path) -> dict[str, Any]:
    """Return the files that the worker fetches, with sizes for its progress bar (no scripts)."""
    fetched = [name for name in _loaded() if not name.endswith(".mjs")]
    sizes = {name: (work / name).stat().st_size for name in fetched}
    return {"bytes": sum(sizes.values()), "files": sizes}


# ── the model ────────────────────────────────────────────────────────────────────────────────────


def _require_shown(checkpoint: Checkpoint) -> None:
    """Raise ConfigError or TokenizerError if the page cannot show the model."""
    folder, config = checkpoint.folder, checkpoint.config
    if config.head != "lm_head":
        kind = config.architectures[0]
        raise ConfigError(f"{folder}: is a {kind}, expected a language model: the page generates "
                          "text. 'npgpt2 classify' runs it")  # fmt: skip
    if config.add_cross_attention:
        raise ConfigError(f"{folder}: attends to an encoder, expected a model without one: the "
                          "page has no encoder")  # fmt: skip
    if "tokenizer.json" not in small_files(checkpoint, [FP32]):
        raise TokenizerError(
            f"{folder}: has no tokenizer.json and no vocab.json, expected one of them: the page "
            "needs it to tokenize text"
        )


def _pieces(tokenizer: Tokenizer, count: int) -> bytes:
    """Return a JSON list of each token's `piece`, by id."""
    found = [piece(tokenizer, token) for token in range(count)]
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


def _write_model(checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    """Write the verified graphs, and the small files that the page reads."""
    export(checkpoint.folder, folder, graphs=["portable"], taps=True, progress=progress)
    for path in [*(folder / "onnx").iterdir()]:
        path.rename(folder / path.name)
    (folder / "onnx").rmdir()
    for path in [*folder.iterdir()]:
        if path.name not in MODEL:
            path.unlink()
    config = checkpoint.config
    # With all values under their usual names: a config.json may omit or rename some.
    (folder / "config.json").write_bytes(to_json(config.to_dict()))
    lens = build_lens(config, FP32, layout(config, FP32, WEIGHTS), OPSET, LENS)
    (folder / LENS_GRAPH).write_bytes(lens.SerializeToString(deterministic=True))
    model = reference(Exported.open(folder / GRAPH), "float32")
    assert isinstance(model, GPT2)
    check_lens(folder / LENS_GRAPH, model)


# ── the libraries ────────────────────────────────────────────────────────────────────────────────


def _nearest() -> Path:
    """Return the `node_modules` that Node would use; if there is none, the current folder's."""
    here = Path.cwd()
    places = [folder / "node_modules" for folder in (here, *here.parents)]
    return next((p for p in places if (p / PACKAGES[0].name).is_dir()), places[0])


def _require_package(package: Package, modules: Path) -> None:
    """Raise MissingPackage if a file of the package that this module needs is missing."""
    folder = modules / package.name
    needed = ["package.json", *(f"dist/{file}" for file in package.files)]
    for name in needed if package.text else [*needed, "LICENSE"]:
        if not (folder / name).is_file():
            raise MissingPackage(
                f"{folder / name}: no such file, expected the package "
                f"{package.name}@{package.version}. Run: {INSTALL}, or give the folder that has it "
                "with --node-modules"
            )


def _copied(modules: Path) -> dict[str, Path]:
    """Return the source path of each copied file, by its name in the site."""
    found = {name: WEB / name for name in ASSETS}
    for package in PACKAGES:
        dist = modules / package.name / "dist"
        found |= {f"vendor/{file}": dist / file for file in package.files}
    return found


def _licenses(modules: Path) -> str:
    """Return the name, version and licence text of each library."""
    parts = []
    for package in PACKAGES:
        folder = modules / package.name
        version = read_json(folder / "package.json", FileError).get("version")
        text = package.text or read_file(folder / "LICENSE").decode(errors="replace")
        head = f"{package.name} {version}, {package.license}: {', '.join(package.files)}"
        parts.append(f"{head}\n\n{text.strip()}\n")
    return f"\n{'─' * 80}\n\n".join(parts)
