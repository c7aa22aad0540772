"""Errors that the user can mend, as one sentence and exit status 2."""
import sys

import torch

# What to try when the device's memory is full; a run names its own batch size.
MEMORY_REMEDY = ["a smaller --batch_size or --img_size"]


class InputError(Exception):
    """Something the user gave is wrong; the message names the thing and the remedy."""


def several(sentence, problems):
    """The InputError that names every bad file: the sentence, then one line for each."""
    return InputError("\n  ".join([sentence, *problems]))


def run_script(main):
    """Run main(); an InputError, or a device out of memory, is printed as one sentence and ends the script with status 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError as error:
        print(f"error: the device is out of memory ({str(error).splitlines()[0]}): try {MEMORY_REMEDY[0]}; the last checkpoint is untouched", file=sys.stderr)
        sys.exit(2)
