"""Errors that the user can mend, as one sentence and exit status 2."""
import codecs
import io
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class InputError(Exception):
    """Something the user gave is wrong; the message names the thing and the remedy.

    problems: where it names several files, what is wrong with each.
    """
    problems = ()


class OutputError(InputError):
    """A file cannot be written: a full disk, a read-only folder. Nothing that was asked for is wrong."""


class Interrupted(Exception):
    """The user asked a run to stop; it has written its checkpoint and said so."""


def installation(requirements="requirements-optional.txt"):
    """Words: the command that installs one of the repository's requirements files for the Python that runs."""
    return f"{sys.executable} -m pip install -r {ROOT / requirements}"


def several(sentence, problems):
    """The InputError that names every bad file: the sentence, then one line for each."""
    error = InputError("\n  ".join([sentence, *problems]))
    error.problems = tuple(problems)
    return error


def run_script(main, arguments=None):
    """Run main(), or main(arguments()), as a program.

    An InputError, or a device out of memory, is printed as one sentence and ends the program with status 2;
    an Interrupted ends it with 130. Where the reader of what it prints has gone (`| head`) it ends without a word, with
    141, as a program that SIGPIPE ends. Any name of a file can be printed, whatever the terminal's encoding.
    """
    args = None
    print_any_name(sys.stdout)
    try:
        if arguments:
            args = arguments()
            main(args)
        else:
            main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted:
        sys.exit(130)
    except RuntimeError as error:
        # Who has not imported torch, which takes seconds, has not run out of its memory.
        if "torch" not in sys.modules or not isinstance(error, sys.modules["torch"].OutOfMemoryError):
            raise
        batch_size = getattr(args, "batch_size", None)
        remedy = f"--batch_size {batch_size // 2}" if batch_size else "a smaller --batch_size or --img_size"
        print(f"error: the device is out of memory ({str(error).splitlines()[0]}): try {remedy}; "
              "the last checkpoint is untouched", file=sys.stderr)
        sys.exit(2)


def print_any_name(stream):
    """Let a text stream print any name: bytes that are no UTF-8 as they are, what its encoding lacks as an escape."""
    if isinstance(stream, io.TextIOWrapper):            # a notebook's is not
        stream.reconfigure(errors="any_name")


def _any_name(error):
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error("any_name", _any_name)
