"""A page to try models on: `demo.py checkpoint=best.pt`, two captioners or a writer in a list."""

from __future__ import annotations

import threading

from captioner.commands.cli import run_command
from captioner.config import DemoConfig


def main(config: DemoConfig) -> None:
    """Open the page and print where it is, until it is stopped."""
    from captioner.commands.demo import open_page

    with open_page(config) as address:
        print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    run_command(main, __file__)
