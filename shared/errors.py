"""Errors that the user can mend, as one sentence and exit status 2."""
import sys


class InputError(Exception):
    """Something the user gave is wrong; the message names the thing and the remedy."""


def run_script(main):
    """Run main(); an InputError is printed as one sentence and ends the script with status 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
