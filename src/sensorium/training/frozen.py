"""What a run takes as given: the frozen parts, fetched and fingerprinted, and what each stage's pictures come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium import hub
from sensorium.backbones.choice import resolve
from sensorium.composition import Composition
from sensorium.encoders.base import Grid
from sensorium.errors import UsageError
from sensorium.projectors.spec import tokens_for
from sensorium.training.load_backbone import check_backbone
from sensorium.training.recipe import DataRecipe, Recipe
from sensorium.training.scene_store import StorePlan

if TYPE_CHECKING:
    from sensorium.encoders.base import FeatureSpec


@dataclass(frozen=True)
class Frozen:
    """The frozen side of a run.

    Attributes:
        composition: declares the frozen parts; the recipe's `backbone` is in it already.
        weights, encoder: their files; that of the backbone may be a directory.
        features: the encoder's seam.
        stores: for each stage, what its feature store holds, None where samples come from files; equal plans share
            one store.
        fingerprints: of each frozen part, as the manifest lists them.
    """

    composition: Composition
    weights: Path
    encoder: Path
    features: FeatureSpec
    stores: tuple[StorePlan | None, ...]
    fingerprints: dict[str, str]

    @property
    def backbone_name(self) -> str:
        """What the language model's file or directory is called."""
        part = self.composition.spec.backbone.part
        source = part.source.partition(":")[2]
        return Path(part.file or source).name or self.weights.name

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the encoder's cells."""
        layout = self.features.layout
        assert isinstance(layout, Grid)
        return layout.h, layout.w

    def make_encoder(self) -> Any:
        """The image encoder, with one thread: every process of a run has its own."""
        from sensorium import encoders

        declared = self.composition.spec.encoders["image"]
        return encoders.create(declared.kind, self.encoder, threads=1, **declared.options)

    def class_directions(self) -> Any:
        """The encoder's classifier: (weight [classes, dim], bias [classes])."""
        return self.make_encoder().class_directions()


def obtain(recipe: Recipe) -> Frozen:
    """Fetch the frozen parts and the training pictures, check their seams, and plan the feature stores."""
    from sensorium import encoders

    composition = Composition.find(recipe.composition)
    declared = composition.spec.encoders.get("image")
    if declared is None:
        raise UsageError(f"{composition.path} declares no image encoder; this recipe trains an image projector.")
    if recipe.backbone:
        composition = composition.over(resolve(recipe.backbone))
    weights = composition.backbone_path()
    encoder = hub.fetch(composition.part("encoders", "image"))
    made: Any = encoders.create(declared.kind, encoder, **declared.options)
    if not isinstance(made.spec.layout, Grid):
        raise UsageError(f"{composition.path}: the encoder {declared.kind} gives no grid; use another for pictures.")
    tokens_for(recipe.projector.kind, recipe.projector.options, made.spec)
    stages = recipe.plan()
    synthesised = any(stage.data.class_features for stage in stages)
    if (synthesised or recipe.projector.start == "concepts") and not hasattr(made, "class_directions"):
        raise UsageError(
            f"The encoder {declared.kind} has no classifier; set data.class_features=0 and projector.start=random."
        )
    stores = tuple(
        StorePlan(
            catalogue_of(stage.data), stage.data.scenes, stage.data.seed,
            {str(kind): weight for kind, weight in stage.data.mix.items()},
            declared.kind, encoder, declared.options, made.spec.fingerprint,
        ) if stage.data.scenes else None
        for stage in stages
    )  # fmt: skip
    backbone = check_backbone(composition, weights, recipe.trains_backbone)
    fingerprints = {"backbone": backbone, "encoders.image": made.spec.fingerprint}
    return Frozen(composition, weights, encoder, made.spec, stores, fingerprints)


def catalogue_of(data: DataRecipe) -> Path:
    """The recipe's own catalogue, or the one of registry pictures: built once for each state of its tables."""
    if data.catalogue:
        path = Path(data.catalogue)
        if not path.is_file():
            raise UsageError(f"The catalogue {path} does not exist or is no file; correct data.catalogue.")
        return path
    from sensorium.training.data.catalogue import registry_catalogue

    return registry_catalogue()
