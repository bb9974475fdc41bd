"""npm's folder with the two packages that a site copies from, with the files that it reads."""

import json

FILES = {  # in the site; their bytes
    "vendor/ort.wasm.bundle.min.mjs": b"// runtime\n",
    "vendor/ort-wasm-simd-threaded.wasm": b"\0asm\1\0\0\0",
    "vendor/tokenizers.min.mjs": b"// tokenizers\n",
}


def install(folder):
    for name, version, files in (
        ("onnxruntime-web", "1.30.0", ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"]),
        ("@huggingface/tokenizers", "0.2.0", ["tokenizers.min.mjs"]),
    ):
        dist = folder / name / "dist"
        dist.mkdir(parents=True)
        (folder / name / "package.json").write_text(json.dumps({"version": version}))
        for file in files:
            (dist / file).write_bytes(FILES[f"vendor/{file}"])
        (dist / "not asked for.mjs").touch()
    (folder / "@huggingface/tokenizers/LICENSE").write_text("Apache License\n  Version 2.0\n")
    return folder
