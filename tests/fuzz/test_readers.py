"""Every file that somebody else may have written, in hostile forms: taken or refused clearly.

Each reader gets files that the package (or the program they are from) writes, of which one is
changed. What was read is then used, as the commands do, so that nothing wrong is only found later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz.cases import check_end, fuzzed
from fuzz.mutations import changed_bytes, changed_content, changed_json
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file
from torch import nn

from captioner.build.checkpoint import TrainedLanguageModel, load_trained
from captioner.build.models import build_captioner, build_language_model
from captioner.commands.compare import compare
from captioner.commands.leaderboard import leaderboard
from captioner.commands.scoring import evaluate_files
from captioner.config import (
    CompareConfig,
    EvaluateConfig,
    FolderData,
    LeaderboardConfig,
    ModelConfig,
    RnnConfig,
    TextData,
)
from captioner.data.captions import CaptionedImage
from captioner.data.download import read_sums
from captioner.data.encoded import encode_splits
from captioner.data.formats.coco import load_coco
from captioner.data.formats.flickr8k import load_flickr8k
from captioner.data.formats.folder import load_folder
from captioner.data.formats.karpathy import load_karpathy
from captioner.data.formats.prepare import prepare_flickr8k
from captioner.data.images import load_image
from captioner.data.scenes.dataset import draw_scenes, load_scene_boxes
from captioner.data.text.corpus import encode_corpus
from captioner.data.text.files import Document
from captioner.data.text.windows import TextWindows
from captioner.data.vocabulary import Vocabulary
from captioner.errors import DataError
from captioner.evaluation.cider import DocumentFrequencies
from captioner.evaluation.coco_format import write_references, write_results
from captioner.evaluation.metrics import ScoringOptions
from captioner.evaluation.scores import score_files
from captioner.features.extraction import extract_features
from captioner.features.statistics import KeptStatistics
from captioner.features.store import load_features
from captioner.files import file_digest, read_text
from captioner.models.stream import StreamModel
from captioner.models.weights import read_state_dict
from captioner.runs.folder import check_same_run
from captioner.training.averaging import average_checkpoints
from captioner.training.checkpoint import Checkpoint, save_checkpoint
from captioner.training.model_folder import CONFIG, VOCABULARY, WEIGHTS, save_folder
from captioner.training.optimisation import make_optimizer, parameter_groups
from captioner.training.setup import TrainerSettings, TrainingSetup
from captioner.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
CPU = torch.device("cpu")
WORDS = Vocabulary([*"abcde"], counts=[0, 9, 9, 0, 5, 4, 3, 2, 1])
MODEL = ModelConfig(embedding_dim=4, hidden_size=4, backend="reference")
NAMES = ["a.jpg", "b.jpg", "c.jpg"]
CAPTIONS = {name: [f"a dog in the {name}", "a dog"] for name in NAMES}


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading METEOR's paraphrases takes seconds, and nothing here is about them."""
    monkeypatch.setattr("captioner.evaluation.meteor_words._installed", lambda: (None, None))


@dataclasses.dataclass(frozen=True)
class Reader:
    """`make` writes valid files into a folder, of which `files` (patterns) are changed, `use` reads
    and uses them; `writes` where it writes beside them. `own`: more hostile forms of a file."""

    make: Callable[[Path], object]
    files: tuple[str, ...]
    use: Callable[[Path], object]
    writes: bool = False
    own: Callable[[str, bytes], st.SearchStrategy[bytes]] | None = None


def move(source: Path, target: Path) -> None:
    """Put in the place of a file whatever is, or is not, at `source`."""
    target.unlink(missing_ok=True)
    if os.path.lexists(source):
        source.rename(target)


# -- checkpoints ----------------------------------------------------------------------------------


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def checkpoint_forms(name: str, data: bytes) -> st.SearchStrategy[bytes]:
    """Checkpoints with another part, or with another JSON document as one of their texts."""
    content = torch.load(io.BytesIO(data), weights_only=True)

    def with_text(name: str) -> st.SearchStrategy[bytes]:
        texts = content["texts"]
        return changed_json(texts[name]).map(
            lambda text: saved({**content, "texts": {**texts, name: text}})
        )

    return changed_content(content).map(saved) | st.sampled_from([*content["texts"]]).flatmap(
        with_text
    )


