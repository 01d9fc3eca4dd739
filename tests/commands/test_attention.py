"""evaluate.py of a captioner that attends: maps in files and report, figures of drawn scenes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from composed import compose_config

from captioner.build.trainer import build_trainer
from captioner.commands.evaluate_captions import evaluate_checkpoint
from captioner.evaluation.records import load_record
from captioner.evaluation.report import write_report

CONFIGS = Path(__file__).parents[2] / "configs"
FIGURES = ("attention_on_object", "attention_on_right_object")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a moment each: one that attends, with a sentinel, and one that cannot."""
    folder = tmp_path_factory.mktemp("runs")
    common = [
        f"data.root={folder}/scenes",
        "data.train=64",
        "data.dev=6",
        "data.test=1",
        "data.size=32",
        "encoder.name=plain_small",
        "vocabulary.min_count=1",
        "generation=greedy",
        "generation.max_length=8",
        "model.embedding_dim=16",
        "model.hidden_size=16",
        "trainer.epochs=1",
        "trainer.progress=false",
        "trainer.shown_pictures=2",
    ]
    attends = ["model=adaptive_attention", "model.attention_dim=16", "encoder.grid_size=null"]
    for name, own in {"attends": attends, "pooled": []}.items():
        overrides = [*common, *own, f"run_dir={folder / name}"]
        build_trainer(compose_config("train", overrides, configs=CONFIGS)).run()
    return folder


def evaluate(folder: Path, name: str, *settings: str) -> Any:
    given = [
        f"checkpoint={folder / name}/best.pt",
        "metrics=[BLEU,CIDEr]",
        "samples=0",
        "sanity=false",
        "generation.n_best=2",
        "generation.max_length=8",
        f"out={folder / name}/scores",
        *settings,
    ]
    return evaluate_checkpoint(compose_config("evaluate", given, configs=CONFIGS))


def test_training_measures_and_shows_where_it_looks(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (figures,) = json.loads((folder / "attends/history.json").read_text())
    assert all(0 <= figures[name] <= 100 for name in FIGURES)
    (plain,) = json.loads((folder / "pooled/history.json").read_text())
    assert not set(FIGURES) & set(plain)
    events = {}
    for name in ("attends", "pooled"):
        events[name] = EventAccumulator(str(folder / name / "tensorboard"), {"images": 0})
        events[name].Reload()
    assert {"attention/0", "attention/1"} <= set(events["attends"].Tags()["images"])
    assert not any("attention" in tag for tag in events["pooled"].Tags()["images"])


def test_images_of_the_report_have_maps_and_scenes_their_figures(folder: Path) -> None:
    found = evaluate(folder, "attends", "report=4")
    assert all(0 <= found.scores[name] <= 100 for name in FIGURES)
    images = load_record(found.folder).images
    maps = [[one.maps for one in image.captions] for image in images]
    assert all(own is None for of_image in maps[4:] for own in of_image)
    for of_image, image in zip(maps[:4], images, strict=False):
        for own, caption in zip(of_image, image.captions, strict=True):
            assert own is not None and (own.rows, own.columns, own.crop) == (8, 8, None)
            assert len(own.cells) == len(caption.words) and own.sentinel is not None
    page = (found.folder / "report.html").read_text()
    words = sum(len(one.words) for image in images[:4] for one in image.captions)
    assert page.count(" data-map=") == words and page.count("<canvas") == 4


def test_without_a_report_there_are_figures_and_no_maps(folder: Path) -> None:
    found = evaluate(folder, "attends", "report=0")
    assert set(FIGURES) < set(found.scores)
    assert all(one.maps is None for i in load_record(found.folder).images for one in i.captions)


def test_a_pooled_captioner_says_that_there_are_none(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = evaluate(folder, "pooled")
    assert caplog.text.count("no attention maps: Captioner does not attend") == 1
    assert not set(FIGURES) & set(found.scores)
    assert " data-map=" not in (found.folder / "report.html").read_text()


def test_results_of_another_search_have_a_folder_of_their_own(folder: Path) -> None:
    consensus = ["out=null", "generation.beam_size=3", "generation.rerank=consensus", "report=0"]
    found = [
        evaluate(folder, "pooled", *consensus, f"generation.document_frequencies={table}")
        for table in ("null", "train")
    ]
    names = ["dev_beam3_consensus", "dev_beam3_consensus_train"]
    assert [one.folder for one in found] == [folder / "pooled" / name for name in names]


def test_two_runs_are_compared_over_one_image(folder: Path, tmp_path: Path) -> None:
    runs = [load_record(evaluate(folder, name).folder) for name in ("attends", "pooled")]
    write_report(tmp_path / "r.html", runs, title="both")
    text = (tmp_path / "r.html").read_text()
    assert text.count("<canvas") == 6 and text.count(" data-attended=") == 6
