"""What a DICOM file says of each of its pictures: where it lies, its unit, and what tells it from others of its series.

Files of one picture say it in their header, those of several in functional groups, of each picture or shared (PS3.3 C.7.6.16).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# Sequences of functional groups whose elements are used.
GROUPS = (
    "FrameContentSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "CTImageFrameTypeSequence",
    "CTReconstructionSequence",
    "CTXRayDetailsSequence",
    "CardiacSynchronizationSequence",
    "RespiratorySynchronizationSequence",
    "TemporalPositionSequence",
    "UnassignedSharedConvertedAttributesSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
)
# What can tell the stacks of one series apart, and its elements, of which the first that is there counts.
MARKS: Mapping[str, tuple[str, ...]] = {
    "image type": ("FrameType", "ImageType"),
    "echo": ("EchoNumbers",),
    "temporal position": ("TemporalPositionIndex", "TemporalPositionIdentifier", "TemporalPositionTimeOffset"),
    "cardiac phase": ("NominalPercentageOfCardiacPhase",),
    "trigger time": ("NominalCardiacTriggerDelayTime", "TriggerTime"),
    "respiratory phase": ("NominalPercentageOfRespiratoryPhase", "NominalRespiratoryTriggerDelayTime"),
    "acquisition": ("FrameAcquisitionNumber", "AcquisitionNumber"),
    "stack": ("StackID",),
    "kernel": ("ConvolutionKernel",),
    "tube voltage": ("KVP",),
    "slice thickness": ("SliceThickness",),
    "pixel spacing": ("PixelSpacing",),
    "frame of reference": ("FrameOfReferenceUID",),
    "description": ("SeriesDescription",),
    "series number": ("SeriesNumber",),
    "acquisition time": ("FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionTime"),
    "content time": ("FrameReferenceDateTime", "ContentTime"),
}
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceLocation", "SliceThickness")
VALUES = ("RescaleIntercept", "RescaleType", "ModalityLUTSequence", "RealWorldValueMappingSequence")
WANTED = frozenset({*GEOMETRY, *VALUES, *(name for names in MARKS.values() for name in names)})
TAGS = " ".join(sorted(WANTED)) + " SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
# RescaleType of Hounsfield units, or unspecified (US); without one, CT is in Hounsfield units (PS3.3 C.8.2.1).
HOUNSFIELD = frozenset({"", "HU", "US", "UNSPECIFIED", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS", "[HNSF'U]"})
# Value 4 of the image type of multi-energy CT, if it is not CT as usual (PS3.3 C.8.15.2.1.1.5).
MATERIAL = frozenset(
    {"MAT_SPECIFIC", "MAT_VALUE_BASED", "MAT_REMOVED", "MAT_FRACTIONAL", "MAT_MODIFIED", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY"}
)


@dataclass(frozen=True)
class Plane:
    """Position of a slice, in LPS millimetres: first pixel, directions of a row and of a column, distances of rows and of columns.

    `spacing` is empty if the file does not give it.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])


@dataclass(frozen=True)
class Frame:
    """One picture. `plane` and `location` are None if the file gives none; `unit` is empty if it is in Hounsfield units, or unsaid.

    `marks` has the values of `MARKS` that the file gives.
    """

    plane: Plane | None
    location: float | None
    image_type: tuple[str, ...]
    unit: str
    rescaled: bool
    thickness: float
    marks: Mapping[str, str]


def frames_of(dataset: Any, count: int) -> tuple[Frame, ...]:
    """One for each of `count` pictures; a single one, without a plane, if the file does not describe each."""
    whole = {name: dataset.get(name) for name in WANTED if name in dataset}
    shared = _elements(dataset.get("SharedFunctionalGroupsSequence") or ())
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if len(per_frame) == count:
        return tuple(_frame({**whole, **shared, **_elements([group])}, True) for group in per_frame)
    return (_frame({**whole, **shared}, count == 1),)


def _elements(groups: Iterable[Any]) -> dict[str, Any]:
    """The wanted elements of functional groups."""
    from pydicom.datadict import keyword_for_tag

    found: dict[str, Any] = {}
    for group in groups:
        inside = [group[name].value[0] for name in GROUPS if group.get(name)]
        for source in (*inside, group):
            names = ((tag, keyword_for_tag(tag)) for tag in source.keys())  # noqa: SIM118 (a dataset iterates over its elements)
            found |= {name: source[tag].value for tag, name in names if name in WANTED}
    return found


def _frame(values: Mapping[str, Any], placed: bool) -> Frame:
    image_type = _words(values.get("FrameType") or values.get("ImageType"))
    marks = {}
    for mark, names in MARKS.items():
        given = [text for name in names if (text := _text(values.get(name)))]
        if given:
            marks[mark] = given[0]
    return Frame(
        plane=_plane(values) if placed else None,
        location=_number(values.get("SliceLocation")) if placed else None,
        image_type=image_type,
        unit=_unit(values, image_type),
        rescaled=values.get("RescaleIntercept") not in (None, "") or bool(values.get("ModalityLUTSequence")),
        thickness=_number(values.get("SliceThickness")) or 0.0,
        marks=marks,
    )


def _unit(values: Mapping[str, Any], image_type: tuple[str, ...]) -> str:
    """What the values are, if not Hounsfield units: RescaleType, ModalityLUTType, value 4 of the image type, or a unit of UCUM."""
    table = values.get("ModalityLUTSequence")
    said = (_text(table[0].get("ModalityLUTType")) if table else _text(values.get("RescaleType"))).upper()
    material = [word for word in image_type[3:] if word in MATERIAL]
    if said not in HOUNSFIELD or material:
        return (said if said not in HOUNSFIELD else material[0])[:16]
    if said in ("", "US", "UNSPECIFIED"):
        codes = [one.get("MeasurementUnitsCodeSequence") for one in values.get("RealWorldValueMappingSequence") or ()]
        units = [_text(code[0].get("CodeValue")) for code in codes if code]
        if units and not any(unit.upper() in HOUNSFIELD for unit in units):
            return units[0][:16]
    return ""


def _plane(values: Mapping[str, Any]) -> Plane | None:
    position = _floats(values.get("ImagePositionPatient"), 3)
    orientation = _floats(values.get("ImageOrientationPatient"), 6)
    spacing = _floats(values.get("PixelSpacing"), 2)
    if not position or not orientation:
        return None
    plane = Plane(position, orientation, spacing if spacing and min(spacing) > 0 else ())
    return plane if abs(np.linalg.norm(plane.normal) - 1) <= 0.05 else None


def _floats(value: Any, count: int) -> tuple[float, ...]:
    """So many finite numbers, or none."""
    try:
        numbers = tuple(float(number) for number in value)
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else ()


def _number(value: Any) -> float | None:
    numbers = _floats([value], 1) if value not in (None, "") else ()
    return numbers[0] if numbers else None


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) and isinstance(value, Iterable):
        return "\\".join(_text(one) for one in value)
    return str(value).strip().strip("\0")


def _words(value: Any) -> tuple[str, ...]:
    return tuple(str(word).strip().upper() for word in ([value] if isinstance(value, str) else value or ()))
