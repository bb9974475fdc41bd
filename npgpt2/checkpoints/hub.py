"""A folder or a hub name → a local folder. The optional package `huggingface_hub` does the access.

Cache, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN and revisions work as in transformers, because it uses
the same package.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from npgpt2.base.errors import FileError, MissingPackage, NpGPT2Error
from npgpt2.checkpoints.formats.find import INDEX, SINGLE, TORCH, TORCH_INDEX, weight_map
from npgpt2.tokenizer import files as vocabulary

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

# The files that a checkpoint needs besides its weights. Other frameworks' files are not downloaded.
FILES = ("config.json", "generation_config.json", *vocabulary.FILES)

# The weights, in the order of preference: safetensors files contain no pickles.
WEIGHTS = (SINGLE, INDEX, TORCH, TORCH_INDEX)
INDICES = (INDEX, TORCH_INDEX)

# OpenAI's models have two names. Online, the hub redirects; offline, the cache knows only the name
# under which a model was downloaded.
ALIASES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
ALIASES |= {long: short for short, long in ALIASES.items()}

# The folder name of the model that comes with the package: inside the package in a wheel, next to
# it in a clone.
EMBEDDED = "shakespeare"

REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve(
    name: str | Path, revision: str | None = None, token: str | None = None, weights: bool = True
) -> Path:
    """The local folder of a checkpoint: `name` if it is one, the embedded model, or a download.

    If the hub cannot be reached or refuses, the cache is used, as in transformers.

    Args:
        revision: branch, tag or commit on the hub.
        token: access token of the hub, instead of HF_TOKEN.
        weights: False if config and vocabulary are enough.

    Raises:
        FileError: `name` is neither a folder nor a hub name; or there is no network and it is not
            in the cache; or the cache cannot be written.
        MissingPackage: a hub name, but `huggingface_hub` is not installed.

    >>> resolve("tests/data/tiny").name
    'tiny'
    """
    if os.path.isdir(name):  # Path("") would be the current folder
        return Path(name)
    if str(name) == EMBEDDED:
        return embedded()
    if os.path.exists(name):
        raise FileError(
            f"{name}: is a file, expected a folder with config.json. Convert a file of nanoGPT or "
            "llm.c with 'npgpt2 convert'"
        )
    name = str(name)
    if not REPO_ID.fullmatch(name):
        raise FileError(
            f"{name or repr(name)}: no such folder. Expected a checkpoint folder or a hub name"
        )
    require_library(f"{name}: no such folder, and a hub name needs")
    try:
        with told(name, revision, looked=True):
            fixed = revision and COMMIT.fullmatch(revision)
            if fixed and (folder := _cached(name, revision, weights)):
                return folder  # a commit never changes: no request needed
            return into_cache(name, ask(name, revision, token), revision, token, weights)
    except Unreachable as error:
        for known in filter(None, (name, ALIASES.get(name))):
            if folder := _cached(known, revision, weights):
                return folder
        raise FileError(str(error)) from None


def embedded() -> Path:
    """The folder of the model that comes with the package.

    Raises:
        FileError: it does not exist.

    >>> embedded().name
    'shakespeare'
    """
    package = Path(__file__).parents[1]
    places = (package / "weights" / EMBEDDED, package.parent / "weights" / EMBEDDED)
    for place in places:
        if place.is_dir():
            return place
    raise FileError(f"{places[0]}: the embedded model is missing. Install npgpt2 again")


def require_library(why: str) -> None:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise MissingPackage(f"{why} huggingface_hub. Run: pip install 'npgpt2[hub]'") from None


def ask(name: str, revision: str | None, token: str | None, sums: bool = False) -> "ModelInfo":
    """The hub's description of a model; with `sums` also the size and checksum of each file."""
    from huggingface_hub import HfApi, constants

    # The only request for which the package has no timeout by default.
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = HfApi().model_info(
        name, revision=revision, token=token, timeout=timeout, files_metadata=sums
    )
    there = names(info)
    if "config.json" not in there:
        raise FileError(
            f"{name}: has no config.json on the hub, expected a transformers checkpoint"
        )
    for file in info.siblings or () if sums else ():
        if file.size is None or not (file.lfs or file.blob_id):
            raise FileError(
                f"{name}: the hub at {constants.ENDPOINT} sent no size or checksum of "
                f"{file.rfilename}, expected both. Use '--model {name}' to load it unchecked"
            )
    return info


def names(info: "ModelInfo") -> set[str]:
    return {file.rfilename for file in info.siblings or ()}


def weights_of(name: str, info: "ModelInfo") -> str:
    """The weights file, or the index of its shards, to use of those in the repository."""
    there = names(info)
    for file in WEIGHTS:
        if file in there:
            return file
    other = sorted(f for f in there if f.endswith((".bin", ".ckpt", ".h5", ".msgpack")))
    raise FileError(
        f"{name}: has no {SINGLE} and no {TORCH} on the hub"
        f"{f', only {other[0]}' if other else ''}. "
        "Save it as safetensors with the package that reads this format"
    )


