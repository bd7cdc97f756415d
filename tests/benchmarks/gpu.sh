#!/usr/bin/env bash
# Tests and measures everything that needs a GPU, in under 8 minutes, and prints one table. Needs no network, and installs nothing: wheels of
# packages that the machine lacks (isal, pydicom, nibabel) are taken from the folder wheels/ beside this file, if there is one.
#
#     tests/benchmarks/gpu.sh [FOLDER] [--device cpu --small]
#
# FOLDER (gpu-results by default) holds table.md, and the log and figures of every part; one that fails or takes too long costs no other part.
# `--device cpu --small` runs all of it on a CPU at a small size. PYTHON names the interpreter, python3 by default; TOTAL the seconds of all parts.
set -uo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
out=gpu-results
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
    out="$1"
    shift
fi
how=("$@")
mkdir -p "$out"
out="$(cd "$out" && pwd)"
rm -f "$out"/*.json "$out"/*.log "$out"/*.md "$out/status.txt"
python="${PYTHON:-python3}"
site="$out/site"
if compgen -G "$here/wheels/*.whl" > /dev/null; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$here"/wheels/*.whl
fi
export PYTHONPATH="$root:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Compiled kernels are kept for the parts that follow.
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$out/triton}"
cd "$root" || exit 1
device=cuda
small=0
total="${TOTAL:-450}"
for word in "${how[@]}"; do
    [ "$word" = cpu ] && device=cpu
    [ "$word" = --small ] && small=1
done

# part NAME SECONDS COMMAND…: run it with a time limit, its output in NAME.log. Interrupted, a command still says what it has.
part() {
    local name="$1" limit="$2" start=$SECONDS code=0 left=$((total - SECONDS))
    shift 2
    [ "$limit" -le "$left" ] || limit=$((left > 1 ? left : 1))
    timeout --signal=INT --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1 || code=$?
    [ "$code" = 124 ] && code="stopped after $limit s"
    echo "$name: $((SECONDS - start)) s, exit $code" | tee -a "$out/status.txt"
    [ "$code" = 0 ] || tail -n 12 "$out/$name.log"
}

tests=(tests/kernels/test_kernels_cuda.py tests/training/test_training_cuda.py tests/commands/test_commands_cuda.py)
few=()
[ "$small" = 1 ] && few=(-k "not (folded and (34 or 50 or 101 or 152 or 200)) and not in_use and not layer2")
measure=("$python" tests/benchmarks/gpu.py)
# What the issue's table is about first: if the time is not enough, it is the rest that lacks.
for arch in r3d18 r2plus1d18 r3d50; do
    part "networks-$arch" 60 "${measure[@]}" networks --arch "$arch" --out "$out" "${how[@]}"
done
part train 120 "${measure[@]}" train --arch r3d18 --out "$out" "${how[@]}"
part tests 150 "$python" -m pytest -m cuda --device "$device" -q -p no:cacheprovider "${few[@]}" "${tests[@]}"
for arch in r3d18 r2plus1d18; do
    part "profile-$arch" 25 "${measure[@]}" profile --arch "$arch" --out "$out" "${how[@]}"
done
"${measure[@]}" table --out "$out" "${how[@]}"
echo "everything: $SECONDS s, in $out"
