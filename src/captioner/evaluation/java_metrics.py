"""The official METEOR 1.5 and SPICE, run where Java and their jars are: in pycocoevalcap.

Named METEOR and SPICE; nothing is downloaded. A DataError says what is missing.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from captioner.errors import DataError
from captioner.evaluation.meteor_words import pycocoevalcap_file
from captioner.evaluation.metric import Metric, mean_metric


def java_meteor(
    references: Sequence[Sequence[Sequence[str]]], hypotheses: Sequence[Sequence[str]]
) -> Metric:
    """The jar's METEOR, 0 to 100. DataError without Java or the jar.

    The corpus score is the jar's own. The jar does not score sums of its statistics, so bootstrap
    intervals are those of the mean, shifted to the corpus score.
    """
    jar = _jar("meteor", "meteor-1.5.jar")
    lines = [
        " ||| ".join(["SCORE", *map(_text, of_image), _text(hypothesis)])
        for of_image, hypothesis in zip(references, hypotheses, strict=True)
    ]
    scores = _meteor_scores(jar, lines)
    per_image = 100 * np.array(scores[:-1], np.float64)
    shift = 100 * float(scores[-1]) - float(per_image.mean())
    mean = mean_metric("METEOR", per_image)
    return replace(mean, combine=lambda sums: mean.combine(sums) + shift)


def spice(
    references: Sequence[Sequence[Sequence[str]]], hypotheses: Sequence[Sequence[str]]
) -> Metric:
    """SPICE (Anderson et al. 2016), 0 to 100. DataError without Java, jar or Stanford's models."""
    jar = _jar("spice", "spice-1.0.jar")
    models = sorted((jar.parent / "lib").glob("stanford-corenlp-3.6.0*.jar"))
    if len(models) < 2:
        raise DataError(
            f"SPICE needs stanford-corenlp-3.6.0.jar and its models in {jar.parent / 'lib'}, "
            "which pycocoevalcap downloads on its first use"
        )
    entries = [
        {"image_id": row, "test": " ".join(hypothesis), "refs": [" ".join(r) for r in of_image]}
        for row, (of_image, hypothesis) in enumerate(zip(references, hypotheses, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "in.json", Path(folder) / "out.json"
        given.write_text(json.dumps(entries), encoding="utf-8")
        command = ["java", "-Xmx4G", "-jar", jar.name, str(given)]
        command += ["-out", str(found), "-subset", "-silent"]
        done = subprocess.run(
            command, cwd=jar.parent, capture_output=True, encoding="utf-8", check=False
        )
        if done.returncode:
            raise DataError(f"java {jar.name} failed: {done.stderr.strip()[-300:]}")
        results = json.loads(found.read_text(encoding="utf-8"))
    by_image = {one["image_id"]: float(one["scores"]["All"]["f"]) for one in results}
    per_image = 100 * np.nan_to_num(np.array([by_image[row] for row in range(len(entries))]))
    return mean_metric("SPICE", per_image)


def _meteor_scores(jar: Path, lines: Sequence[str]) -> list[str]:
    """The jar's score of each line, and last that of the corpus, from one process."""
    command = ["java", "-Xmx2G", "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        command,
        cwd=jar.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        statistics = []
        for line in lines:
            print(line, file=process.stdin, flush=True)
            statistics.append(process.stdout.readline().strip())
        print(" ||| ".join(["EVAL", *statistics]), file=process.stdin, flush=True)
        scores = [process.stdout.readline().strip() for _ in range(len(lines) + 1)]
    if not all(scores):
        raise DataError(f"METEOR: {jar} stopped after {sum(map(bool, scores))} scores")
    return scores


def _text(tokens: Sequence[str]) -> str:
    return " ".join(tokens).replace("|||", "")


def _jar(folder: str, name: str) -> Path:
    if shutil.which("java") is None:
        raise DataError(f"{name} needs Java, and there is no java on the PATH")
    jar = pycocoevalcap_file(folder, name)
    if jar is None:
        raise DataError(f"{name} is part of pycocoevalcap, which is not installed")
    return jar
