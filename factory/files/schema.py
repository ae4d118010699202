"""JSON Schema of a strict YAML file, so that an editor knows its keys, their help and what is wrong while one types.

Made of the very pydantic model that the loader validates by, so the two cannot come apart. It says what each
key may hold; what keys mean together (the order of stages, `pack` with roll-outs) only the loader knows. A key
that nothing but a grid gives is missing to an editor, and no fault to the loader.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_of(model: type[BaseModel], name: str) -> dict[str, Any]:
    """The schema of the files that `model` reads; `name` is what such a file is called: recipe, plan."""
    made = model.model_json_schema(schema_generator=_Plain)
    sections = made.get("$defs", {})
    for section in (made, *sections.values()):
        for key in section.get("properties", {}).values():
            _tell_section(key, sections)
    head = {"$schema": DIALECT, "$id": f"urn:drafter-factory:{name}", "title": f"drafter-factory {name}"}
    return head | {key: value for key, value in made.items() if key != "title"}


class _Plain(GenerateJsonSchema):
    """As pydantic makes it, without what editors would show to nobody's use."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """No `Keep Raw` beside `keep_raw`."""
        return False

    def default_schema(self, schema: Any) -> Any:
        """A section that is left out is described by its own defaults, not by all of them in one line."""
        made = super().default_schema(schema)
        return made if not isinstance(made.get("default"), dict) else {k: v for k, v in made.items() if k != "default"}


def _tell_section(key: dict[str, Any], sections: dict[str, Any]) -> None:
    """A key that holds a section is described by what that is: the first line of its docstring."""
    named = [one["$ref"].rsplit("/", 1)[1] for one in (key, *key.get("anyOf", ())) if "$ref" in one]
    if "description" not in key and len(named) == 1:
        key["description"] = sections[named[0]]["description"].splitlines()[0]
