# Sourced from the repository's root by run.sh, locate.sh and tests/run.sh. Sets PYTHON: the one given, or that of a
# virtual environment in the checkout, made here the first time. Arguments: the requirements files, of which an
# environment of your own must have the first.
if [ -z "${PYTHON:-}" ]; then
  stamp=".venv/installed-$(cat "$@" | cksum | cut -d' ' -f1)"
  if [ ! -f "$stamp" ]; then
    echo "setting up .venv (a minute or two, several GB with CUDA)"
    python3 -c 'import sys; sys.exit("Python 3.10 or newer is needed" if sys.version_info < (3, 10) else 0)'
    python3 -m venv .venv || {
      echo "error: no .venv can be made in $PWD: make it writable, or name an environment of your own by PYTHON=" >&2
      exit 2
    }
    .venv/bin/python -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")
    touch "$stamp"
  fi
  PYTHON=.venv/bin/python
elif ! command -v "$PYTHON" > /dev/null; then
  echo "error: PYTHON=$PYTHON is no program: give the path of a Python, or leave it out" >&2
  exit 2
else
  "$PYTHON" -c '
import re, sys
from importlib.util import find_spec
modules = {"pillow": "PIL", "opencv-contrib-python-headless": "cv2", "scikit-learn": "sklearn"}
for_tests = {"pytest", "pytest-xdist", "ruff"}
python, requirements = sys.argv[1:]
packages = [found[0] for line in open(requirements) if (found := re.match(r"[\w-]+", line))]
lacking = [name for name in packages if name not in for_tests and find_spec(modules.get(name, name)) is None]
if lacking:
    names = ", ".join(lacking)
    print(f"error: PYTHON={python} lacks {names}: {python} -m pip install -r {requirements}", file=sys.stderr)
    sys.exit(2)
' "$PYTHON" "$1"
fi