def config_text(data: Any, encoder: dict[str, Any]) -> str:
    config = {
        **{"seed": 0, "model": dataclasses.asdict(MODEL), "data": dataclasses.asdict(data)},
        **{"rnn": dataclasses.asdict(RnnConfig()), "vocabulary": {"min_count": 1}},
        **{"encoder": encoder, "generation": {"method": "greedy", "max_length": 3}},
    }
    return json.dumps(config)


def captioner_checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    model = build_captioner(MODEL, vocab_size=len(WORDS), feature_dim=3)
    encoder = {"kind": "features", "name": "x", "weights": "random", "path": "mine.npy"}
    texts = {
        "config": config_text(FolderData(captions="x.csv", images="x"), encoder),
        "vocabulary": WORDS.to_json(),
        "encoder": json.dumps({"kind": "features", "feature_dim": 3, "regions": 1}),
    }
    return Checkpoint(model.state_dict(), texts, {"BLEU-4": 12.0})


def text_checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    model = build_language_model(MODEL, vocab_size=len(WORDS), rnn=RnnConfig())
    text = TextData(path="x.txt")
    texts = {
        "config": config_text(text, {"kind": "none", "name": "x", "weights": "random"}),
        "vocabulary": WORDS.to_json(),
    }
    return Checkpoint(StreamModel(model).state_dict(), texts, {"loss": 1.5})


def use_checkpoint(path: Path) -> None:
    trained = load_trained(path, device=CPU)
    trained.describe()
    if isinstance(trained, TrainedLanguageModel):
        tokens = torch.tensor(trained.codec.encode("ab"))
        trained.model(tokens, torch.ones(2, dtype=torch.int64))
        trained.codec.decode(range(len(trained.vocabulary)))
    else:
        trained.vocabulary.decode(range(len(trained.vocabulary)))
        trained.model.embed_images(torch.zeros(1, 1, 3))


def make_model_folder(folder: Path) -> None:
    save_folder(folder / "model", captioner_checkpoint(), card="x")


def use_model_folder(folder: Path) -> None:
    """With the sums of the files as they are: otherwise any change would end at these."""
    path = folder / "model" / CONFIG
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError, OSError, DataError):
        content = json.loads(read_text(path))
        for name in (VOCABULARY, WEIGHTS):
            content["sha256"][name] = file_digest(folder / "model" / name)
        path.write_text(json.dumps(content))
    use_checkpoint(folder / "model")


class TextOrder:
    """The batches of two windows, for a trainer."""

    epoch, position = 0, 0

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, k) for k in range(self.position, 2)])


def trainer_in(folder: Path) -> Trainer:
    torch.manual_seed(0)
    tokens = np.array([1, 4, 5, 6, 7, 8] * 4, np.uint8)
    model = StreamModel(build_language_model(MODEL, vocab_size=len(WORDS), rnn=RnnConfig()))
    order = TextOrder()
    windows = TextWindows(tokens, batch_size=2, window=6, bos=1, seed=0)
    groups = parameter_groups(model, lr=0.1, weight_decay=0.1, lr_by_prefix={})
    setup = TrainingSetup(
        model=model,
        optimizer=make_optimizer("adam", groups),
        loader=(windows[place] for place in order),
        order=order,
        validate=lambda step: {"loss": float(step)},
        texts={"vocabulary": WORDS.to_json()},
    )
    settings = TrainerSettings(epochs=2, best_metric="loss", ema=0.9)
    return Trainer(setup, folder=folder, settings=settings, device=CPU)


def make_run(folder: Path) -> None:
    trainer = trainer_in(folder)
    trainer.reporting = dataclasses.replace(trainer.reporting, show_progress=False)
    with trainer.writer:
        trainer._train_epoch(type("Calm", (), {"requested": False})())  # type: ignore[arg-type]
        trainer.finish_epoch()


def resume_run(folder: Path) -> None:
    trainer = trainer_in(folder)
    trainer.reporting = dataclasses.replace(trainer.reporting, show_progress=False)
    trainer.resume()
    trainer.run()


# -- runs, scores ---------------------------------------------------------------------------------


