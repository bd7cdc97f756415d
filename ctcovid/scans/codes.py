"""Texts of a DICOM header that may be passed on: known codes only, as anything else may have been typed in by hand."""

from __future__ import annotations

import re

# PS3.3 C.7.3.1.1.1, with the retired ones.
MODALITY = re.compile(
    "ANN|AR|ASMT|AU|BDUS|BI|BMD|CFM|CR|CT|CTPROTOCOL|DMS|DG|DOC|DX|ECG|EEG|EMG|EOG|EPS|ES|FID|GM|HC|HD|IO|IOL|IVOCT|IVUS|KER|KO|LEN|LS|"
    "MG|MR|M3D|NM|OAM|OCT|OP|OPM|OPT|OPTBSV|OPTENF|OPV|OSS|OT|PA|PLAN|POS|PR|PT|PX|REG|RESP|RF|RG|RTDOSE|RTIMAGE|RTINTENT|RTPLAN|RTRAD|"
    "RTRECORD|RTSEGANN|RTSTRUCT|RWV|SEG|SM|SMR|SR|SRF|STAIN|TEXTUREMAP|TG|US|VA|XA|XAPROTOCOL|XC|"
    "AS|CD|CF|CP|CS|DD|DF|DM|DS|EC|FA|FS|LP|MA|MS|OPR|ST|VF"
)
# What a RescaleType, a ModalityLUTType, or value 4 of an image type stands for (PS3.3 C.11.1.1.2 and C.8.15.2.1.1.5).
UNITS = {
    "MGML": "mg/ml",
    "ED": "electron density",
    "EDW": "electron density relative to water",
    "ELECTRON_DENSITY": "electron density",
    "Z_EFF": "effective atomic number",
    "EFF_ATOMIC_NUM": "effective atomic number",
    "HU_MOD": "modified Hounsfield units",
    "OD": "optical density",
    "PCT": "per cent",
}
# Other units of images, of DICOM and of UCUM.
UNIT = re.compile(
    r"MAT_SPECIFIC|MAT_VALUE_BASED|MAT_REMOVED|MAT_FRACTIONAL|MAT_MODIFIED|1|%|m?g/mL|m?g/ml|m?g/cm3|Bq/m[lL]|\{SUVbw\}g/ml|[mu]m2/s|m[lL]/m[lL]|ug/m[lL]|"
    "mm|m?s|keV"
)
# Reconstruction kernels as the manufacturers name them, words of image types, and what consists of digits.
KERNEL = re.compile(r"[A-Z][a-z]?\d{2}[a-z]?(\\\d)?|FC\d{2}|STANDARD|LUNG|CHST|BONE|BONEPLUS|SOFT|DETAIL|EDGE|ULTRA|[A-EL]|Y[A-E]")
IMAGE_TYPE = re.compile(
    "[A-Z]|ORIGINAL|DERIVED|PRIMARY|SECONDARY|AXIAL|LOCALIZER|VOLUME|MIXED|NONE|AVERAGE|MIP|MPR|REFORMATTED|HELIX|NORM|CSA|SPI|SEQ"
)
DIGITS = re.compile(r"[-+]?\d{0,6}(\.\d{1,3})?(\\[-+]?\d{0,6}(\.\d{1,3})?){0,2}")
SYNTAX = "1.2.840.10008.1.2"
NUMBER = re.compile(r"[+-]?\d{1,6}")


def known_modality(text: str) -> str:
    """A modality, or ``unknown``; empty if the file does not say it."""
    return text if not text or MODALITY.fullmatch(text) else "unknown"


def known_number(text: str) -> str:
    """The number of a series; empty if it is anything else."""
    return text if NUMBER.fullmatch(text) else ""


def unit_in_words(code: str) -> str:
    """A unit in words, and as the file gives it."""
    if code in UNITS:
        return f"{UNITS[code]} ({code})"
    return code if UNIT.fullmatch(code) else "a unit that is not known"


def known_syntax(uid: str) -> str:
    """A transfer syntax of the standard, or ``unknown``."""
    return uid if re.fullmatch(re.escape(SYNTAX) + r"(\.\d{1,3}){0,3}", uid) else "unknown"


def known_mark(mark: str, value: str) -> str:
    """The value of an element that tells the stacks of a series apart; empty if it is neither a number nor a known word."""
    if DIGITS.fullmatch(value):
        return value
    words = value.split("\\")
    if mark == "kernel" and all(map(KERNEL.fullmatch, words)):
        return value
    return value if mark == "image type" and all(map(IMAGE_TYPE.fullmatch, words)) else ""
