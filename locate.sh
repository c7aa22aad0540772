#!/usr/bin/env bash
# Where on a map is a SAR image? Sets itself up, then hands its flags to tools/locate.py; without flags the example.
#
#   bash locate.sh
#   bash locate.sh --map map.tif --query sar.tif --rotation unknown
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
caller=$PWD
cd "$here"
source shared/plumbing/setup.sh requirements.txt
[[ $PYTHON != */* ]] || PYTHON=$(realpath -s "$PYTHON")
if [ $# -eq 0 ]; then
  set -- --map data/example/map.tif --query data/example/sar.png data/example/elsewhere.png --resolution 10 \
    --rotation unknown --out results/example --cache results/example/features
else
  cd "$caller"                                          # where its paths count from
fi
exec "$PYTHON" "$here/tools/locate.py" "$@"
