"""Errors that the user can mend, as one sentence and exit status 2."""
import sys

import torch


class InputError(Exception):
    """Something the user gave is wrong; the message names the thing and the remedy."""


class Interrupted(Exception):
    """The user asked a run to stop; it has written its checkpoint and said so."""


def several(sentence, problems):
    """The InputError that names every bad file: the sentence, then one line for each."""
    return InputError("\n  ".join([sentence, *problems]))


def run_script(main, arguments=None):
    """Run main(), or main(arguments()), as a program.

    An InputError, or a device out of memory, is printed as one sentence and ends the program with status 2;
    an Interrupted ends it with 130.
    """
    args = None
    try:
        if arguments:
            args = arguments()
            main(args)
        else:
            main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted:
        sys.exit(130)
    except torch.OutOfMemoryError as error:
        batch_size = getattr(args, "batch_size", None)
        remedy = f"--batch_size {batch_size // 2}" if batch_size else "a smaller --batch_size or --img_size"
        print(f"error: the device is out of memory ({str(error).splitlines()[0]}): try {remedy}; "
              "the last checkpoint is untouched", file=sys.stderr)
        sys.exit(2)
