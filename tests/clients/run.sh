#!/usr/bin/env bash
# Load exported folders, as they are, in the clients that they are made for, and hold what these
# write, greedily, against the NumPy model.
#
#     tests/clients/run.sh [PYTHON]     a Python with npgpt2 (default: $PYTHON, then python3)
#
# Needs Node 20 with npm. Makes the clients' environments in a temporary folder; OPTIMUM_PYTHON,
# GENAI_PYTHON and NODE_MODULES name ones that are there.
set -euo pipefail
shopt -s inherit_errexit

python=${1:-${PYTHON:-python3}}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_QUIET=2 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

# venv NAME PACKAGES... [-- PACKAGES...]: a fresh environment, installed in these steps
venv() {
    local pip="$work/$1/bin/python -m pip install" packages=()
    "$python" -m venv "$work/$1"
    for package in "${@:2}" --; do
        if [ "$package" != -- ]; then packages+=("$package"); continue; fi
        $pip "${packages[@]}" >&2
        packages=()
    done
    echo "$work/$1/bin/python"
}

optimum=${OPTIMUM_PYTHON:-$(venv optimum torch==2.13.0 -- \
    optimum==2.1.0 optimum-onnx==0.1.0 transformers==4.57.6 onnxruntime==1.31.1)}
genai=${GENAI_PYTHON:-$(venv genai onnxruntime-genai==0.18.0 onnxruntime==1.31.1)}
mkdir "$work/js"
cp "$here/transformersjs_client.mjs" "$work/js"
if [ -n "${NODE_MODULES:-}" ]; then
    ln -s "$(cd "$NODE_MODULES" && pwd)" "$work/js/node_modules"
else # onnxruntime-node's install script fetches files for CUDA; the package has those for the CPU
    npm install --silent --ignore-scripts --no-audit --no-fund --prefix "$work/js" \
        @huggingface/transformers@4.3.1
fi
export HF_HUB_OFFLINE=1

export_to() {
    "$python" -m npgpt2 export "$checkpoint" -o "$@" > "$work/said" 2>&1 && return
    cat "$work/said"
    exit 1
}

failed=0
# client COMMAND...: its table; of what else it says the last line, where it fails
client() {
    "$@" 2> "$work/said" && return
    failed=1
    printf 'FAILED: %s\n' "${*##*/}"
    grep . "$work/said" | tail -n 1 | cut -c -600 || true
}

for checkpoint in "$here/../data/tiny" "$here/../../../shared/data/checkpoints/shakespeare-3m"; do
    name=$(basename "$checkpoint")
    if [ ! -d "$checkpoint" ]; then
        printf '\n%s: skipped, the shared data are not here\n' "$name"
        continue
    fi
    printf '\n%-24s%-25s%12s%12s%12s%12s%12s\n' \
        "$name: ids" graph one batch eos 'eos batch' context
    both=$work/$name portable=$work/$name-portable int8=$work/$name-int8
    export_to "$both" --precision fp32 --precision int8
    export_to "$portable" --graph portable
    export_to "$int8" --precision int8
    expected=$work/$name.json
    "$python" "$here/expected.py" "$checkpoint" "$both" > "$expected"
    (cd "$both" && find . -type f -exec sha256sum {} +) > "$work/sums"

    client "$python" "$here/plain_client.py" "$both" "$expected"
    client "$optimum" "$here/optimum_client.py" "$both" "$expected"
    client "$genai" "$here/genai_client.py" "$both" "$expected"
    client "$genai" "$here/genai_client.py" "$portable" "$expected"
    client "$genai" "$here/genai_client.py" "$int8" "$expected"
    client node "$work/js/transformersjs_client.mjs" "$both" "$expected"
    # --liftoff-only: WebAssembly is compiled at once, not well
    client node --liftoff-only "$work/js/transformersjs_client.mjs" "$both" "$expected" browser
    client node --liftoff-only "$work/js/transformersjs_client.mjs" "$portable" "$expected" browser

    (cd "$both" && sha256sum --quiet --check "$work/sums") || failed=1 # a client changed it
done

printf '\nother heads\n'
"$python" "$here/heads.py" "$work/heads"
client "$optimum" "$here/optimum_heads_client.py" "$work/heads"
exit "$failed"
