"""`modelbuild init`: a first recipe for a model."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import click

from modelbuild import project
from modelbuild.commands.options import echo_json, json_option
from modelbuild.errors import problem
from modelbuild.language.option import NAME
from modelbuild.language.scalar import resolve

HEAD = "# yaml-language-server: $schema=recipe.schema.json\n"
CHECKPOINT = """\
targets:
  checkpoint: {{kind: checkpoint, {source}}}
{dataset}  onnx:       {{kind: onnx, from: checkpoint, task: feature-extraction}}
  fused:      {{kind: fused, from: onnx}}
  int8:       {{kind: int8, from: fused{calibration}}}
  bundle:     {{kind: zip, from: int8}}
"""
ONNX = """\
targets:
  onnx:   {{kind: onnx, path: {path}}}
  int8:   {{kind: int8, from: onnx}}
  bundle: {{kind: zip, from: int8}}
"""
DATASET = "  sentences:  {{kind: dataset, path: {path}, tokenizer: checkpoint}}\n"


@click.command("init")
@click.argument("model")
@click.option("--name", help="The recipe's name; else taken from MODEL.")
@click.option("--revision", help="The commit of a hub model; else the one in the local hub cache.")
@click.option("--calibration", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Texts for int8.")
@click.option("-C", "--project", "folder", type=click.Path(path_type=Path), default=".", help="The project's folder.")
@click.option("--force", is_flag=True, help="Replace a recipe of that name.")
@json_option
def command(
    model: str,
    name: str | None,
    revision: str | None,
    calibration: Path | None,
    folder: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Write a first recipe for MODEL: a checkpoint folder, an ONNX file, or a hub id such as `org/model`.

    Static int8 needs texts like those the model will see: give some with `--calibration`.
    """
    recipes = folder / project.RECIPES
    chosen = name or _name(model)
    if not NAME.fullmatch(chosen):
        raise problem(f"`{chosen}` cannot be a recipe's name", hint="letters, digits and `_.-`, such as `minilm`")
    path = recipes / f"{chosen}.yaml"
    if path.exists() and not force:
        raise problem(f"`{path}` exists already", hint="--force replaces it, --name takes another name")
    text = HEAD + _recipe(model, revision, calibration, recipes)
    recipes.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    _surroundings(folder, recipes)
    if as_json:
        echo_json({"recipe": str(path), "next": f"modelbuild build {chosen}"})
        return
    click.echo(f"wrote {path}")
    click.echo(f"next: modelbuild build {chosen}")


def _name(model: str) -> str:
    stem = Path(model.rstrip("/")).name.removesuffix(".onnx")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.").lower() or "model"


def _recipe(model: str, revision: str | None, calibration: Path | None, recipes: Path) -> str:
    given = Path(model).expanduser()
    if given.suffix == ".onnx":
        if not given.is_file():
            raise problem(f"there is no file `{model}`")
        return ONNX.format(path=_quoted(_relative(given, recipes)))
    if given.is_dir():
        if not (given / "config.json").is_file():
            raise problem(
                f"`{model}` is no checkpoint", looked_for="config.json", hint="name the folder with the weights"
            )
        source = f"path: {_quoted(_relative(given, recipes))}"
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        source = f"hf: {model}, revision: {_quoted(revision or _cached_revision(model))}"
    else:
        raise problem(f"`{model}` is no folder, no ONNX file and no hub id (`org/model`)")
    dataset = DATASET.format(path=_quoted(_relative(calibration, recipes))) if calibration else ""
    used = ", calibration: sentences" if calibration else ""
    return CHECKPOINT.format(source=source, dataset=dataset, calibration=used)


def _quoted(text: str) -> str:
    """As a YAML string within braces: in quotes where it could be taken for something else."""
    plain = re.fullmatch(r"[\w./-]+", text) and isinstance(resolve(text), str)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _relative(path: Path, recipes: Path) -> str:
    """As the recipe names it: relative within the project, absolute outside it."""
    target, top = path.resolve(), recipes.parent.resolve()
    return os.path.relpath(target, recipes.resolve()) if target.is_relative_to(top) else str(target)


def _cached_revision(model: str) -> str:
    """The commit that `main` means in the local hub cache."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    reference = cache / f"models--{model.replace('/', '--')}" / "refs" / "main"
    if not reference.is_file():
        raise problem(
            f"which revision of `{model}`?",
            looked_for=reference,
            hint="--revision COMMIT pins it: the commit hash is on the model's page, under its files' history",
        )
    return reference.read_text().strip()


def _surroundings(folder: Path, recipes: Path) -> None:
    """The schema that editors check recipes with, and an ignored artifacts folder."""
    import msgspec

    from modelbuild.language.schema import schema

    text = msgspec.json.format(msgspec.json.encode(schema()), indent=2)
    (recipes / "recipe.schema.json").write_bytes(text + b"\n")
    ignore = folder / project.ARTIFACTS / ".gitignore"
    if not ignore.exists():
        ignore.parent.mkdir(exist_ok=True)
        ignore.write_text("# Everything here is made by modelbuild and can be made again.\n*\n!.gitignore\n")
