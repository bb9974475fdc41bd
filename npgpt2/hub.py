"""A folder or a hub name → the folder. The hub itself is `huggingface_hub`'s, an extra.

Cache, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN and revisions are as transformers has them, because
the same library does them.
"""

import re
from pathlib import Path

from npgpt2.errors import FileError, MissingPackage

# What a checkpoint needs; the weights of other frameworks in the same repository stay there.
FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
]

# OpenAI's models answer to two names. Online the hub redirects; offline the cache knows only the
# name under which a model was once fetched.
ALIASES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
ALIASES |= {long: short for short, long in ALIASES.items()}

REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def resolve(name: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a checkpoint: `name` itself if it is one, else fetched from the hub.

    Raises:
        FileError: neither a folder nor a name on the hub; or no network and not in the cache.
        MissingPackage: a hub name, and `huggingface_hub` is not installed.

    >>> resolve("tests/data/tiny").name
    'tiny'
    """
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists():
        raise FileError(f"{name}: is a file, expected a folder with config.json in it")
    if not REPO_ID.fullmatch(str(name)):
        raise FileError(f"{name}: no such folder. Expected a checkpoint folder or a hub name")
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        raise MissingPackage(
            f"{name}: no such folder, and names on the hub need huggingface_hub. "
            "Run: pip install 'npgpt2[hub]'"
        ) from None
    problem: Exception
    try:
        return Path(
            hub.snapshot_download(str(name), revision=revision, token=token, allow_patterns=FILES)
        )
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        problem = error
    except errors.GatedRepoError:
        raise FileError(
            f"{name}: is gated. Ask for access on its page, then set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileError(f"{name}: has no revision {revision!r} on the hub") from None
    except errors.RepositoryNotFoundError:
        raise FileError(
            f"{name}: no such folder, and no such model on the hub (or it is private: set HF_TOKEN)"
        ) from None
    except errors.HFValidationError as error:
        raise FileError(f"{name}: not a hub name ({error})") from None
    except (errors.HfHubHTTPError, OSError) as error:
        raise FileError(f"{name}: the hub did not answer ({_first_line(error)})") from None
    alias = ALIASES.get(str(name))
    if alias:
        try:
            return Path(hub.snapshot_download(alias, revision=revision, local_files_only=True))
        except errors.LocalEntryNotFoundError:
            pass
    raise FileError(
        f"{name}: no such folder, not in the hub's cache, and the hub is out of reach "
        f"({_first_line(problem)})"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
