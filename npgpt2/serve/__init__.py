"""An HTTP server with OpenAI's completions API over any engine, as one process or on Ray Serve.

`guard` checks host and key, `protocol` checks the request, `engine` refuses if the queue is full.
Only the command line imports this folder.
"""

from typing import Any


def app(args: dict[str, Any]) -> Any:
    """A Ray Serve application, see `npgpt2.serve.on_ray.app`: `serve run npgpt2.serve:app`."""
    from npgpt2.serve import on_ray

    return on_ray.app(args)
