"""How a command ends when something goes wrong: in one sentence, and an exit status."""

import contextlib
import difflib
import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from captioner.config import COMMANDS, GROUPS, ReplicasConfig, known_keys
from captioner.config.yaml_files import where_named
from captioner.errors import CaptionerError, ConfigError, DataError
from captioner.files import atomic_write
from captioner.runs.upgrade import old_name

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parents[1]
TRACEBACK = "traceback.txt"
# A user's errors, of which the message says enough.
EXPECTED = (CaptionerError, HydraException, OmegaConfBaseException, OSError)
# How torch and numpy say that memory is short; torch's own type is for GPUs.
MEMORY = re.compile(
    r"allocate memory|not enough memory|out of memory|calculation overflowed|array is too big"
)


class UnexpectedError(CaptionerError):
    """A defect of the program: what it was, where, and which file holds the traceback."""


@contextlib.contextmanager
def one_sentence(name: str, folder: Path | str | None = None) -> Iterator[None]:
    """Turn any error into a message on standard error and an exit status.

    Status 1, 2 for an error in the configuration, 130 for an interruption. `name` is the command;
    `folder` as in `located`.
    """
    try:
        with located(folder):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        _stop(explain(error, name), status=2)
    except CaptionerError as error:
        _stop(_message(error), status=2 if isinstance(error, ConfigError) else 1)
    except OSError as error:
        where = short(str(error.filename or "input or output"))
        _stop(f"{where}: {error.strerror or error}", status=1)
    except KeyboardInterrupt as error:
        _stop(str(error) or "interrupted", status=130)


@contextlib.contextmanager
def located(folder: Path | str | None = None) -> Iterator[None]:
    """Turn a defect into an UnexpectedError, memory that is short into a CaptionerError.

    The traceback is written into `folder`, a run's, or where there is none to a temporary file.
    """
    try:
        yield
    except EXPECTED:
        raise
    except Exception as error:
        said = _message(error)
        kind, place = type(error).__name__, _place(error)
        if isinstance(error, MemoryError) or MEMORY.search(said):
            raise CaptionerError(
                f"memory is short in {place}: {said}; a smaller batch, model or image needs less"
            ) from error
        raise UnexpectedError(
            f"unexpected {kind} in {place}: {said}; {_keep_traceback(error, folder)}"
        ) from error


def _message(error: BaseException) -> str:
    """An error's message; of one in a process that loads data without that process's traceback."""
    text = str(error)
    if "\nOriginal Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, CaptionerError):
        return text
    return short(" ".join(text.split())) or "no message"


def _place(error: BaseException) -> str:
    """The innermost line of this package that an error passed; of all where it passed none."""
    lines = traceback.extract_tb(error.__traceback__)
    own = [one for one in lines if Path(one.filename).is_relative_to(PACKAGE)]
    last = (own or lines)[-1]
    path = Path(last.filename)
    shown = path.relative_to(PACKAGE.parent) if own else path
    return f"{shown}, line {last.lineno}"


def _keep_traceback(error: BaseException, folder: Path | str | None) -> str:
    """Write the traceback to a file, and say where."""
    text = "".join(traceback.format_exception(error))
    try:
        if folder is not None and Path(folder).is_dir():
            path = Path(folder) / TRACEBACK
            with atomic_write(path, "w") as kept:
                kept.write(text)
        else:
            descriptor, name = tempfile.mkstemp(prefix="captioner-traceback-", suffix=".txt")
            path = Path(name)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
    except (DataError, OSError) as failure:
        reason = getattr(failure, "strerror", failure)
        return f"the traceback could not be kept: {reason}; CAPTIONER_TRACEBACK=1 shows it"
    return f"the traceback is in {path}, and CAPTIONER_TRACEBACK=1 shows it"


def _stop(message: str, *, status: int) -> None:
    if os.environ.get("CAPTIONER_TRACEBACK") == "1":
        log.exception("traceback")
    print(f"error: {message}" if status != 130 else message, file=sys.stderr)
    sys.exit(status)


