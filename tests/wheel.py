"""Check the contents of a wheel: both packages, type information and the embedded model only.

python tests/wheel.py FILE.whl
"""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WEB = ("npgpt2/pictures/web", "npgpt2/serve/web")

[wheel] = sys.argv[1:]
names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
wanted = {"npgpt2/cli/generate.py", "npgpt2/py.typed", "npgpt2_onnx/py.typed"}
wanted |= {f"{web}/{path.name}" for web in WEB for path in (ROOT / web).iterdir()}
wanted |= {f"npgpt2/weights/shakespeare/{name}" for name in ("model.safetensors", "tokenizer.json")}
if missing := wanted - names:
    sys.exit(f"{wheel}: lacks {', '.join(sorted(missing))}")
if odd := {name.split("/")[0] for name in names} - {"npgpt2", "npgpt2_onnx"}:
    sys.exit(f"{wheel}: has {', '.join(sorted(odd))} at its top, expected npgpt2 and npgpt2_onnx")
print(f"{Path(wheel).name}: {len(names)} files")
