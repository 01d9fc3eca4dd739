"""What make_fixtures.sh needs besides the commands: the encoder's first weights, what was reached.

python fixture_files.py encoder encoder.safetensors
python fixture_files.py expected FOLDER...     writes FOLDER's final weights below expected/
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

WIDTHS = (3, 16, 32, 64, 96)  # encoder.name=plain_small
USED = (3, 4, 6, 8, 12)


def initial_encoder() -> dict[str, Tensor]:
    """An encoder most of whose channels are zero, and stay so in training.

    Behind BatchNorm and ReLU a channel of zeros has no gradient, so that checkpoints of an encoder
    that is trained compress to a few kilobytes.
    """
    torch.manual_seed(0)
    tensors = {}
    for stage in range(1, len(WIDTHS)):
        shape = (WIDTHS[stage], WIDTHS[stage - 1], 3, 3)
        weight = torch.zeros(shape)
        used = (USED[stage], USED[stage - 1])
        weight[: used[0], : used[1]] = torch.randn(*used, 3, 3) / 3
        tensors |= {
            f"stage{stage}.0.0.weight": weight,
            f"stage{stage}.0.1.weight": torch.ones(shape[0]),
            f"stage{stage}.0.1.bias": torch.zeros(shape[0]),
            f"stage{stage}.0.1.running_mean": torch.zeros(shape[0]),
            f"stage{stage}.0.1.running_var": torch.ones(shape[0]),
            f"stage{stage}.0.1.num_batches_tracked": torch.tensor(0),
        }
    return tensors


def final_weights(folder: Path) -> dict[str, Tensor]:
    """The model's tensors in a run's last.pt."""
    return dict(torch.load(folder / "last.pt", weights_only=True)["model"])


def digest(tensors: dict[str, Tensor]) -> str:
    """One sha256 over the bytes of all tensors, by name."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def curve(folder: Path) -> list[dict[str, float]]:
    """The run's history without the times, which differ from run to run."""
    history = json.loads((folder / "history.json").read_text())
    return [{k: v for k, v in one.items() if k != "seconds"} for one in history]


def machine() -> str:
    """What the last bits of a product on the CPU depend on."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    lines = re.findall(r"^(?:vendor_id|cpu family|model|model name)\s*:.*$", text, re.MULTILINE)
    about = "; ".join(re.sub(r"\s*:\s*", " ", line) for line in lines[:4])
    return f"torch {torch.__version__}; {torch.backends.cpu.get_cpu_capability()}; {about}"


def write_expected(folders: list[str]) -> None:
    """expected/FOLDER.safetensors, and expected/finals.json with digests and curves."""
    from safetensors.torch import save_file

    runs = {}
    for folder in map(Path, folders):
        tensors = final_weights(folder)
        name = str(folder).replace("/", "_")
        dense = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(dense, f"expected/{name}.safetensors")
        runs[name] = {"sha256": digest(tensors), "history": curve(folder)}
    content = {"machine": machine(), "runs": runs}
    Path("expected/finals.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "encoder":
        from safetensors.torch import save_file

        save_file(initial_encoder(), sys.argv[2])
    else:
        write_expected(sys.argv[2:])
