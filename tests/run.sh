#!/usr/bin/env bash
# Sets up and runs the linter and every test. PYTHON=... uses an environment of your own; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source shared/plumbing/setup.sh requirements.txt requirements-optional.txt
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
