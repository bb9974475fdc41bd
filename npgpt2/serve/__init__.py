"""A server of OpenAI's completions API, over any engine: `npgpt2 serve`, or Ray Serve.

Starlette on uvicorn. It is imported by who serves, and nobody else.
"""
