"""Train a captioner or a language model: `train.py experiment=nic_flickr8k data.root=...`."""

from __future__ import annotations

from captioner.commands.cli import run_command

if __name__ == "__main__":
    run_command("train")
