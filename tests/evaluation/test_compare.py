"""Runs written, read back, paired and put into one table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composed import compose_config

from captioner.commands.compare import compare
from captioner.commands.scoring import evaluate_files, evaluate_humans, format_scores
from captioner.errors import ConfigError, DataError
from captioner.evaluation.coco_format import write_references, write_results
from captioner.evaluation.compare import compare_runs, format_comparison, format_seeds, seed_table
from captioner.evaluation.metrics import ScoringOptions
from captioner.evaluation.records import RunRecord, load_record
from captioner.evaluation.scores import score_files

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading METEOR's paraphrases takes seconds, and nothing here is about them."""
    monkeypatch.setattr("captioner.evaluation.meteor_words._installed", lambda: (None, None))


REFERENCES = {n: [f"a dog number {n} runs in the park", f"dog {n} is here"] for n in range(30)}
GOOD = {n: f"a dog number {n} runs in the park" for n in REFERENCES}
WORSE = {n: text if n % 3 else "a cat" for n, text in GOOD.items()}


def scored(folder: Path, name: str, hypotheses: dict[int, str], **options: object) -> RunRecord:
    write_results(folder / f"{name}.json", dict(hypotheses.items()))
    write_references(folder / "refs.json", dict(REFERENCES.items()))
    metrics = ["BLEU", "ROUGE-L", "CIDEr", "METEOR-py"]
    return score_files(
        results=folder / f"{name}.json",
        references=folder / "refs.json",
        out=folder / name / "scores.json",
        options=ScoringOptions(metrics=metrics, samples=50, **options),  # type: ignore[arg-type]
    )


def test_a_run_read_back_is_the_run_that_was_written(tmp_path: Path) -> None:
    record = scored(tmp_path, "worse", WORSE)
    for path in (tmp_path / "worse", tmp_path / "worse/scores", tmp_path / "worse/scores.json"):
        back = load_record(path)
        assert back.name == record.name and list(back.metrics) == list(record.metrics)
        for name, metric in record.metrics.items():
            assert back.metrics[name].value == pytest.approx(metric.value, abs=1e-6)
            np.testing.assert_allclose(back.metrics[name].per_image, metric.per_image, atol=1e-6)
        assert [i.image_id for i in back.images] == list(range(30))
        assert back.images[1].captions[0].text == GOOD[1]


def test_two_runs_are_tested_in_pairs(tmp_path: Path) -> None:
    a, b = scored(tmp_path, "worse", WORSE), scored(tmp_path, "good", GOOD)
    found = compare_runs(a, b, samples=200, shown=3)
    for name in ("BLEU-4", "ROUGE-L", "CIDEr-D", "METEOR-py"):
        one = found.differences[name]
        assert one.difference > 0 and one.low > 0 and one.p_randomisation < 0.02, name
    assert {a_image.image_id for a_image, _ in found.apart} <= {n for n in range(30) if n % 3 == 0}
    assert "most different in CIDEr-D" in format_comparison(found)
    assert json.loads(json.dumps(found.as_json()))["runs"] == ["worse", "good"]
    assert not found.warnings
    no_penalty = scored(tmp_path, "other", GOOD, protocol="neuraltalk")
    assert any("tokeniser" in warning for warning in compare_runs(a, no_penalty).warnings)


def test_runs_of_other_images_cannot_be_paired(tmp_path: Path) -> None:
    a = scored(tmp_path, "a", GOOD)
    fewer = dataclasses.replace(a, name="b", images=a.images[1:])
    with pytest.raises(DataError, match="1 images are in one only, such as 0"):
        compare_runs(a, fewer)
    other = dataclasses.replace(a.images[0], references=["x"])
    with pytest.raises(DataError, match="image 0 has other references"):
        compare_runs(a, dataclasses.replace(a, images=[other, *a.images[1:]]))
    with pytest.raises(DataError, match="no SPICE in common"):
        compare_runs(a, a, metric="SPICE")


