"""The CUDA check (`python -m benchmarks.cuda`) on a CPU and in small: its results and messages."""

import importlib.util
import json
import math
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks.cuda import check, kernels, parity, pieces
from benchmarks.cuda.__main__ import main
from benchmarks.cuda.models import Options
from benchmarks.cuda.sessions import may_refuse
from benchmarks.cuda.table import table
from npgpt2.base.errors import CheckpointError, MissingPackage
from npgpt2_onnx.graph.versions import numbers
from npgpt2_onnx.run.session import runtime_error

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def run(*args):
    return main(["run", "--device", "cpu", "--shape", "tiny", "--minutes", "60", *map(str, args)])


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────


def write_wheel(folder, name, files, needs="", tags="py3-none-any"):
    path, about = folder / f"{name}-1.0-{tags}.whl", f"{name}-1.0.dist-info"
    files = files | {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\n"
        f"Root-Is-Purelib: true\nTag: {tags}\n",
    }
    record = "".join(f"{file},,\n" for file in files) + f"{about}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in (files | {f"{about}/RECORD": record}).items():
            archive.writestr(file, data)
    return path


@pytest.fixture
def wheel(tmp_path):
    noise = np.random.default_rng(0).bytes(9000)
    files = {"small/__init__.py": "answer = 42\n", "small/noise": noise}
    needs = 'Requires-Dist: numpy\nRequires-Dist: nvidia-curand~=10.0; extra == "cuda"\n'
    return write_wheel(tmp_path, "small", files, needs)


@pytest.fixture
def cut(wheel, tmp_path):
    """The folder with its pieces of at most 4,000 bytes."""
    pieces.split([wheel], tmp_path / "pieces", 4000)
    return tmp_path / "pieces"


def test_pieces_that_came_in_several_folders_make_a_package_that_imports(cut, tmp_path, capsys):
    second, site = tmp_path / "second", tmp_path / "site"
    second.mkdir()
    names = sorted(path.name for path in cut.glob("*.whl.*"))
    assert len(names) == 3
    assert all((cut / name).stat().st_size <= 4000 for name in names)
    (cut / names[1]).rename(second / names[1])
    assert main(["join", str(cut), str(second), "--to", str(site)]) == 0
    assert capsys.readouterr().out == f"small-1.0-py3-none-any.whl: unpacked in {site}\n"
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import small; print(small.answer)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "42\n"
    assert main(["join", str(cut), "--to", str(site)]) == 0  # a piece is not even needed again
    assert capsys.readouterr().out == f"small-1.0-py3-none-any.whl: is in {site} already\n"


def test_wheels_that_share_a_folder_are_all_there(tmp_path):
    """As all nvidia-* packages do, at once and one after another."""
    site, files = tmp_path / "site", ["nvidia/first/lib/a.so", "nvidia/second/lib/b.so"]
    late = "nvidia/third/lib/c.so"
    wheels = [write_wheel(tmp_path, f"nv{i}", {file: file}) for i, file in enumerate(files)]
    pieces.split(wheels, tmp_path / "pieces", 4000)
    pieces.join([tmp_path / "pieces"], site)
    pieces.split([write_wheel(tmp_path, "nv9", {late: late})], tmp_path / "more", 4000)
    pieces.join([tmp_path / "more"], site)
    assert [(site / file).read_text() for file in (*files, late)] == [*files, late]


def test_what_a_wheel_keeps_apart_is_in_the_site_as_well(tmp_path):
    apart = {"a-1.0.data/purelib/a/b.py": "b", "a-1.0.data/scripts/c": "c", "a/__init__.py": ""}
    pieces.unpack(write_wheel(tmp_path, "a", apart), tmp_path / "site")
    assert (tmp_path / "site/a/b.py").read_text() == "b"
    assert {path.name for path in (tmp_path / "site").iterdir()} == {"a", "a-1.0.dist-info"}


def test_a_wheel_of_another_python_is_refused(tmp_path, capsys):
    wheel = write_wheel(tmp_path, "a", {"a.py": ""}, tags="cp27-cp27m-win32")
    pieces.split([wheel], tmp_path / "pieces", 4000)
    assert main(["join", str(tmp_path / "pieces"), "--to", str(tmp_path / "site")]) == 1
    mine = ".".join(map(str, sys.version_info[:2]))
    assert capsys.readouterr().err == (
        f"a-1.0-cp27-cp27m-win32.whl: is not for Python {mine}. "
        f"Make the pieces with --python-version {mine}\n"
    )
    assert not (tmp_path / "site").exists()


