"""Why a target is not up to date, in words: the difference between the manifest it has and the one it should have."""

from __future__ import annotations

from collections.abc import Sequence

from modelbuild import manifest
from modelbuild.graph import Node
from modelbuild.manifest import Change, Manifest
from modelbuild.record import Record
from modelbuild.store import Damage, Store

SHOWN = 60
"""Characters of a value that a reason quotes."""


def explain(store: Store, node: Node, made: Manifest, damage: Sequence[Damage] = ()) -> tuple[str, ...]:
    """The reasons for which a target with manifest `made` is to be built or restored; never empty."""
    if damage:
        return tuple(f"its artifact is damaged: {d}" for d in damage)
    previous = last_made(store, node)
    if previous is None:
        return ("it was never built" if not store.names.reasons(node.recipe, node.short) else _lost(store, node, made),)
    changes = manifest.diff(previous.manifest, made)
    if changes:
        return tuple(sentence(change, node) for change in changes)
    return (_lost(store, node, made),)


def last_made(store: Store, node: Node) -> Record | None:
    """The record of what the target's name links to, or else of what it was when it was last built."""
    named = store.names.key(node.recipe, node.short)
    keys = [named] if named else [r.key for r in reversed(store.names.reasons(node.recipe, node.short))][:1]
    return store.record(keys[0]) if keys else None


def made_before(store: Store, node: Node, key: str) -> Record | None:
    """The record of what a target was before it was made as `key`, as far back as the store still has one."""
    keys = dict.fromkeys(r.key for r in reversed(store.names.reasons(node.recipe, node.short)))
    return next((found for k in keys if k != key and (found := store.record(k)) is not None), None)


def _lost(store: Store, node: Node, made: Manifest) -> str:
    if store.record(manifest.key(made)) is None:
        return "its artifact is no longer in the store, or its record is damaged"
    return "its link in the artifacts folder is gone"


def sentence(change: Change, node: Node) -> str:
    """One changed fact in the user's terms."""
    group, _, name = change.fact.partition(".")
    match group:
        case "option":
            return f"option `{name}`: {_short(change.old)} → {_short(change.new)}"
        case "input":
            return _input_sentence(change, name, node.inputs.get(name, ()))
        case "lineage":
            names = ", ".join(f"`{n}`" for n in node.inputs.get(name, ()))
            return f"the history of {names} ({name}), which it contains, has changed"
        case "names":
            return f"the inputs of `{name}`, whose names it holds, are called {change.new}, before {change.old}"
        case "source":
            text = next((s.text for s in node.sources if s.field == name), None)
            if text is None:
                return f"source `{name}` is no longer given"
            return f"source `{text}` ({name}) " + ("is new" if change.old is None else "has other content")
        case "tool":
            return f"tool `{name}`: {change.old or 'not named'} → {change.new or 'no longer named'}"
        case "hardware":
            return f"hardware `{name}`: {change.old} → {change.new}"
        case "version":
            return f"kind `{node.kind}` makes another output since version {change.new} (was {change.old})"
        case _:
            return f"{change.fact}: {_short(change.old)} → {_short(change.new)}"


def _input_sentence(change: Change, field: str, names: Sequence[str]) -> str:
    """Which of a field's inputs differ, where the same number of them tells."""
    old, new = (change.old or "").split(), (change.new or "").split()
    if len(old) != len(new) or len(new) != len(names):
        return f"`{field}` refers to {len(names)} inputs, before to {len(old)}"
    differing = ", ".join(f"`{n}`" for n, a, b in zip(names, old, new, strict=True) if a != b)
    return f"input {differing} ({field}) has other content"


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= SHOWN else value[: SHOWN - 1] + "…"