def test_seeds_make_one_table(tmp_path: Path) -> None:
    runs = [scored(tmp_path, "a", GOOD), scored(tmp_path, "b", WORSE), scored(tmp_path, "c", WORSE)]
    table = seed_table(runs)
    values = [run.metrics["ROUGE-L"].value for run in runs]
    assert table["ROUGE-L"]["mean"] == pytest.approx(np.mean(values))
    assert table["ROUGE-L"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert "3 runs: a, b, c" in format_seeds(table, runs)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    scored(tmp_path, "a", GOOD)
    (tmp_path / "a/scores_images.json").write_text('{"images": [{}], "statistics": {}}')
    with pytest.raises(DataError, match=r"scores_images\.json lacks 'name', found an object"):
        load_record(tmp_path / "a")


def test_the_commands_score_and_compare_without_a_checkpoint(tmp_path: Path, run_script) -> None:  # type: ignore[no-untyped-def]
    write_references(tmp_path / "refs.json", dict(REFERENCES.items()))
    common = [f"references={tmp_path}/refs.json", "metrics=[BLEU,ROUGE-L,CIDEr]"]
    for name, captions in (("a", GOOD), ("b", WORSE)):
        write_results(tmp_path / f"{name}.json", dict(captions.items()))
        files = [f"results={tmp_path}/{name}.json", f"out={tmp_path}/{name}/scores.json"]
        config = compose_config("evaluate", [*files, *common], configs=CONFIGS)
        text = format_scores(evaluate_files(config).scores)
        assert "beside it, human" in text and "95 %" in text
        assert (tmp_path / name / "scores.html").is_file()
    human = compose_config("evaluate", ["human=true", *common], configs=CONFIGS)
    assert "BLEU-4" in format_scores(evaluate_humans(human))
    done = run_script(tmp_path, "compare", "a/scores", "b/scores", "samples=100", "report=ab.html")
    assert done.returncode == 0, done.stderr
    assert "b - a" in done.stdout and (tmp_path / "ab.html").is_file()
    runs = [f"{tmp_path}/{name}" for name in ("a", "b", "a")]
    three = compose_config("compare", [f"runs=[{','.join(runs)}]"], configs=CONFIGS)
    assert "3 runs" in compare(three)
    with pytest.raises(ConfigError, match="two runs or more, got 1"):
        compose_config("compare", [f"runs=[{runs[0]}]"], configs=CONFIGS)


def without(*keys: str) -> Callable[[Any], object]:
    """Take a part out of what a file holds; the last of the keys names it."""

    def change(content: Any) -> object:
        for key in keys[:-1]:
            content = content[int(key) if isinstance(content, list) else key]
        return content.pop(keys[-1])

    return change


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("scores_images", without("images", "3", "captions"), r"images\[3\] lacks 'captions'"),
        ("scores_images", without("images", "0", "references"), r"images\[0\] lacks 'references'"),
        ("scores_images", without("images", "0", "scores", "CIDEr-D"), "image 0 has no CIDEr-D"),
        ("scores_images", lambda c: c["images"].clear(), "scores_images.json holds no image"),
        ("scores_images", lambda c: c["images"][1]["captions"].clear(), "image 1 has no caption"),
        (
            "scores_images",
            lambda c: c["images"][1]["captions"][0].update(text=5),
            r"images\[1\]\.captions\[0\]\.text must be text, found 5",
        ),
        (
            "scores_images",
            lambda c: c["statistics"]["BLEU-4"].pop(),
            "statistics of BLEU-4 must be 30 rows of 10 finite numbers",
        ),
        ("scores_images", lambda c: c["statistics"]["BLEU-4"][2].pop(), "must be 30 rows of 10"),
        ("scores_images", lambda c: c["statistics"].update(CIDEr=7), "statistics.CIDEr must be a"),
        (
            "scores_images",
            lambda c: c["statistics"].update({"ROUGE-L": [["1", "1"]] * 30}),
            "statistics of ROUGE-L must be 30 rows of 2 finite numbers",
        ),
        ("scores", without("protocol"), r"scores\.json lacks 'protocol'"),
        ("scores", lambda c: c["intervals"].update(BLEU=[1]), "intervals.BLEU must be a list of 2"),
    ],
)
def test_records_of_another_shape_are_refused(
    tmp_path: Path, file: str, change: Callable[[Any], object], message: str
) -> None:
    scored(tmp_path, "a", GOOD)
    path = tmp_path / "a" / f"{file}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{file}\.json.*{message}|{message}"):
        load_record(tmp_path / "a")
