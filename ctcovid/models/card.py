"""model.json: what a trained model says of itself, declared once for those who write it, read it and look it up in the manual."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, FailFast, Field, field_validator, model_validator

from ctcovid.base.declared import ClassNames, Declared, Depth, Side, WindowPair

CARD_VERSION = 1
# Temperatures that training looks for. One at a limit means a model that knows nothing, or too few scans.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0
Temperature = Annotated[float, Field(ge=LEAST_TEMPERATURE, le=MOST_TEMPERATURE)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Share = Annotated[float, Field(ge=0, le=1)]
Word = Annotated[str, Field(max_length=255)]
Scalar = bool | int | float | Word | None
Patients = Annotated[list[str], FailFast()]


class Data(Declared):
    """The volumes file that a model was trained on."""

    path: str = Field(max_length=1 << 13)
    fingerprint: Word | None = None


class Parts(Declared):
    """Patients by part."""

    train: Patients = Field([])
    valid: Patients = Field([])
    test: Patients = Field([])


class Recipe(Declared):
    """How it was trained, as far as it is used again; the rest is shown as it is."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)

    epochs: Count = 0
    batch: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    seed: Annotated[int, Field(ge=0)] = 0


class Kept(Declared):
    """The epoch whose weights the model has. An epoch without a step has no training loss."""

    epoch: Annotated[int, Field(ge=1, le=1 << 40)]
    learning_rate: float | None = None
    train_loss: float | None = None
    train_accuracy: Share | None = None
    valid_loss: float | None = None
    valid_accuracy: Share | None = None


class Pretrained(Declared):
    """The weights that the training started with."""

    path: str = Field(max_length=1 << 13)
    sha256: Word


class Calibration(Declared):
    """The temperature, and what it was fitted on."""

    temperature: Temperature
    fitted: Temperature | None = None
    volumes: Count = 0
    scans: Count = 0
    patients: Count = 0
    log_loss: float | None = None
    log_loss_calibrated: float | None = None


class Features(Declared):
    """What goes with features.safetensors."""

    threshold: Annotated[float, Field(ge=0)]
    quantile: Share | None = None
    sha256: Sha256


class Slices(Declared):
    """What goes with training-slices.safetensors."""

    count: Count
    sha256: Sha256


class Card(Declared):
    """A model.json. Fields with a default were not written by all versions."""

    format_version: Literal[1] = Field(description="of this file")
    architecture: Word = Field(description="as in `ctcovid models`")
    classes: ClassNames
    positive: Word = Field(description="the class that precision and recall refer to")
    depth: Depth
    size: Side
    scaling: dict[Word, Scalar] = Field(max_length=100, description="of grey values, the same for all models")
    window: WindowPair | None = None
    data: Data = Field(description="path and fingerprint of the volumes file")
    split: Parts = Field(Parts(train=[], valid=[], test=[]), description="patients of each part")
    recipe: Recipe = Field(Recipe(), description="settings of the training")
    pretrained: Pretrained | None = Field(None, description="initial weights")
    precision: Word | None = Field(None, description="of the training")
    trained: Count | None = Field(None, description="epochs")
    kept: Kept | None = Field(None, description="the best epoch")
    image_kind: Literal["complete", "segmented", "mixed"] = Field("complete", description="of the training scans")
    slice_spacing: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None = Field(
        None, description="smallest and largest of the training scans, mm"
    )
    calibration: Calibration | None = Field(None, description=f"`temperature`, {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}, and its fit")
    features: Features | None = Field(None, description="`threshold` of the reference features, `sha256` of their file")
    training_slices: Slices | None = Field(None, description="`count`, and `sha256` of their file")
    versions: dict[Word, Word | None] = Field({}, max_length=100, description="of packages")
    created: Word = Field(description="date and time")
    weights_sha256: Sha256 = Field(description="of model.safetensors")

    @field_validator("classes")
    @classmethod
    def _several(cls, classes: list[str]) -> list[str]:
        if len(classes) < 2:
            raise ValueError("a model has two classes or more")
        return classes

    @model_validator(mode="after")
    def _agree(self) -> Card:
        if self.positive not in self.classes:
            raise ValueError("positive: not one of the classes")
        if self.slice_spacing and self.slice_spacing[0] > self.slice_spacing[1]:
            raise ValueError("slice_spacing: the smallest is larger than the largest")
        return self


def schema() -> dict[str, Any]:
    """As JSON schema."""
    return Card.model_json_schema()
