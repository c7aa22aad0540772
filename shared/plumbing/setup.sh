# Sourced from the repository's root by run.sh and tests/run.sh. Sets PYTHON: the one given, or that of a virtual
# environment in the checkout, made here the first time. Arguments: the requirements files.
if [ -z "${PYTHON:-}" ]; then
  stamp=".venv/installed-$(cat "$@" | cksum | cut -d' ' -f1)"
  if [ ! -f "$stamp" ]; then
    echo "setting up .venv (a minute or two, several GB with CUDA)"
    python3 -c 'import sys; sys.exit("Python 3.10 or newer is needed" if sys.version_info < (3, 10) else 0)'
    python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")
    touch "$stamp"
  fi
  PYTHON=.venv/bin/python
fi
