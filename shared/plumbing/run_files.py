"""What the text files of a run say: args.json and metrics.json. None of this needs torch, which takes seconds."""
import json
from pathlib import Path

from shared.plumbing.errors import InputError
from shared.plumbing.packed import text_of


def read_settings(folder):
    """The arguments of a run, a folder or a packed file, as its args.json holds them. InputError where there are none.
    """
    try:
        return json.loads(text_of(folder, "args.json"))
    except (OSError, ValueError) as error:
        raise InputError(f"{Path(folder) / 'args.json'} cannot be read ({error}): it tells how the run was made; bring "
                         "it back")


def seconds_of(run):
    """Seconds that the training of a run took. InputError where it does not tell."""
    try:
        return json.loads(text_of(run, "metrics.json"))["seconds"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{Path(run) / 'metrics.json'} cannot be read ({error!r}): the command that trained the run "
                         "writes it at the end")


def side_of_part(part, img_size):
    """Side in px of what is cut of images of img_size: `part` (--part), or all where that is None or more."""
    return min(part or img_size, img_size)


def features_of(metrics):
    """The names under which a run's metrics hold retrieval figures: FC and POOL5, or a method's own."""
    return [name for name, figures in metrics.items() if isinstance(figures, dict) and "top1" in figures]


def format_metrics(metrics):
    """The lines that the author prints, FC and POOL5, and the distances where there are any."""
    lines = []
    for name in features_of(metrics):
        figures = [f"{figure.replace('top', 'top-')}: {value:.2f}%" for figure, value in metrics[name].items()]
        lines.append(f"{name}: " + " | ".join(figures))
    for name, distance in metrics.get("distance", {}).items():
        shares = [f"{figure.removeprefix('within')} m: {value:.2f}%" for figure, value in distance.items()
                  if figure.startswith("within")]
        lines.append(f"{name}, first answer within {' | '.join(shares)} | mean: {distance['mean']:.0f} m")
    return "\n".join(lines)
