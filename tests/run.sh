#!/usr/bin/env bash
# Sets up and runs every test. PYTHON=... uses an environment of your own; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source shared/setup.sh requirements.txt requirements-data.txt requirements-search.txt requirements-losses.txt requirements-report.txt
exec "$PYTHON" -m pytest tests -n auto --dist loadfile "$@"
