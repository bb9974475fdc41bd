"""A server of OpenAI's completions API, over any engine: `npgpt2 serve`, or on Ray Serve.

Starlette on uvicorn. It is imported by who serves, and nobody else.
"""

from typing import Any


def app(args: dict[str, Any]) -> Any:
    """A Ray Serve application, see `npgpt2.serve.on_ray.app`: `serve run npgpt2.serve:app`."""
    from npgpt2.serve import on_ray

    return on_ray.app(args)
