"""The JSON Schema of recipes, kinds and plugins included: what editors complete and check by.

It says what it can without following `extends`: what a recipe must hold in all is asked only of one that extends
nothing and has no `defaults`. https://json-schema.org/draft/2020-12
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Collection, Iterator
from typing import Any, TypeAlias

import msgspec

from modelbuild import kind
from modelbuild.language.option import NAME, REFERENCE, VALUE
from modelbuild.language.sections import KEYS

Json: TypeAlias = dict[str, Any]

VARIABLE: Json = {"$ref": "#/$defs/variable"}
ANNOTATIONS = ("description", "default", "title", "examples")


def schema(names: Collection[str] | None = None) -> Json:
    """The schema of a recipe file with these kinds (all when left out); a `ProblemError` when one does not import."""
    kinds = {name: kind.load(name) for name in (kind.names() if names is None else names)}
    definitions: Json = {
        "variable": {"type": "string", "pattern": r"\$\{", "description": "a variable: `${NAME}`"},
        "reference": {
            "type": "string",
            "anyOf": [{"pattern": f"^(?:{REFERENCE.pattern})$"}, VARIABLE],
            "description": "a target: `target`, `recipe:target` or `target[option=value]`",
        },
        "scalar": {"type": ["string", "number", "boolean", "null"]},
        "target": _target(list(kinds)),
        "complete": {"required": ["kind"], "allOf": [_required(n, k) for n, k in kinds.items()]},
    }
    for name, module in kinds.items():
        definitions |= _kind(name, module)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "modelbuild recipe",
        "type": "object",
        "properties": {key: _top(key, list(kinds)) for key in KEYS},
        "additionalProperties": False,
        "if": {"not": {"anyOf": [{"required": ["extends"]}, {"required": ["defaults"]}]}},
        "then": {
            "required": ["targets"],
            "properties": {"targets": {"additionalProperties": {"$ref": "#/$defs/complete"}}},
        },
        "$defs": definitions,
    }


def _top(key: str, kinds: list[str]) -> Json:
    path = {"type": "string", "minLength": 1}
    match key:
        case "model":
            return {
                "type": ["string", "number"],
                "anyOf": [{"pattern": f"^(?:{NAME.pattern})$"}, VARIABLE],
                "description": "the recipe's name; the file's without suffix where this is left out",
            }
        case "extends":
            many = {"type": "array", "items": path}
            return {"anyOf": [path, many], "description": "recipe files, relative to this one, merged in below it"}
        case "vars":
            return {
                "type": ["object", "null"],
                "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
                "additionalProperties": {"$ref": "#/$defs/scalar"},
                "description": "variables: `${NAME}` in a value, overridden by `--set NAME=VALUE`",
            }
        case "defaults":
            return {
                "type": ["object", "null"],
                "properties": {name: {"$ref": f"#/$defs/{name}.options"} for name in kinds},
                "additionalProperties": False,
                "description": "options for all targets of a kind",
            }
        case "default":
            one = {"$ref": "#/$defs/reference"}
            many = {"type": "array", "items": one}
            return {"anyOf": [one, many], "description": "what `modelbuild build RECIPE` builds"}
        case "targets":
            return {
                "type": "object",
                "propertyNames": {"pattern": f"^(?:{NAME.pattern})$"},
                "additionalProperties": {"$ref": "#/$defs/target"},
                "description": "name -> what to build",
            }
        case _:
            return {"type": "string", "description": "what this is, for people"}


def _target(kinds: list[str]) -> Json:
    return {
        "type": "object",
        "properties": {"kind": {"anyOf": [{"enum": kinds}, VARIABLE], "description": "what is made"}},
        "allOf": [{"if": _is(name), "then": {"$ref": f"#/$defs/{name}"}} for name in kinds],
    }


def _is(name: str) -> Json:
    return {"properties": {"kind": {"const": name}}, "required": ["kind"]}


def _required(name: str, module: kind.Kind) -> Json:
    """Each required option is given as such or by the matrix."""
    needed = [f.name for f in kind.fields(module.Spec) if f.required]
    given = [
        {"anyOf": [{"required": [n]}, {"required": ["matrix"], "properties": {"matrix": {"required": [n]}}}]}
        for n in needed
    ]
    return {"if": _is(name), "then": {"allOf": given} if given else True}


def _kind(name: str, module: kind.Kind) -> Json:
    """The definitions of a kind: a target of it, its options alone, and the types its options use."""
    roles = {f.name: f for f in kind.fields(module.Spec)}
    (top,), components = msgspec.json.schema_components([module.Spec], ref_template=f"#/$defs/{name}.{{name}}")
    own = components.pop(top["$ref"].rpartition(".")[2]) if "$ref" in top else top
    texts = option_texts(module.Spec)
    options = {}
    for option, value in own["properties"].items():
        checked = _reference(value) if roles[option].role == "ref" else _or_variable(value)
        options[option] = {**checked, "description": texts[option]} if option in texts else checked
    matrix = {
        option: {
            "type": "array",
            "minItems": 1,
            "items": {"allOf": [{"$ref": f"#/$defs/{name}.options/properties/{option}"}, _word()]},
        }
        for option in options
    }
    reserved: Json = {
        "kind": {"const": name},
        "description": {"type": "string"},
        "matrix": {
            "type": "object",
            "minProperties": 1,
            "properties": matrix,
            "additionalProperties": False,
            "description": "option -> values; the target becomes one variant for each combination",
        },
    }
    described = (module.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    references = {option: {"$ref": f"#/$defs/{name}.options/properties/{option}"} for option in options}
    shape = {"type": "object", "additionalProperties": False, "description": described}
    return {
        name: {**shape, "properties": {**reserved, **references}},
        f"{name}.options": {**shape, "properties": options},
        **{f"{name}.{part}": _or_variable(value) for part, value in components.items()},
    }


def _word() -> Json:
    return {"anyOf": [{"type": ["number", "boolean", "null"]}, {"pattern": f"^{VALUE.pattern}$"}, VARIABLE]}


def _or_variable(value: Any) -> Any:
    """A schema that takes `${NAME}` wherever a scalar of another form than plain text is asked for."""
    if not isinstance(value, dict):
        return value
    changed = _inside(value, _or_variable)
    plain_text = changed.get("type") == "string" and not changed.keys() & {
        "enum",
        "pattern",
        "format",
        "contentEncoding",
    }
    if plain_text or not (changed.get("type") in ("string", "integer", "number", "boolean") or "enum" in changed):
        return changed
    outer = {key: changed.pop(key) for key in ANNOTATIONS if key in changed}
    return {"anyOf": [changed, VARIABLE], **outer}


def _reference(value: Any) -> Any:
    """A schema in which each text is the name of a target."""
    if isinstance(value, dict) and value.get("type") == "string":
        kept = {key: value[key] for key in ("default",) if key in value}
        return {"$ref": "#/$defs/reference", **kept}
    return _inside(value, _reference) if isinstance(value, dict) else value


def _inside(value: Json, change: Any) -> Json:
    changed = dict(value)
    for key in ("anyOf", "oneOf", "prefixItems"):
        if key in changed:
            changed[key] = [change(v) for v in changed[key]]
    for key in ("items", "additionalProperties"):
        if key in changed:
            changed[key] = change(changed[key])
    if "properties" in changed:
        changed["properties"] = {name: change(v) for name, v in changed["properties"].items()}
    return changed


def option_texts(spec: type[msgspec.Struct]) -> dict[str, str]:
    """What each option says of itself, by its recipe name: the string literal below the field, where there is one."""
    attributes = {f.name: f.encode_name for f in msgspec.structs.fields(spec)}
    return {attributes[name]: text for name, text in _strings_below(spec) if name in attributes}


def _strings_below(spec: type) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(spec))).body[0]
    except (OSError, TypeError, SyntaxError):
        return
    for field, below in itertools.pairwise(tree.body if isinstance(tree, ast.ClassDef) else []):
        match field, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())