def into_cache(
    name: str, info: "ModelInfo", revision: str | None, token: str | None, weights: bool
) -> Path:
    """The snapshot of a model in the cache; downloads the missing files.

    It downloads file by file, as transformers does: Ctrl-C stops at once, and cached files show no
    bars. `snapshot_download` first finishes its current files, and always shows bars.
    """
    from huggingface_hub import hf_hub_download

    def get(file: str, at: str | None) -> Path:
        return Path(hf_hub_download(name, file, revision=at, token=token))

    there, main = names(info), weights_of(name, info) if weights else None
    # The first file by its revision: the cache then stores its commit, the name of the folder. The
    # others by this commit: so all files belong together even if someone pushes meanwhile.
    folder = get("config.json", revision).parent
    for file in (*FILES, *filter(None, [main])):
        if file in there:
            get(file, folder.name)
    for file in shards(folder / main) if main in INDICES else ():
        if file in there:
            get(file, folder.name)
    return folder


def _cached(name: str, revision: str | None, weights: bool) -> Path | None:
    """The snapshot of a model in the cache, if config and (with `weights`) weights are complete."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError as error:
        # The snapshot lacks files of the repository. That is normal: npgpt2 and transformers each
        # download only some of them. Below it is checked that ours are there.
        snapshot = getattr(error, "snapshot_path", None)
        if snapshot is None:
            return None
        folder = Path(snapshot)
    if not (folder / "config.json").exists():
        return None
    main = next((file for file in WEIGHTS if (folder / file).exists()), None)
    files = shards(folder / main) if main in INDICES else [main] if main else []
    complete = files and all((folder / file).exists() for file in files)
    return folder if complete or not weights else None


def shards(index: Path) -> list[str]:
    """The shards that an index names; none if the index is damaged."""
    try:
        return sorted(set(weight_map(index).values()))
    except NpGPT2Error:  # reported when the checkpoint is opened
        return []


class Unreachable(Exception):
    """The hub cannot be reached, or refuses: use the cache."""


@contextmanager
def told(
    name: str, revision: str | None, out: str | Path | None = None, looked: bool = False
) -> Iterator[None]:
    """Turn errors of the hub into FileError or Unreachable. `looked`: a folder was tried before."""
    from huggingface_hub import constants, errors

    problem: BaseException
    try:
        yield
        return
    except NpGPT2Error:
        raise
    except errors.HFValidationError as error:
        raise FileError(f"{name}: not a hub name ({_first_line(error)})") from None
    except errors.RevisionNotFoundError:
        raise FileError(
            f"{name}: has no revision {revision!r} on the hub, expected a branch, tag or commit. "
            "Its page on the hub lists them"
        ) from None
    # Depending on the version these are errors of requests or httpx, which share no base class; and
    # JSON errors or KeyError if not a hub answers but, for example, a hotel's login page.
    except Exception as error:
        problem = error
    if isinstance(problem, errors.LocalEntryNotFoundError):
        problem = problem.__cause__ or problem  # why it had to be local
    if isinstance(problem, OSError) and problem.errno is not None:  # network errors have no errno
        advice = "Set HF_HOME to" if out is None else "Choose"
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
        raise FileError(
            f"{problem.filename or out or constants.HF_HUB_CACHE}: {problem.strerror}, expected to "
            f"write {name} there. {advice} {'a folder with room' if full else 'another folder'}"
        )
    raise Unreachable(_explain(name, problem, looked))


def _explain(name: str, problem: BaseException, looked: bool) -> str:
    """The message why a model could not be downloaded."""
    from huggingface_hub import constants, errors

    hub = f"the hub at {constants.ENDPOINT}"
    folder = "no such folder, " if looked else ""
    if isinstance(problem, errors.GatedRepoError):
        return (
            f"{name}: is gated, expected a token with access. "
            "Request access on its page on the hub, then set HF_TOKEN"
        )
    if isinstance(problem, errors.RepositoryNotFoundError):
        return (
            f"{name}: {folder + 'and ' if looked else ''}no such model on the hub. "
            "Check the name, or set HF_TOKEN if the model is private"
        )
    if isinstance(problem, errors.HfHubHTTPError):
        code = problem.response.status_code
        said = f" ({_first_line(problem.server_message)})" if problem.server_message else ""
        refused = code in (401, 403)
        advice = "Set HF_TOKEN to a token with access" if refused else "Try again later"
        return f"{name}: {hub} answered {code}{said}, expected the model. {advice}"
    if isinstance(problem, errors.OfflineModeIsEnabled):
        cache = f"{folder}and not in the hub's cache {constants.HF_HUB_CACHE}"
        lack = cache if looked else "HF_HUB_OFFLINE is set, but this needs the hub"
        return f"{name}: {lack}. Unset HF_HUB_OFFLINE to download it"
    cache = f"{folder}not in the hub's cache, and " if looked else ""
    return (
        f"{name}: {cache}{hub} failed ({type(problem).__name__}: {_first_line(problem)}). "
        "Check the network, and HF_ENDPOINT if it is set"
    )


def _first_line(text: object) -> str:
    return (str(text).strip() or "no reason given").splitlines()[0]
