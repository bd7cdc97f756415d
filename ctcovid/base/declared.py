"""Documents from elsewhere: types and limits that are declared once, the sentence about what breaks them, and the manual's table."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError

from ctcovid.base.choices import LEAST_SIDE, MOST_CLASSES, MOST_SIDE, MOST_SLICES

# Of what a fault is called.
LONGEST_NAME = 80
# The types of JSON, in the words of the manual.
WORDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "fields",
    "null": "null",
}


class Declared(BaseModel):
    """A JSON document with declared fields. Types are exact and numbers finite; what is not declared is not used."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", frozen=True)


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("two names are the same")
    return names


Depth = Annotated[int, Field(ge=1, le=MOST_SLICES, description="slices per volume")]
Side = Annotated[int, Field(ge=LEAST_SIDE, le=MOST_SIDE, description="pixels per side of a slice")]
ClassName = Annotated[str, Field(min_length=1, max_length=255, pattern=r"\S")]
ClassNames = Annotated[
    list[ClassName], Field(min_length=1, max_length=MOST_CLASSES, description="classes in order"), FailFast(), AfterValidator(_distinct)
]
Width = Annotated[float, Field(gt=0)]
WindowPair = Annotated[tuple[float, Width], Field(description="level and width of the window in HU")]


def fault(error: ValidationError) -> str:
    """The first thing that is wrong, as in ``calibration.temperature: input should be less than or equal to 20``."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]
    return f"{_short(where)}: {said}" if where else said


def _short(name: str) -> str:
    plain = "".join(letter if letter.isprintable() else "?" for letter in name[: LONGEST_NAME + 1])
    return plain if len(plain) <= LONGEST_NAME else plain[: LONGEST_NAME - 1] + "…"


def table(heading: str, schema: dict[str, Any]) -> str:
    """The fields of a JSON schema with a description, as a Markdown table."""
    rows = [(heading, "values", "meaning"), ("---", "---", "---")]
    for name, field in schema["properties"].items():
        if said := field.get("description"):
            rows.append((f"`{name}`", _values(field, schema.get("$defs", {})), said))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _values(field: dict[str, Any], shared: dict[str, Any]) -> str:
    """The values that a field may have, in words."""
    if "$ref" in field:
        field = shared[field["$ref"].rpartition("/")[2]]
    if "anyOf" in field:
        return " or ".join(_values(one, shared) for one in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(f"`{one}`" for one in field.get("enum", [field.get("const")]))
    kind = field.get("type", "any")
    if kind == "array":
        one = field.get("items") or {}
        return f"list of {_values(one, shared)}" if one else ", ".join(_values(each, shared) for each in field.get("prefixItems", ()))
    return WORDS.get(kind, kind) + _limits(field)


def _limits(field: dict[str, Any]) -> str:
    least, most, above = (field.get(name) for name in ("minimum", "maximum", "exclusiveMinimum"))
    if least is not None and most is not None:
        return f", {least:,} to {most:,}"
    bounds = {"at least": least, "above": above, "at most": most}
    found = [f"{word} {value:,}" for word, value in bounds.items() if value is not None]
    return f", {', '.join(found)}" if found else ""
