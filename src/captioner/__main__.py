"""`python -m captioner COMMAND ...`, and the console command `captioner COMMAND ...`."""

from __future__ import annotations

import difflib
import os
import sys

from captioner.commands.table import COMMANDS, typed_name
from captioner.version import __version__


def main() -> None:
    """Run the command that the first argument names with the others; without one, list them."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(listing())
    elif name == "--version":
        print(__version__)
    elif name in COMMANDS:
        run(name, arguments)
    elif name in ("-sc", "--shell-completion"):
        complete(arguments)
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: there is no command {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)


def run(name: str, arguments: list[str]) -> None:
    """Run a command; what is needed for that is imported now."""
    from captioner.commands.cli import run_command

    sys.argv[1:] = arguments
    run_command(name)


def complete(query: list[str]) -> None:
    """Answer the shell's question what may follow: a command's name, or what Hydra knows of it."""
    program, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
    name, space, typed = rest.lstrip().partition(" ")
    if name in COMMANDS and space:
        os.environ["COMP_LINE"] = line = f"{program} {typed}"
        os.environ["COMP_POINT"] = str(len(line))
        run(name, ["-sc", *query])
    else:
        print(" ".join(one for one in COMMANDS if one.startswith(name)))


def listing() -> str:
    """All commands, each with what it is for."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"captioner {__version__}: image captioning and recurrent language models\n",
            *(f"  {name:{width}}  {one.about}" for name, one in COMMANDS.items()),
            f"\n{typed_name('COMMAND')} --help shows its keys and examples; any key: key=value.",
        ]
    )


if __name__ == "__main__":
    main()
