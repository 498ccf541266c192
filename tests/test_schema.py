"""The JSON Schema: takes what the loader takes, refuses what editors should mark, and knows every kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from modelbuild.language import schema
from tests import plugin
from tests.test_recipe import TUNE

KINDS = ("fail", "join", "slow", "text", "tune", "upper", "zip")


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The schema with a built-in kind and the plugin's."""
    documented = TUNE.replace("    steps: int = 1\n", '    steps: int = 1\n    """How many\n    steps."""\n')
    with plugin.installed(tmp_path_factory.mktemp("kinds"), {"tune": documented}):
        made = schema.schema(KINDS)
        jsonschema.Draft202012Validator.check_schema(made)
        yield jsonschema.Draft202012Validator(made)


GOOD = [
    "targets: {a: {kind: text, path: x.txt}}",
    "model: m\ndescription: d\ndefault: [a, 'o:b[x=1]']\nvars: {n: 1, s: x}\ntargets: {a: {kind: fail, when: '${s}'}}",
    "model: 7\ndefault: a\ntargets: {a: {kind: fail, description: why}}",
    "targets: {t: {kind: tune, from: [a, b], matrix: {method: [minmax, percentile], steps: [1, '${n}']}}}",
    "targets: {t: {kind: tune, matrix: {from: [a, b]}, percentile: 99.9, method: percentile}}",
    "targets: {t: {kind: tune, from: '${f}', steps: '${n}', symmetric: '${s}', method: '${m}', rate: 1}}",
    "targets: {t: {kind: tune, from: a, profiles: [{batch: [1, '${n}'], level: high}], require: {x: 0.5}}}",
    "targets: {z: {kind: zip, from: a}, y: {kind: zip, from: [a, b]}}",
    "extends: [a.yaml, b.yaml]\ntargets: {t: {steps: 3}, u: {kind: tune}}",
    "extends: ../a.yaml",
    "defaults: {tune: {from: a, steps: 3}}\ntargets: {t: {kind: tune}}",
    "targets: {t: {kind: '${k}', anything: 1}}",
]

BAD = [
    "{}",
    "[]",
    "targetz: {}",
    "model: a/b\ntargets: {a: {kind: fail}}",
    "targets: {a/b: {kind: fail}}",
    "targets: {a: }",
    "targets: {a: {when: x}}",
    "targets: {a: {kind: tuna}}",
    "targets: {a: {kind: text}}",
    "targets: {a: {kind: text, path: x, pth: y}}",
    "targets: {a: {kind: text, path: 3}}",
    "targets: {a: {kind: upper, from: 'a b'}}",
    "targets: {a: {kind: upper, from: [a]}}",
    "targets: {t: {kind: tune, from: a, steps: many}}",
    "targets: {t: {kind: tune, from: a, steps: 1.5}}",
    "targets: {t: {kind: tune, from: a, method: minmx}}",
    "targets: {t: {kind: tune, from: a, percentile: 101}}",
    "targets: {t: {kind: tune, from: a, profiles: [{level: high}]}}",
    "targets: {t: {kind: tune, from: a, profiles: [{batch: [1], levle: high}]}}",
    "targets: {t: {kind: tune, from: a, matrix: {}}}",
    "targets: {t: {kind: tune, from: a, matrix: {rat: [1]}}}",
    "targets: {t: {kind: tune, from: a, matrix: {steps: 1}}}",
    "targets: {t: {kind: tune, from: a, matrix: {steps: [x]}}}",
    "targets: {t: {kind: tune, from: a, matrix: {data: [a/b]}}}",
    "targets: {z: {kind: zip, from: []}}",
    "defaults: {tuna: {}}\ntargets: {a: {kind: fail}}",
    "defaults: {tune: {stepps: 1}}\ntargets: {a: {kind: fail}}",
    "vars: {a: [1]}\ntargets: {a: {kind: fail}}",
    "extends: 3",
    "default: [a b]\ntargets: {a: {kind: fail}}",
]


@pytest.mark.parametrize("text", GOOD)
def test_good_recipes_pass(validator: Any, text: str) -> None:
    assert [e.message for e in validator.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize("text", BAD)
def test_bad_recipes_do_not(validator: Any, text: str) -> None:
    assert not validator.is_valid(yaml.safe_load(text))


def test_every_kind_is_in_it_with_its_options_described(validator: Any) -> None:
    definitions = validator.schema["$defs"]
    assert set(KINDS) <= set(definitions)
    options = definitions["tune.options"]["properties"]
    assert options["steps"]["description"] == "How many steps."
    assert options["data"]["anyOf"][0]["description"] == "a path relative to the recipe"
    assert definitions["text"]["description"] == "The content of a file."
    assert definitions["zip.options"]["properties"]["from"]["description"].startswith("What goes into the package")


def test_it_is_the_same_text_each_time(validator: Any) -> None:
    assert json.dumps(schema.schema(KINDS)) == json.dumps(validator.schema)
