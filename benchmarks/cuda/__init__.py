"""The project's CUDA check: see `docs/cuda.md` and `python -m benchmarks.cuda --help`.

__main__.py  the command line
pieces.py    wheels in pieces that a machine without network gets one after another
check.py     the sections, each in processes of its own, within a budget of time
models.py    checkpoints and graphs of random weights, made where the check runs
sessions.py  graphs opened with provider options, or with a profile
machine.py   what the machine is, and what its memory gives
parity.py    every graph beside NumPy
kernels.py   which execution provider ran which node
speed.py     tokens/s of ONNX Runtime
pytorch.py   the same of PyTorch
table.py     a report as Markdown
"""
