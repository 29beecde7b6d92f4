"""What the miniature world holds: vocabulary, sizes and counts of its five sets. Plain data.

Everything that decides an image stands here or in `tasks/data/miniature`; the fingerprint covers
the first by value and the second by `WORLD_VERSION`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

# Bumped whenever tasks/data/miniature draws or writes something else from the same spec.
WORLD_VERSION = 3

FAR_SURFACES = ("sky", "brick")
NEAR_SURFACES = ("grass", "wood", "sand", "water")
SURFACES = (*FAR_SURFACES, *NEAR_SURFACES)
THINGS = ("ball", "box", "cube", "target", "cross", "star")


@dataclass(frozen=True)
class Look:
    """What one class of single-object images shows: a figure and what is fixed about it.

    Attributes:
        figure: name in `miniature.things.FIGURES`.
        traits: trait -> value; a trait that is not named is drawn at random.
    """

    figure: str
    traits: tuple[tuple[str, float | str], ...] = ()


@dataclass(frozen=True)
class Species:
    """One fine-grained class of the iNaturalist set."""

    name: str
    supercategory: str
    look: Look


@dataclass(frozen=True)
class Place:
    """One scene category: its surfaces and who lives there.

    Attributes:
        name: as in `categories_places365.txt`, e.g. "/f/field/wild".
        far, near: surfaces above and below the horizon.
        things: figures that populate it.
        num_things: least and most of them.
    """

    name: str
    far: str
    near: str
    things: tuple[str, ...]
    num_things: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One generated set. `supersampling` is the factor at which it is drawn."""

    name: str
    size_px: int
    supersampling: int = 3
    jpeg_quality: int = 92
    seed: int = 2111


@dataclass(frozen=True, kw_only=True)
class ImagenetSpec(Spec):
    """ImageFolder, one dominant object an image.

    Attributes:
        radius: least and most radius of the object, as a share of the image side. The least is
            that of a thing in a scene, so that pretraining sees things of every size.
    """

    name: str = "mini-imagenet"
    size_px: int = 64
    supersampling: int = 2
    radius: tuple[float, float] = (0.16, 0.42)
    train_per_class: int = 500
    val_per_class: int = 50
    looks: tuple[Look, ...] = (
        Look("ball", (("pattern", "sectors"),)),
        Look("ball", (("pattern", "band"),)),
        Look("box"),
        Look("cube", (("pattern", "checker"),)),
        Look("cube", (("pattern", "frame"),)),
        Look("target"),
        Look("cross", (("pattern", "plain"),)),
        Look("cross", (("pattern", "stripes"),)),
        Look("star"),
        Look("butterfly"),
        Look("beetle"),
        Look("leaf"),
    )


@dataclass(frozen=True, kw_only=True)
class SceneSpec(Spec):
    """Scenes with several things, for detection and segmentation.

    Attributes:
        radius: least and most radius of a thing, as a share of the image side.
        crowd_share: share of images with a crowd of tiny things.
    """

    size_px: int = 96
    num_train: int = 200
    num_val: int = 100
    num_things: tuple[int, int] = (1, 4)
    radius: tuple[float, float] = (0.11, 0.22)
    crowd_share: float = 0.0
    min_visible_px: int = 30


@dataclass(frozen=True, kw_only=True)
class CocoSpec(SceneSpec):
    """COCO JSON; category ids with gaps, as in COCO."""

    name: str = "mini-coco"
    crowd_share: float = 0.08
    category_ids: tuple[int, ...] = (1, 3, 4, 7, 9, 13)


@dataclass(frozen=True, kw_only=True)
class Ade20kSpec(SceneSpec):
    """Image + PNG map, 0 = unlabelled."""

    name: str = "mini-ade20k"
    num_train: int = 100
    num_things: tuple[int, int] = (2, 4)
    radius: tuple[float, float] = (0.15, 0.27)


def _species(name: str, supercategory: str, figure: str, **traits: float) -> Species:
    return Species(name, supercategory, Look(figure, tuple(traits.items())))


# Families take turns, so that head and tail of the long tail hold some of each. The hue is shared
# by one species of each family: neither colour nor family alone tells the species.
SPECIES = (
    _species("Papilio albus", "Lepidoptera", "butterfly", hue=0.0, bands=1, hind=1.0),
    _species("Carabus latus", "Coleoptera", "beetle", hue=0.0, spots=1, width=0.62),
    _species("Salix simplex", "Plantae", "leaf", hue=0.0, lobes=0, width=0.34),
    _species("Papilio minor", "Lepidoptera", "butterfly", hue=0.25, bands=2, hind=0.55),
    _species("Carabus gracilis", "Coleoptera", "beetle", hue=0.25, spots=2, width=0.42),
    _species("Quercus triloba", "Plantae", "leaf", hue=0.25, lobes=3, width=0.62),
    _species("Papilio virgatus", "Lepidoptera", "butterfly", hue=0.5, bands=3, hind=1.0),
    _species("Carabus punctatus", "Coleoptera", "beetle", hue=0.5, spots=3, width=0.62),
    _species("Quercus crispa", "Plantae", "leaf", hue=0.5, lobes=5, width=0.42),
    _species("Papilio fasciatus", "Lepidoptera", "butterfly", hue=0.75, bands=4, hind=0.55),
    _species("Carabus lineatus", "Coleoptera", "beetle", hue=0.75, spots=0, width=0.42),
    _species("Fagus lata", "Plantae", "leaf", hue=0.75, lobes=0, width=0.62),
)


@dataclass(frozen=True, kw_only=True)
class InatSpec(Spec):
    """iNaturalist 2018 JSON; long-tailed training set, balanced validation set."""

    name: str = "mini-inat"
    size_px: int = 64
    radius: tuple[float, float] = (0.27, 0.42)
    head_images: int = 36
    tail_images: int = 6
    val_per_class: int = 20
    species: tuple[Species, ...] = SPECIES


@dataclass(frozen=True, kw_only=True)
class PlacesSpec(Spec):
    """Places365 lists; scene categories in pairs that differ only in what populates them."""

    name: str = "mini-places"
    size_px: int = 64
    train_per_class: int = 20
    val_per_class: int = 30
    places: tuple[Place, ...] = (
        Place("/b/beach", "sky", "sand", ("ball", "star"), (2, 4)),
        Place("/d/desert/sand", "sky", "sand", ("cross", "beetle"), (2, 4)),
        Place("/f/fairground", "sky", "grass", ("target", "ball"), (2, 4)),
        Place("/f/field/wild", "sky", "grass", ("butterfly", "leaf"), (2, 4)),
        Place("/g/gallery", "brick", "wood", ("target", "star"), (2, 4)),
        Place("/h/harbor", "sky", "water", ("box", "cube"), (2, 4)),
        Place("/l/lagoon", "sky", "water", ("leaf", "cross"), (2, 4)),
        Place("/w/warehouse", "brick", "wood", ("box", "cube"), (2, 4)),
    )


SPECS: dict[str, Spec] = {
    spec.name: spec for spec in (ImagenetSpec(), CocoSpec(), Ade20kSpec(), InatSpec(), PlacesSpec())
}


def spec_fingerprint(spec: Spec) -> str:
    """16 hex digits that change with anything that can change the set's bytes."""
    return hashlib.sha256(f"{WORLD_VERSION} {spec!r}".encode()).hexdigest()[:16]
