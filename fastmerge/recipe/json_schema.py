"""The JSON schema of recipes, for editors, with every method's parameters; and a table of the methods."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..errors import InputError, attempt
from ..methods import get, names
from ..methods._declaration import Method
from .parameters import singular
from .schema import ModelEntry, Recipe

Schema = dict[str, Any]
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def recipe_schema() -> Schema:
    """The schema of recipes: what may stand under `parameters`, `models`, `tensors` and `outputs` follows `method`."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "fastmerge recipe"
    schema["properties"]["method"]["enum"] = names()
    for name in names():
        declared = get(name)
        schema["$defs"] |= declared.model_json_schema().get("$defs", {})
        schema["$defs"][name] = {
            "whole": _section(declared, list(declared.model_fields)),
            "tensors": _section(
                declared, [n for n in declared.model_fields if n in declared.model_construct().per_tensor]
            ),
            "model": _closed(_model_properties(declared)),
            "entry": _model_entry(declared),
        }
    schema["allOf"] = [_condition(name) for name in names()]
    return schema


def method_table(named: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Per method, of all or of those named, its name, what it does, its source, and per parameter default, form and
    meaning. InputError with every name that is none."""
    rows = []
    problems: list[str] = []
    for name in named or names():
        declared = attempt(problems, partial(get, name))
        if declared is None:
            continue
        properties = declared.model_json_schema()["properties"]
        parameters = {n: _parameter(properties[n]) for n in declared.model_fields}
        summary = (inspect.getdoc(declared) or "").partition("\n\n")[0].replace("\n", " ")
        rows.append({"name": name, "does": summary, "source": declared.source, "parameters": parameters})
    if problems:
        raise InputError(problems)
    return rows


def _condition(name: str) -> Schema:
    """What holds where this method is chosen."""

    def within(part: str) -> Schema:
        return {"$ref": f"#/$defs/{name}/{part}"}

    tensors = {"parameters": within("tensors"), "models": {"additionalProperties": within("model")}}
    return {
        "if": {"properties": {"method": {"const": name}}, "required": ["method"]},
        "then": {
            "properties": {
                "parameters": within("whole"),
                "models": {"additionalProperties": {"anyOf": [{"type": "string"}, within("entry")]}},
                "outputs": {"additionalProperties": within("whole")},
                "tensors": {"items": {"properties": tensors}},
            }
        },
    }


def _closed(properties: Schema, **more: Any) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


def _section(declared: type[Method], parameters: list[str]) -> Schema:
    """A place where these parameters of the method may be given."""
    properties = declared.model_json_schema()["properties"]
    return _closed({n: _may_vary(declared, n, properties[n]) for n in parameters})


def _model_properties(declared: type[Method]) -> Schema:
    """What a single model may have of its own."""
    properties = declared.model_json_schema()["properties"]
    own = {}
    for name, parameter in singular(declared).items():
        by_name = [option for option in properties[parameter]["anyOf"] if option.get("type") == "object"]
        single = {"description": f"this model's {name}", **by_name[0]["additionalProperties"]}
        own[name] = _may_vary(declared, parameter, single)
    return own


def _model_entry(declared: type[Method]) -> Schema:
    properties = ModelEntry.model_json_schema()["properties"]
    return _closed(properties | _model_properties(declared), required=["path"])


def _may_vary(declared: type[Method], parameter: str, schema: Schema) -> Schema:
    """The schema of a parameter, with gradients where it may differ between tensors."""
    return _with_gradients(schema) if parameter in declared.model_construct().per_tensor else schema


def _with_gradients(schema: Schema) -> Schema:
    """A schema in which a gradient may stand for every number."""
    if schema.get("type") in ("number", "integer"):
        about = {key: schema[key] for key in ("description", "default", "title") if key in schema}
        number = {key: value for key, value in schema.items() if key not in about}
        points = {"type": "array", "items": number, "minItems": 2}
        layers = {**points, "description": "from the first layer to the last, linear between"}
        return about | {"anyOf": [number, _closed({"layers": layers}, required=["layers"])]}
    result = dict(schema)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            result[key] = _with_gradients(schema[key])
    if "anyOf" in schema:
        result["anyOf"] = [_with_gradients(option) for option in schema["anyOf"]]
    return result


def _parameter(schema: Schema) -> dict[str, Any]:
    return {"default": schema.get("default"), "form": _form(schema), "about": schema.get("description", "")}


def _form(schema: Schema) -> str:
    """What may be given, in a word or a range."""
    if "$ref" in schema:
        return "a mapping"
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema:
        forms = [_form(option) for option in schema["anyOf"] if option.get("type") not in ("array", "object", "null")]
        forms += ["one a model"] if any(option.get("type") == "object" for option in schema["anyOf"]) else []
        return " | ".join(forms)
    bounds = [f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema]
    return " ".join([schema.get("type", "any"), ", ".join(bounds)]).strip()