def explain(error: Exception, name: str) -> str:
    """Hydra's message in a sentence or two, with the nearest key or choice that exists."""
    text = "\n".join(str(one) for one in (error, error.__cause__) if one is not None)
    text = re.sub(r"\w+ raised while resolving interpolation: ", "", text)
    lines = text.splitlines()
    if text.startswith("LexerNoViableAltException: "):
        given = short(lines[0].partition(": ")[2])
        return f"{given} cannot be read: put the value in quotes, as in 'key=\"value\"'"
    missing = re.search(r"Could not (?:find|load) '([^']+)'", text)
    if missing and missing.group(1).startswith("hydra/launcher/"):
        wanted = missing.group(1).rpartition("/")[2]
        return (
            f"there is no hydra/launcher {wanted!r} here: basic and replicas need nothing, joblib, "
            "submitit_local and submitit_slurm come with pip install 'captioner[sweeps]'"
        )
    if missing:
        group, _, wanted = missing.group(1).rpartition("/")
        choices = [x.strip() for x in lines if re.fullmatch(r"\t\w+", x) and "_schema" not in x]
        near = difflib.get_close_matches(wanted, choices, n=1, cutoff=0.4)
        there = f"{where_named(wanted)}there is no {group or 'configuration'} {wanted!r}"
        there += f", but {', '.join(choices)}" if choices else ""
        return there + (f"; did you mean {near[0]!r}?" if near else "")
    # A file of the user's own: "override /decode: greedy" in its defaults, or a key "decoder:".
    named = re.search(r"(?:Could not override|full_key:|Key) '?/?([\w.]+)", text)
    if named and (sentence := old_name(named[1])) is not None:
        return sentence
    noise = ("To append", "object_type", "reference_type", "full_key", "Set the environment")
    kept = [short(x.strip()) for x in lines if x.strip() and not x.strip().startswith(noise)]
    wrong = re.search(r"Could not override '([^']+)'", text)
    if wrong and (sentence := key_of_another(wrong[1])) is not None:
        return sentence
    if wrong and wrong[1].startswith("replicas."):
        return _not_of_replicas(wrong[1])
    key = nearest(wrong[1], [*known_keys(COMMANDS[name]), *GROUPS]) if wrong else None
    return "; ".join(dict.fromkeys(kept)) + (f"; did you mean {key!r}?" if key else "")


def short(text: str) -> str:
    """A text without the middle of what is too long to be read."""
    return text if len(text) <= 400 else f"{text[:300]} ... {text[-80:]}"


def key_of_another(wrong: str) -> str | None:
    """One sentence where a key is one of other choices of its group."""
    group, _, key = wrong.partition(".")
    choices = {kind: schema for kind, schema in GROUPS.get(group, {}).items() if kind != "base"}
    owners = [kind for kind, schema in choices.items() if key in known_keys(schema)]
    if not owners or len(owners) == len(choices):
        return None
    return f"{wrong} is a key of {group}={', '.join(owners)} alone"


def _not_of_replicas(wrong: str) -> str:
    """One sentence where a list is given of what all replicas share, or of a misspelt key."""
    keys = known_keys(ReplicasConfig)
    near = nearest(wrong.partition(".")[2], keys)
    return (
        f"{wrong} is nothing in which the models of trainer.replicas can differ: {', '.join(keys)} "
        "are; runs that differ in others are a sweep's (-m)"
        + (f"; did you mean replicas.{near}?" if near else "")
    )


def nearest(wrong: str, keys: Sequence[str]) -> str | None:
    """The key nearest to a wrong one: as a whole, or by its last part."""
    by_last = {key.split(".")[-1]: key for key in keys}
    last = difflib.get_close_matches(wrong.split(".")[-1], by_last, n=1)
    near = difflib.get_close_matches(wrong, keys, n=1, cutoff=0.6) or [by_last[k] for k in last]
    return near[0] if near and near[0] != wrong else None
