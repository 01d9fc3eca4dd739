"""Schemas of a recipe: training runs that begin where others ended, and what is scored of them."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from captioner.checks import one_of
from captioner.config.commands import check_views
from captioner.config.ranges import PATH, POSITIVE, SEED, TEXT, Checked, setting
from captioner.errors import ConfigError


@dataclass
class StageConfig(Checked):
    """A training run: an experiment of configs/experiment, which begins with the best weights of
    the stage `init_from`, if that is given.

    encoder: the stage whose trained encoder is taken, frozen. overrides: further ones of train.py.
    minutes: roughly what it takes, from which the time left is estimated.
    """

    experiment: str = setting(MISSING, TEXT)
    init_from: str | None = setting(None, TEXT)
    encoder: str | None = setting(None, TEXT)
    seed: int = setting(0, SEED)
    overrides: list[str] = field(default_factory=list)
    minutes: float = setting(10.0, POSITIVE)


@dataclass
class RowConfig(Checked):
    """A row of the table: the best checkpoint of a stage, or of several as an ensemble.

    views: of an image, over which probabilities are averaged. generation: keys that differ from
    those that the first checkpoint was validated with.
    """

    name: str = setting(MISSING, TEXT)
    stages: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=lambda: ["original"])
    generation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_views(self.views)
        if not self.stages:
            raise ConfigError(f"the row {self.name!r} of a recipe must name a stage")


@dataclass
class PlanConfig(Checked):
    """Stages by name, each after those that it begins with, and the rows of the table."""

    stages: dict[str, StageConfig] = field(default_factory=dict)
    rows: list[RowConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        for place, (name, stage) in enumerate(self.stages.items()):
            before = [*self.stages][:place]
            for key in ("init_from", "encoder"):
                source = getattr(stage, key)
                if source is not None and source not in before:
                    known = ", ".join(before) or "none"
                    raise ConfigError(
                        f"the stage {name} begins with {key}={source}, which must stand before it; "
                        f"before it there are: {known}"
                    )
        for row in self.rows:
            for name in row.stages:
                one_of(f"a stage of the row {row.name!r}", name, tuple(self.stages))


@dataclass
class RecipeConfig(Checked):
    """scripts/recipe.py: trains the stages of a recipe one after another, scores its rows, and
    writes one table.

    out: the folder of all. stages: those to train and score; none for all. data: the experiments'
    own, of which single keys can be given, or another. split: what is scored. overrides: of
    train.py, for every stage.
    """

    out: str = setting(MISSING, PATH)
    stages: list[str] = field(default_factory=list)
    data: Any = None
    split: str = setting("dev", TEXT)
    overrides: list[str] = field(default_factory=list)
    recipe: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = tuple(self.recipe.stages)
        for name in self.stages:
            one_of("stages", name, known)