def test_what_is_missing_or_damaged_is_said_in_a_line_each(cut, tmp_path, capsys):
    _, second, third = sorted(cut.glob("*.whl.*"))
    data = bytearray(second.read_bytes())
    data[100] ^= 1
    second.write_bytes(data)
    third.unlink()
    assert main(["join", str(cut), "--to", str(tmp_path / "site")]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{second}: is damaged. Copy it again",
        f"{third.name}: is missing. Copy it to {cut}",
    ]
    assert not (tmp_path / "site").exists()
    (cut / pieces.MANIFEST).unlink()
    assert main(["join", str(cut), "--to", str(tmp_path / "site")]) == 1
    said = f"{pieces.MANIFEST}: is not in {cut}. Copy it there, beside the pieces\n"
    assert capsys.readouterr().err == said


def test_the_table_of_pieces_has_each_with_its_size_and_what_is_needed_there(
    wheel, tmp_path, monkeypatch, capsys
):
    asked = []

    def download(command, **options):
        asked.append(command)
        folder = next(word for word in command if word.startswith("--dest=")).partition("=")[2]
        (Path(folder) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(pieces.subprocess, "run", download)
    out = tmp_path / "out"
    assert main(["pieces", str(out), "--piece-size", "0.004", "--python-version", "3.13"]) == 0
    assert {"--no-deps", "--python-version=3.13", "onnxruntime-gpu"} <= set(asked[0])
    said = capsys.readouterr().out
    for path in out.glob("*.whl.*"):
        assert f"{path.name} " in said
        assert f"{path.stat().st_size:,}  {wheel.name}" in said
    assert 'needs, there: numpy, nvidia-curand~=10.0; extra == "cuda"' in said


def test_a_download_that_fails_says_why(tmp_path, monkeypatch, capsys):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: a\nERROR: No matching distribution\n")
    monkeypatch.setattr(pieces.subprocess, "run", lambda *args, **options: failed)
    assert main(["pieces", str(tmp_path)]) == 1
    said = "onnxruntime-gpu: was not downloaded (ERROR: No matching distribution)\n"
    assert capsys.readouterr().err == said


def test_a_piece_has_60_mb_at_most(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pieces", str(tmp_path), "--piece-size", "61"])
    assert stop.value.code == 2
    assert "got 61, expected at most 60" in capsys.readouterr().err


# ── a whole run ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The exit code and the report of a run in processes, as in CI and on a GPU."""
    file = tmp_path_factory.mktemp("check") / "report.json"
    code = run("--json", file, "--batches", 1, 2, "--contexts", 4)
    return code, file


def test_a_run_measures_every_section(done):
    code, file = done
    report = json.loads(file.read_text())
    assert report["faults"] == []
    assert code == 0
    assert report["schema"] == "npgpt2.cuda/1"
    assert [*report["sections"]] == [*check.SECTIONS]
    for name, section in report["sections"].items():
        assert section["left_out"] == []
        assert section["rows"] or "pip install" in section["missing"], name
        assert not [row for row in section["rows"] if "failed" in row]


def test_pytorch_is_measured_where_it_is_installed(done):
    section = json.loads(done[1].read_text())["sections"]["torch"]
    absent = [p for p in ("torch", "transformers") if importlib.util.find_spec(p) is None]
    if absent:
        assert section["missing"] == f"pip install {' '.join(absent)}"
        assert section["rows"] == []
        return
    assert section["missing"] == ""
    cells = [(row["way"], row["dtype"], row["batch"], row["context"]) for row in section["rows"]]
    assert cells == [("eager", dtype, b, 4) for b in (1, 2) for dtype in ("float32", "float16")]
    assert all(row["prefill"] > 0 and row["decode_of_bandwidth"] > 0 for row in section["rows"])


def test_parity_is_of_every_graph_and_precision(done):
    rows = json.loads(done[1].read_text())["sections"]["parity"]["rows"]
    graphs = [row["step"] for row in rows if "logits" in row]
    every = [f"{p} {k}" for p in ("fp32", "fp16", "int8", "int4") for k in parity.KINDS]
    assert graphs == every
    for row in rows:
        assert row["good"]
        for figure in ("logits", "presents", "written"):
            if figure in row:
                assert math.isfinite(row[figure])
                assert 0 < row[figure] <= row["limit"] <= 0.15


def test_every_node_ran_where_it_was_asked_to(done):
    rows = json.loads(done[1].read_text())["sections"]["kernels"]["rows"]
    assert len(rows) == 12
    for row in rows:
        assert [*row["nodes"]] == [CPU]
        assert row["nodes"][CPU] > 50
        assert not row["work"]


def test_speeds_are_beside_the_bandwidth(done):
    sections = json.loads(done[1].read_text())["sections"]
    bandwidth = sections["machine"]["rows"][-1]["bandwidth"]
    assert bandwidth > 0
    cells = [row for name in ("speed", "large") for row in sections[name]["rows"] if "batch" in row]
    assert len(cells) == 4 * 2 + 2 * 2
    for row in cells:
        assert all(row[name] > 0 for name in ("prefill", "graph_prefill", "graph_decode"))
        share = row["bytes"] * row["decode"] / row["batch"] / bandwidth
        assert row["decode_of_bandwidth"] == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("text", [None, "{"])
def test_a_report_that_is_none(tmp_path, capsys, text):
    file = tmp_path / "report.json"
    if text:
        file.write_text(text)
    assert main(["table", str(file)]) == 1
    assert capsys.readouterr().err.startswith(f"{file}: ")


def test_the_table_has_every_section_and_figure(done, capsys):
    assert main(["table", str(done[1])]) == 0
    said = capsys.readouterr().out
    for name in check.SECTIONS:
        assert f"**{name}**" in said
    for text in ("| fp16 gqa |", "| int4 | gqa | 2 | 4 |", f"{CPU} |", "**faults**\n\nnone"):
        assert text in said


# ── what it has to find ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def in_one_process(monkeypatch):
    """Run steps in this process, where the test can change things."""
    monkeypatch.setattr(check, "apart", check.work)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a checkpoint and graphs of the tiny shape."""
    work = tmp_path_factory.mktemp("models")
    assert run("--only", "models", "--work", work) == 0
    return work


def faults_of(tmp_path, *args):
    code = run("--json", tmp_path / "r.json", *args)
    faults = json.loads((tmp_path / "r.json").read_text())["faults"]
    assert code == (1 if faults else 0)
    return faults


def test_weights_that_are_not_the_checkpoints(tmp_path, in_one_process):
    work = tmp_path / "work"
    assert run("--only", "models", "--work", work) == 0
    data = work / "tiny-onnx" / "onnx" / "model.onnx_data"
    numbers = np.fromfile(data, np.float32)
    numbers[5] += 0.01
    numbers.tofile(data)
    (fault,) = faults_of(tmp_path, "--only", "parity", "--work", work)
    assert fault.startswith("parity: fp32 weights: ")
    assert "wte.weight" in fault


def test_a_graph_that_computes_something_else(made, tmp_path, in_one_process, monkeypatch):
    whole = parity.numpy_model

    def other(options, precision):
        model = whole(options, precision)
        if precision == "fp16":
            model.params.h[1].mlp.c_fc.bias[:] += 0.3
        return model

    monkeypatch.setattr(parity, "numpy_model", other)
    faults = faults_of(tmp_path, "--only", "parity", "--work", made)
    assert [fault.split(":")[1].strip() for fault in faults] == [
        "fp16 portable", "fp16 gqa", "fp16 mha",
    ]  # fmt: skip


def test_nodes_on_another_provider(made, tmp_path, in_one_process, monkeypatch):
    monkeypatch.setattr(kernels, "PROVIDERS", {"cpu": CUDA})
    faults = faults_of(tmp_path, "--only", "kernels", "--work", made)
    assert len(faults) == 12
    assert all('"work": {' in fault and '"LayerNormalization"' in fault for fault in faults[:1])


def event(operator, provider, **output):
    about = {"op_name": operator, "provider": provider, "output_type_shape": [output]}
    return {"cat": "Node", "name": f"/{operator}_kernel_time", "args": about}


def refused(operator, inputs, domain=""):
    """ONNX Runtime's error for a bfloat16 node without a CPU kernel."""
    kinds = {"seqlens_k": onnx.TensorProto.INT32, "length": onnx.TensorProto.INT32}
    values = {
        name: onnx.helper.make_tensor_value_info(
            name, kinds.get(name, onnx.TensorProto.BFLOAT16), shape
        )
        for name, shape in (inputs | {"y": None}).items()
    }
    heads = {"num_heads": 1, "kv_num_heads": 1} if domain else {}
    node = onnx.helper.make_node(operator, [*inputs], ["y"], domain=domain, **heads)
    y = values.pop("y")
    graph = onnx.helper.make_graph([node], "g", [*values.values()], [y])
    imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    with pytest.raises(Exception, match=f"implementation for {operator}") as caught:
        ort.InferenceSession(model.SerializeToString(), providers=[CPU])
    return caught.value


@pytest.fixture(scope="module")
def no_attention():
    if numbers(ort.__version__) < (1, 24):
        pytest.skip("this onnxruntime takes no bfloat16 there, and says so in other words")
    q, past = [1, 1, 16], [1, 1, 4, 16]
    inputs = {"q": q, "k": q, "v": q, "key": past, "value": past, "seqlens_k": [1], "length": []}
    return refused("GroupQueryAttention", inputs, "com.microsoft")


def raises(error):
    def measure():
        raise error

    return measure


def test_that_onnxruntime_lacks_the_kernel_is_known(no_attention):
    for error in (no_attention, runtime_error(Path("a.onnx"), no_attention)):
        found = may_refuse(raises(error))
        assert found["good"]
        assert "Could not find an implementation for GroupQueryAttention" in found["refused"]


def test_nothing_else_that_fails_is_known(no_attention):
    other = refused("Tanh", {"x": [1]})
    image = RuntimeError("no kernel image is available for execution on the device")
    for error in (
        other, runtime_error(Path("a.onnx"), other), runtime_error(Path("a.onnx"), image), image,
        RuntimeError(str(no_attention)), KeyError(str(no_attention)), MissingPackage("cuda: none"),
        CheckpointError("a.onnx: is damaged"), AssertionError(),
    ):  # fmt: skip
        with pytest.raises(type(error)):
            may_refuse(raises(error))


def test_only_lengths_positions_and_counts_may_run_beside_the_gpu():
    small = [
        event("Shape", CPU, int64=[2]),
        event("ReduceMax", CPU, int64=[2, 1]),
        event("Equal", CPU, bool=[2, 24]),
    ]
    work = [
        event("Add", CPU, float=[2, 24, 64]),  # floats
        event("Where", CPU, float16=[1]),
        event("Gather", CPU, int64=[2, 1000]),  # more than the mask has
        event("MatMul", CPU, int64=[1]),  # no operator of lengths
    ]
    others = [event("MatMul", CUDA, float=[2, 9]), event("MemcpyToHost", CUDA, int64=[2, 24])]
    session = {"cat": "Session", "name": "model_loading_uri", "args": {}}
    found = kernels.sorted_out([session, *small, *others], CUDA)
    assert found["good"]
    assert found["small"] == {"Shape": 1, "ReduceMax": 1, "Equal": 1}
    assert found["copies"] == {"MemcpyToHost": 1}
    assert found["nodes"] == {CPU: 3, CUDA: 2}
    for wrong in work:
        found = kernels.sorted_out([*small, wrong, *others], CUDA)
        assert not found["good"]
        assert found["work"] == {wrong["args"]["op_name"]: 1}
    assert not kernels.sorted_out(small, CUDA)["good"]  # the GPU did nothing


# ── time, failures, memory ───────────────────────────────────────────────────────────────────────


def sections(monkeypatch, **steps):
    """Run sections with these steps instead of the check's own, in one process."""
    made = {
        name: check.Section(lambda options, found=found: iter(found.items()), 1.0, proof=True)
        for name, found in steps.items()
    }
    monkeypatch.setattr(check, "SECTIONS", made)
    monkeypatch.setattr(check, "apart", check.work)


OPTIONS = Options("cpu", "tiny", "")


def fine():
    return {"good": True}


def fails(text="broken"):
    raise RuntimeError(text)


def test_what_there_is_no_time_for_is_named(tmp_path, monkeypatch):
    clock = [0.0]

    def slow():
        clock[0] += 40.0
        return {"good": True}

    monkeypatch.setattr(check.time, "time", lambda: clock[0])
    sections(monkeypatch, first={"a": slow, "b": slow, "c": slow}, second={"d": fine, "e": slow})
    report = check.check(OPTIONS, (100 + check.GRACE) / 60, file=tmp_path / "r.json")
    assert report["sections"]["first"]["left_out"] == ["c"]
    assert report["sections"]["second"]["left_out"] == []
    assert report["faults"] == ["first: was left out: c"]
    assert json.loads((tmp_path / "r.json").read_text())["sections"] == report["sections"]
    assert "left out: c" in table(report | {"sections": {"parity": report["sections"]["first"]}})


def test_a_run_without_any_time_proves_nothing(tmp_path, in_one_process):
    code = main(["run", "--device", "cpu", "--shape", "tiny", "--minutes", "0",
                 "--json", str(tmp_path / "r.json")])  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    assert code == 1
    assert "fp32 gqa" in report["sections"]["parity"]["left_out"]
    assert "fp16, 3 rows, 24 tokens" in report["sections"]["large"]["left_out"]
    told = [fault.split(":")[0] for fault in report["faults"]]
    absent = ["torch"] * bool(report["sections"]["torch"]["missing"])
    assert sorted(told + absent) == sorted(check.SECTIONS)


def test_a_step_that_fails_is_told_and_the_others_are_done(monkeypatch):
    sections(monkeypatch, one={"a": fine, "b": fails, "c": fine})
    report = check.check(OPTIONS, 60)
    assert [row["step"] for row in report["sections"]["one"]["rows"]] == ["a", "b", "c"]
    assert report["faults"] == ["one: b: RuntimeError: broken"]


def test_a_section_of_which_nothing_succeeds_is_a_fault(monkeypatch):
    full = lambda: fails("Failed to allocate memory for requested buffer of size 1")  # noqa: E731
    sections(monkeypatch, speed={"g": fine, "a": fails}, some={"a": fails, "b": fine},
             full={"a": full})  # fmt: skip
    for name, section in check.SECTIONS.items():
        gate = "g" if name == "speed" else ""
        monkeypatch.setitem(check.SECTIONS, name, section._replace(proof=False, gate=gate))
    assert check.check(OPTIONS, 60)["faults"] == ["speed: none of its steps succeeded"]


def test_processes_that_die_in_every_step_are_a_fault(monkeypatch):
    sections(monkeypatch, one={"a": fine})
    monkeypatch.setitem(check.SECTIONS, "one", check.SECTIONS["one"]._replace(proof=False))
    dead = [{"step": "a", "failed": "its process got signal 11"}]
    monkeypatch.setattr(check, "apart", lambda *told: iter(dead))
    assert check.check(OPTIONS, 60)["faults"] == ["one: none of its steps succeeded"]


def test_what_lacks_a_package_is_a_fault_where_it_was_asked_for(monkeypatch):
    sections(monkeypatch, one={"a": fine}, two={"b": fine})
    lacking = check.SECTIONS["two"]._replace(proof=False, needed=("no_such_package",))
    monkeypatch.setitem(check.SECTIONS, "two", lacking)
    assert check.check(OPTIONS, 60)["faults"] == []
    assert check.check(OPTIONS, 60, ["two"])["faults"] == ["two: pip install no_such_package"]


@pytest.mark.parametrize("section", ["parity", "kernels", "speed"])
def test_one_section_alone_makes_its_models(tmp_path, in_one_process, section):
    few = ("--batches", 1, 2, "--contexts", 4)
    assert faults_of(tmp_path, "--only", section, *few) == []
    report = json.loads((tmp_path / "r.json").read_text())
    assert [*report["sections"]] == ["models", section]
    assert not [row for row in report["sections"][section]["rows"] if "failed" in row]


def test_three_failures_in_succession_end_a_section_and_full_memory_is_none(monkeypatch):
    full = lambda: fails("Failed to allocate memory for requested buffer of size 1")  # noqa: E731
    sections(monkeypatch, one=dict.fromkeys("abcde", fails), two=dict.fromkeys("abcde", full))
    report = check.check(OPTIONS, 60)
    assert report["sections"]["one"]["left_out"] == ["d", "e"]
    assert [row["out_of_memory"] for row in report["sections"]["two"]["rows"]] == [True] * 5


def test_nothing_is_tried_on_a_device_that_does_not_start(monkeypatch):
    sections(monkeypatch, one={"a": fails, "b": fine}, two={"c": fine})
    gate = check.SECTIONS["one"]._replace(gate="a", proof=False)
    monkeypatch.setitem(check.SECTIONS, "one", gate)
    report = check.check(OPTIONS, 60)
    assert report["sections"]["two"]["left_out"] == ["c"]
    assert report["faults"][0] == "one: a: RuntimeError: broken"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for Python")
def test_a_process_that_dies_is_told_and_its_rows_are_kept(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho \'{"step": "a", "good": true}\'\nkill -SEGV $$\n')
    python.chmod(0o755)
    monkeypatch.setattr(check.sys, "executable", str(python))
    rows = list(check.apart("parity", OPTIONS, ["a", "b", "c"], check.time.time() + 3600))
    assert rows == [
        {"step": "a", "good": True},
        {"step": "b", "failed": "its process got signal 11"},
    ]


def test_a_section_that_is_not_there_is_refused(capsys):
    assert run("--only", "paritee") == 2
    assert "--only: got paritee, expected of machine, models, parity" in capsys.readouterr().err


def test_on_a_gpu_float32_is_compared_without_tf32_as_well():
    names = [step for step, _ in parity.steps(replace(OPTIONS, device="cuda"))]
    assert "fp32 mha without TF32" in names
    assert "fp16 mha without TF32" not in names
