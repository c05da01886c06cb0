"""torchrun, for a Job. Run: python -m training.torchrun --nproc-per-node 2 -m training.run style --styles DIR

Takes torchrun's options, and two things more. It ends with the exit status of its workers, by which a Job's
podFailurePolicy decides: torchrun ends with 1 whatever they said. With --unless FILE it ends at once if that names a
version that is published: a pod that takes over after the others are done would wait for them for ever. Where the run
beside FILE was made with other options, that is status 2.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from serving import cli
from training import provenance
from training.errors import BAD_INPUT, REFUSED, STOPPED, BadInput


def main(arguments: list[str]) -> int:
    parser = cli.Parser(prog="python -m training.torchrun", add_help=False, allow_abbrev=False)
    parser.add_argument("--unless", type=Path)
    own, torchruns = parser.parse_known_args(arguments)
    try:
        if own.unless and (said := provenance.noted(own.unless)):
            return _already(said, own.unless, torchruns)
        run.main(torchruns)
    except BadInput as error:
        print(f"training.torchrun: {error}", file=sys.stderr)
        return BAD_INPUT
    except ChildFailedError as error:
        return _status(error)
    except SignalException:
        return STOPPED
    return 0


def _already(said: str, published: Path, arguments: list[str]) -> int:
    """A run that is published trains no more: says so. Raises BadInput if it is not the one that is asked for."""
    made = provenance.last(provenance.read(published.parent, fields=("command",)))["command"]
    if made != arguments[-len(made) :]:
        other = f"is of a run that was made with other options: {shlex.join(made)}; give the Job another name"
        raise BadInput(f"{published} {other}")
    print(said, end="")
    return 0


def _status(error: ChildFailedError) -> int:
    """What a worker said, if one did: the others may have ended before it only because they lost it. Being stopped is
    nothing that one says: torchrun sends SIGTERM to all that are left when one has failed."""
    said = [failure.exitcode for failure in error.failures.values()]
    for status in (BAD_INPUT, REFUSED):
        if status in said:
            return status
    first = error.get_first_failure()[1].exitcode
    return first if first > 0 else 128 - first  # a signal's number, as a shell would tell it


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