def make_leaderboard(folder: Path) -> None:
    for name, lr in (("a", 0.1), ("b", 0.2)):
        run = folder / name
        (run / "dev_greedy").mkdir(parents=True)
        config = {
            **{"trainer": {"best_metric": "BLEU-4", "epochs": 2}, "data": {"kind": "scenes"}},
            **{"optimizer": {"lr": lr}, "generation": {"method": "greedy"}},
        }
        history = [{"epoch": 1, "seconds": 3.5, "BLEU-4": 5.0}, {"epoch": 2, "BLEU-4": 7.0}]
        outcome = {"state": "finished", "metric": "BLEU-4", "best": 7.0, "epoch": 2}
        card = {"split": "dev", "checkpoint": "best.pt", "generation": {"method": "greedy"}}
        scores = {"BLEU-4": 7.0, "intervals": {"BLEU-4": [6.0, 8.0]}, "protocol": card}
        for file, content in (
            *(("config.json", config), ("history.json", history), ("outcome.json", outcome)),
            ("dev_greedy/scores.json", scores),
        ):
            (run / file).write_text(json.dumps(content))
        (run / "best.pt").touch()


def use_leaderboard(folder: Path) -> None:
    for out in ("out.csv", "out.json"):
        leaderboard(LeaderboardConfig(folders=[str(folder)], out=str(folder / out)))


def use_run_folder(folder: Path) -> None:
    config = {"seed": 1, "model": {"kind": "show_and_tell", "backend": "auto"}, "lr": [0.1, None]}
    (folder / "now.json").write_text(json.dumps(config))
    check_same_run(folder, config)


def make_scored(folder: Path) -> None:
    for name, word in (("a", "dog"), ("b", "cat")):
        write_results(folder / f"{name}.json", {n: f"a {word} in the {n}" for n in NAMES})
        write_references(folder / "refs.json", dict(CAPTIONS.items()))
        score_files(
            results=folder / f"{name}.json",
            references=folder / "refs.json",
            out=folder / f"{name}_scores.json",
            options=ScoringOptions(metrics=["BLEU", "CIDEr"], samples=10),
        )


def use_records(folder: Path) -> None:
    runs = [str(folder / f"{name}_scores.json") for name in "ab"]
    out, page = str(folder / "c.json"), str(folder / "c.html")
    compare(CompareConfig(runs=runs, out=out, report=page, samples=10))


def use_results(folder: Path) -> None:
    evaluate_files(
        EvaluateConfig(
            results=str(folder / "a.json"),
            references=str(folder / "refs.json"),
            out=str(folder / "s.json"),
            metrics=["BLEU", "CIDEr"],
            samples=10,
            document_frequencies=str(folder / "df.json"),
        )
    )


def make_results(folder: Path) -> None:
    make_scored(folder)
    words = [[text.split() for text in texts] for texts in CAPTIONS.values()]
    DocumentFrequencies.of(words).save(folder / "df.json")


# -- features and text ----------------------------------------------------------------------------


def make_features(folder: Path) -> None:
    features = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    np.save(folder / "mine.npy", features)
    (folder / "mine.names.json").write_text(json.dumps(NAMES))
    np.save(folder / "text.npy", features)
    (folder / "text.names.txt").write_text("\n".join(NAMES))
    save_file({"features": features}, folder / "mine.safetensors", {"names": json.dumps(NAMES)})


def use_features(folder: Path) -> None:
    for name in ("mine.npy", "text.npy", "mine.safetensors"):
        store = load_features(folder / name, names=NAMES)
        store.statistics()
        store.gather(store.rows(NAMES))


def extracted(folder: Path, cache: Path | None = None) -> torch.Tensor:
    """Features of two files as extraction computes and caches them, beside the files or there."""
    images = [(name, folder / name) for name in ("x", "y")]
    ready = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
    store = extract_features(
        **{"key": "k", "shape": (2, 4), "images": images, "cache_dir": cache or folder / "cache"},
        encoded=lambda blocks, _: ((rows, ready[rows.start : rows.stop]) for rows in blocks),
        progress=False,
    )
    return store.gather(store.rows(["x", "y"]))


def make_feature_cache(folder: Path) -> None:
    for name in ("x", "y"):
        (folder / name).write_text(name)
    extracted(folder)
    (made,) = (folder / "cache").iterdir()
    for file in ("meta.json", "done.npy", "features.npy"):
        shutil.copy(made / file, folder / file)


