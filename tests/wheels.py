"""Which wheels the dependencies have: `python tests/wheels.py` asks pip, for each Python and
system, what it would install, and prints a table. It installs nothing.

It needs the network and some minutes, so it is one of the long checks and no test. The exit code
is 1 if a dependency has no wheel.
"""

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from lowest import bounds

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# pip takes tags as they are: that a system of today runs wheels for older ones has to be said.
LINUX = ("manylinux2014", "manylinux_2_17", "manylinux_2_24", "manylinux_2_26", "manylinux_2_27",
         "manylinux_2_28", "manylinux_2_31", "manylinux_2_34")  # fmt: skip
SYSTEMS = {
    "Linux x86-64": [f"{tag}_x86_64" for tag in LINUX],
    "Linux ARM64": [f"{tag}_aarch64" for tag in LINUX],
    "macOS ARM64": [f"macosx_{version}_0_arm64" for version in range(11, 27)],
    "Windows x86-64": ["win_amd64"],
}


def found(python, tags, wanted):
    """Names and versions of the packages and all their dependencies; None if pip finds none."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-",
             "--only-binary=:all:", "--target", folder, "--python-version", python,
             "--ignore-requires-python",  # pip holds it against its own Python; tags are minded
             *(word for tag in tags for word in ("--platform", tag)), *wanted],
            capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        return None
    about = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    return {item["name"]: item["version"] for item in about}


def cell(python, tags, wanted):
    """Versions of the dependencies, or the name of each without a wheel."""
    versions = found(python, tags, wanted)
    if versions is None:
        lacking = [name for name in wanted if found(python, tags, [name]) is None]
        return f"no wheel: {', '.join(lacking) or 'of these together'}", {}
    return ", ".join(versions[name] for name in bounds()), versions


def main():
    wanted, others = [f"{name}>={bound}" for name, bound in bounds().items()], set()
    names = [*bounds()]
    asked = [(python, system) for python in PYTHONS for system in SYSTEMS]
    print(f"| Python | systems | {', '.join(names)} |\n| --- | --- | --- |")
    with ThreadPoolExecutor(6) as pool:  # pip waits for the network most of the time
        cells = pool.map(lambda pair: cell(pair[0], SYSTEMS[pair[1]], wanted), asked)
        rows = {}  # those that are alike together
        for (python, system), (text, versions) in zip(asked, cells, strict=True):
            others |= versions.keys() - set(names)
            rows.setdefault((python, text), []).append(system)
    for (python, text), systems in rows.items():
        print(f"| {python} | {', '.join(systems)} | {text} |")
    print(f"\nWith them come {', '.join(sorted(others))}.")
    return any(text.startswith("no wheel") for _, text in rows)


if __name__ == "__main__":
    sys.exit(main())
