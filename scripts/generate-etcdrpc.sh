#!/usr/bin/env bash
# generate-etcdrpc.sh [--check]: compiles etcd_pd/store/etcdrpc/proto/*.proto into the committed Python stubs.
#
# The generator is pinned, in an environment of its own, because its version is a floor for whoever loads the stubs: these
# must load with protobuf 6.33 (an inference engine's pin) and with 7.x. A newer generator would lock the older out. Only
# messages are generated: the service stubs are a few lines in etcdrpc/stubs.py, and so grpcio's version is no floor.
# --check writes nothing and fails when the committed stubs differ from what the .proto files say.
set -euo pipefail
cd "$(dirname "$0")/.."
unset VIRTUAL_ENV PYTHONPATH PYTHONHOME

GENERATOR=grpcio-tools==1.76.0
stubs=etcd_pd/store/etcdrpc/proto

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${PYTHON:-.venv/bin/python}
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" -q install --disable-pip-version-check "$GENERATOR" "protobuf<7" "setuptools<81"

mkdir "$scratch/out"
"$scratch/venv/bin/python" -m grpc_tools.protoc --proto_path=. \
  --python_out="$scratch/out" --pyi_out="$scratch/out" "$stubs"/*.proto

status=0
for made in "$scratch/out/$stubs"/*; do
  committed=$stubs/$(basename "$made")
  cmp -s "$made" "$committed" && continue
  if [ "${1:-}" = --check ]; then
    echo "generate-etcdrpc: $committed is not what its .proto says; run scripts/generate-etcdrpc.sh" >&2
    status=1
  else
    cp "$made" "$committed"
    echo "generate-etcdrpc: wrote $committed"
  fi
done
exit $status