def use_feature_cache(folder: Path) -> None:
    """The files of the cache are at hand, for the cache's own name follows from dates."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    extracted(folder)
    (made,) = (folder / "cache").iterdir()
    for file in ("meta.json", "done.npy", "features.npy"):
        move(folder / file, made / file)
    extracted(folder)


def encoded_text(folder: Path) -> Any:
    splits = {"train": [Document(folder / "x.txt", 0, 30)]}
    return encode_corpus(
        splits, name="x", unit="character", min_count=1, cache_dir=folder / "cache"
    )


def make_text_cache(folder: Path) -> None:
    (folder / "x.txt").write_text("a dog in a park, and a cat too" * 2)
    encoded_text(folder)
    (made,) = (folder / "cache").iterdir()
    for file in ("text.json", "train.bin"):
        shutil.copy(made / file, folder / file)


def use_text_cache(folder: Path) -> None:
    shutil.rmtree(folder / "cache", ignore_errors=True)
    encoded_text(folder)
    (made,) = (folder / "cache").iterdir()
    for file in ("text.json", "train.bin"):
        move(folder / file, made / file)
    corpus = encoded_text(folder)
    corpus.summary()
    tokens = torch.from_numpy(corpus.split("train").tokens.astype(np.int64))
    nn.Embedding(len(corpus.codec.vocabulary), 2)(tokens)
    corpus.codec.decode(tokens.tolist())


def captioned(folder: Path) -> dict[str, list[CaptionedImage]]:
    images = [
        CaptionedImage(name, folder / name, tuple(texts), name) for name, texts in CAPTIONS.items()
    ]
    return {"train": images[:2], "dev": images[2:]}


def encoded_captions(folder: Path) -> None:
    settings: Any = {"min_count": 1, "rare": "unk", "max_length": 9, "cache_dir": folder}
    vocabulary, encoded = encode_splits(captioned(folder), **settings)
    nn.Embedding(len(vocabulary), 2)(torch.from_numpy(encoded["train"].tokens))


def use_statistics(folder: Path) -> None:
    features = np.ones((3, 2, 4), np.float32)
    kept = KeptStatistics(folder, np.arange(3))
    assert kept.read(4) is None or np.isfinite(kept.read(4)).all()  # type: ignore[arg-type]
    kept.write(features.mean((0, 1)), features.std((0, 1)))


def changed_arrays(name: str, data: bytes) -> st.SearchStrategy[bytes]:
    """An archive with another array, or without one."""
    with np.load(io.BytesIO(data)) as stored:
        arrays = dict(stored)
    odd = (
        *(np.array(0), np.zeros(0), np.full(4, np.nan), np.array(["x"]), np.ones((2, 2), np.int64)),
        *(np.array([-1, 999], np.int64), np.frombuffer(b"{}", np.uint8)),
    )

    def packed(name: str, array: np.ndarray | None) -> bytes:
        buffer = io.BytesIO()
        changed = {**arrays, name: array}
        np.savez(buffer, **{k: x for k, x in changed.items() if x is not None})
        return buffer.getvalue()

    return st.builds(packed, st.sampled_from([*arrays]), st.sampled_from([None, *odd]))


# -- data sets ------------------------------------------------------------------------------------


def photo(path: Path, **settings: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path, **settings)


def make_data(folder: Path) -> None:
    for name in NAMES:
        photo(folder / name)
    ids = {name: number for number, name in enumerate(NAMES)}
    write_references(
        folder / "coco.json",
        {ids[name]: texts for name, texts in CAPTIONS.items()},
        file_names={ids[name]: name for name in NAMES},
    )
    entries = [
        {
            "filename": n,
            "split": s,
            "cocoid": ids[n],
            "sentences": [{"raw": t} for t in CAPTIONS[n]],
        }
        for n, s in zip(NAMES, ("train", "val", "test"), strict=True)
    ]
    (folder / "karpathy.json").write_text(json.dumps({"images": entries, "dataset": "x"}))
    rows = [
        (n, t, s) for n, s in zip(NAMES, ("train", "dev", "test"), strict=True) for t in CAPTIONS[n]
    ]
    lines = [f'{name},"{text}",{split}' for name, text, split in rows]
    (folder / "rows.csv").write_text("\n".join(["image,caption,split", *lines]))
    objects = [json.dumps({"image": n, "caption": t, "split": s}) for n, t, s in rows]
    (folder / "rows.jsonl").write_text("\n".join(objects))
    (folder / "Images").mkdir()
    numbered = [f"{n}#{k}\t{t}" for n, texts in CAPTIONS.items() for k, t in enumerate(texts)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(numbered))
    for name, split in zip(NAMES, ("train", "dev", "test"), strict=True):
        shutil.copy(folder / name, folder / "Images" / name)
        (folder / f"Flickr_8k.{split}Images.txt").write_text(f"{name}\n")
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  x.zip\n{'a' * 64} *y z.zip\n")


def use_data(folder: Path) -> None:
    """Every format, so that each case reads the file that was changed, whichever that is."""
    wrong = None
    for load in (
        lambda: load_coco({"train": folder / "coco.json"}, {"train": folder}),
        lambda: load_karpathy(folder / "karpathy.json", folder),
        lambda: load_folder(folder / "rows.csv", folder),
        lambda: load_folder(folder / "rows.jsonl", folder),
        lambda: load_flickr8k(folder),
        lambda: read_sums(folder / "SHA256SUMS"),
    ):
        try:
            data: Any = load()
            for split in getattr(data, "splits", {}):
                for image in data.split(split):
                    load_image(image.path)
        except DataError as error:
            wrong = error
    if wrong is not None:
        raise wrong


def make_scenes(folder: Path) -> None:
    drawn = draw_scenes(folder, train=2, dev=1, test=1, size=32)
    shutil.copy(drawn.splits["train"][0].path.parent / "scenes.json", folder / "scenes.json")


KINDS = {"jpg": {}, "png": {"compress_level": 0}, "gif": {}, "webp": {}, "bmp": {}, "tif": {}}


def make_images(folder: Path) -> None:
    for kind, settings in KINDS.items():
        photo(folder / f"x.{kind}", **settings)


def use_images(folder: Path) -> None:
    wrong = None
    for kind in KINDS:
        try:
            load_image(folder / f"x.{kind}").tobytes()
        except DataError as error:
            wrong = error
    if wrong is not None:
        raise wrong


def make_archives(folder: Path) -> None:
    with zipfile.ZipFile(folder / "Flickr8k_text.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Flickr8k.token.txt", "a.jpg#0\ta dog runs\n")
    with zipfile.ZipFile(folder / "Flickr8k_Dataset.zip", "w") as archive:
        archive.writestr("Flicker8k_Dataset/a.jpg", b"an image")


def use_archives(folder: Path) -> None:
    unpacked = folder / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    for name in ("Flickr8k_text.zip", "Flickr8k_Dataset.zip"):
        move(folder / name, unpacked / name)
    elsewhere = "http://elsewhere/x.zip"  # for which no checksum is published
    prepare_flickr8k(root=unpacked, download=False, images_url=elsewhere, text_url=elsewhere)


def make_weights(folder: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    torch.save({"state_dict": state}, folder / "x.pth")
    save_file({name: tensor.numpy() for name, tensor in state.items()}, folder / "x.safetensors")


def use_weights(folder: Path) -> None:
    for name in ("x.pth", "x.safetensors"):
        read_state_dict(folder / name)


def weight_forms(name: str, data: bytes) -> st.SearchStrategy[bytes]:
    if not name.endswith(".pth"):
        return changed_bytes(data)
    return changed_content(torch.load(io.BytesIO(data), weights_only=True)).map(saved)


DATA = ("coco.json", "karpathy.json", "rows.csv", "rows.jsonl", "Flickr8k.token.txt")
READERS = {
    "captioner": Reader(
        lambda folder: save_checkpoint(folder / "best.pt", captioner_checkpoint()),
        ("best.pt",),
        lambda folder: use_checkpoint(folder / "best.pt"),
        own=checkpoint_forms,
    ),
    "language model": Reader(
        lambda folder: save_checkpoint(folder / "best.pt", text_checkpoint()),
        ("best.pt",),
        lambda folder: use_checkpoint(folder / "best.pt"),
        own=checkpoint_forms,
    ),
    "average": Reader(
        lambda folder: [
            save_checkpoint(folder / name, text_checkpoint()) for name in ("a.pt", "b.pt")
        ],
        ("a.pt", "b.pt"),
        lambda folder: average_checkpoints([folder / "a.pt", folder / "b.pt"]),
        own=checkpoint_forms,
    ),
    "resumed run": Reader(
        make_run, ("last.pt", "timing.json"), resume_run, writes=True, own=checkpoint_forms
    ),
    "model folder": Reader(
        make_model_folder,
        (f"model/{CONFIG}", f"model/{VOCABULARY}", f"model/{WEIGHTS}"),
        use_model_folder,
        writes=True,
    ),
    "leaderboard": Reader(
        make_leaderboard,
        ("a/config.json", "a/history.json", "a/outcome.json", "a/dev_greedy/scores.json"),
        use_leaderboard,
        writes=True,
    ),
    "run folder": Reader(
        lambda folder: (folder / "config.json").write_text(
            '{"seed": 1, "model": {"kind": "show_and_tell", "backend": "auto"}, "lr": [0.1, null]}'
        ),
        ("config.json",),
        use_run_folder,
        writes=True,
    ),
    "records": Reader(
        make_scored, ("a_scores.json", "a_scores_images.json"), use_records, writes=True
    ),
    "results": Reader(make_results, ("a.json", "refs.json", "df.json"), use_results, writes=True),
    "features": Reader(
        make_features,
        ("mine.npy", "mine.names.json", "text.names.txt", "mine.safetensors"),
        use_features,
    ),
    "feature cache": Reader(
        make_feature_cache,
        ("meta.json", "done.npy", "features.npy"),
        use_feature_cache,
        writes=True,
    ),
    "text cache": Reader(make_text_cache, ("text.json", "train.bin"), use_text_cache, writes=True),
    "data sets": Reader(
        make_data, (*DATA, "Flickr_8k.trainImages.txt", "SHA256SUMS", "a.jpg"), use_data
    ),
    "encoded captions": Reader(
        encoded_captions, ("captions/*.npz",), encoded_captions, writes=True, own=changed_arrays
    ),
    "statistics": Reader(
        use_statistics, (KeptStatistics.PATTERN,), use_statistics, writes=True, own=changed_arrays
    ),
    "scenes": Reader(make_scenes, ("scenes.json",), load_scene_boxes),
    "images": Reader(make_images, tuple(f"x.{kind}" for kind in KINDS), use_images),
    "archives": Reader(
        make_archives, ("Flickr8k_text.zip", "Flickr8k_Dataset.zip"), use_archives, writes=True
    ),
    "weights": Reader(make_weights, ("x.pth", "x.safetensors"), use_weights, own=weight_forms),
}
# What may stand in the place of a file: nothing, a pipe that never says anything, a folder, a link
# to itself.
NO_FILES: tuple[Callable[[Path], object], ...] = (
    lambda path: None,
    os.mkfifo,
    lambda path: path.mkdir(),
    lambda path: path.symlink_to(path.name),
)
CASES = 12  # of each reader in the gate
SLOW = {"resumed run": 5, "records": 5, "archives": 8, "leaderboard": 5, "feature cache": 5}


@pytest.mark.parametrize("name", READERS)
def test_hostile_files_are_taken_or_refused_in_one_sentence(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    reader, valid = READERS[name], tmp_path_factory.mktemp("valid")
    here = tmp_path_factory.mktemp("hostile") / "x"
    reader.make(valid)
    shutil.copytree(valid, here)
    if name != "archives":  # of which one image is not the whole data set
        reader.use(here)
    contents = {
        str(path.relative_to(valid)): path.read_bytes()
        for pattern in reader.files
        for path in valid.glob(pattern)
    }
    assert len(contents) == len(reader.files)

    def forms(file: str) -> st.SearchStrategy[tuple[str, bytes]]:
        data = contents[file]
        found = changed_bytes(data)
        if file.endswith(".json"):
            found |= changed_json(data.decode()).map(lambda text: text.encode("utf-8"))
        elif reader.own is not None:
            found |= reader.own(file, data)
        return found.map(lambda changed: (file, changed))

    def attempt(file: str, put: Callable[[Path], object]) -> None:
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(valid, here)
        (here / file).unlink()
        put(here / file)
        check_end(name, lambda: reader.use(here), reads=None if reader.writes else here)

    for file in contents:
        for put in NO_FILES:
            attempt(file, put)

    @fuzzed(SLOW.get(name, CASES))
    @given(st.sampled_from([*contents]).flatmap(forms))
    def run(case: tuple[str, bytes]) -> None:
        file, changed = case
        attempt(file, lambda path: path.write_bytes(changed))

    run()
