"""Decides for each target whether it is fresh, to be restored or to be built, and why. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from modelbuild import job, manifest, sources, tools
from modelbuild.errors import Problem, ProblemError
from modelbuild.explain import explain, last_made
from modelbuild.graph import Graph, Node
from modelbuild.manifest import Manifest
from modelbuild.record import Record
from modelbuild.store import Store

MANY = 64
"""From this many targets on, the stat cache is read as a whole."""
Action = Literal["fresh", "restore", "build", "maybe", "blocked"]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done for a target, and why.

    `maybe`: an input will be rebuilt, and whether this follows depends on what comes out. `blocked`: it cannot be
    built, for the `problems`. `key` is None while an input is not known.
    """

    target: str
    action: Action
    reasons: tuple[str, ...] = ()
    key: str | None = None
    manifest: Manifest | None = None
    record: Record | None = None
    sources: Mapping[str, job.SourceUse] = {}
    problems: tuple[Problem, ...] = ()


class Decider:
    """Decides for the targets of one graph and one store. `finished` holds the records of those that are up to date.

    What is built meanwhile is told by `finish`, so that decisions on what is made of it see it.
    """

    def __init__(self, graph: Graph, store: Store, *, verify: bool = False) -> None:
        """`verify`: read every artifact's content instead of trusting an unchanged stat."""
        self.graph, self.store, self.verify = graph, store, verify
        self.finished: dict[str, Record] = {}
        self.decisions: dict[str, Decision] = {}

    def survey(self, names: Iterable[str]) -> tuple[Decision, ...]:
        """What is to be done for `names` (in build order, with all they need), without doing it."""
        nodes = [self.graph.nodes[name] for name in names]
        if len(nodes) >= MANY:
            self.store.cache.load()
        return tuple([self._foresee(node) for node in nodes])

    def decide(self, name: str) -> Decision:
        """What is to be done for a target now: exact when its inputs are up to date, else as far as can be told."""
        node = self.graph.nodes[name]
        self.survey(n for n in self.graph.closure(node.needs()) if n not in self.decisions)
        known = self.decisions.get(name)
        if known is None or (known.key is None and not known.problems):
            known = self._foresee(node)
        return known

    def finish(self, name: str, record: Record) -> None:
        """A target was brought up to date."""
        self._note(Decision(target=name, action="fresh", key=record.key, manifest=record.manifest, record=record))

    def take(self, other: Decider, names: Iterable[str]) -> None:
        """Know what another decider knows of targets that are the same in both graphs, and up to date."""
        for name in names:
            self.finish(name, other.finished[name])

    def _note(self, decision: Decision) -> None:
        self.decisions[decision.target] = decision
        if decision.action == "fresh" and decision.record is not None:
            self.finished[decision.target] = decision.record

    def _foresee(self, node: Node) -> Decision:
        pending = [n for n in node.needs() if self._state(n) not in ("fresh", "restore")]
        blocked = [n for n in pending if self._state(n) == "blocked"]
        if blocked:
            reasons = tuple(f"`{n}` cannot be built" for n in blocked)
            decision = Decision(target=node.name, action="blocked", reasons=reasons)
        elif pending:
            decision = self._guess(node, pending)
        else:
            decision = self._decide(node)
        self._note(decision)
        return decision

    def _state(self, name: str) -> Action:
        return self.decisions[name].action

    def _record_of(self, name: str) -> Record:
        """The record an input has, or will have once it is restored."""
        if name in self.finished:
            return self.finished[name]
        record = self.decisions[name].record
        assert record is not None, name
        return record

    def _decide(self, node: Node) -> Decision:
        try:
            made, uses = self._manifest(node)
        except ProblemError as e:
            return Decision(target=node.name, action="blocked", problems=e.problems)
        key = manifest.key(made)
        record = self.store.record(key)
        damage = self.store.damage(record, read=self.verify) if record else ()
        named = self.store.names.key(node.recipe, node.short)
        if record and not damage and named == key:
            return Decision(target=node.name, action="fresh", key=key, manifest=made, record=record, sources=uses)
        reasons = explain(self.store, node, made, damage)
        if record and not damage:
            return Decision(
                target=node.name, action="restore", reasons=reasons, key=key, manifest=made, record=record, sources=uses
            )
        missing = self._missing(node, made)
        if missing:
            return Decision(target=node.name, action="blocked", reasons=reasons, problems=missing)
        return Decision(target=node.name, action="build", reasons=reasons, key=key, manifest=made, sources=uses)

    def _guess(self, node: Node, pending: Sequence[str]) -> Decision:
        """With inputs yet to be made: `build` when something else changed too, else `maybe`."""
        previous = last_made(self.store, node)
        assumed = previous.manifest if previous else None
        try:
            made, _ = self._manifest(node, assumed, pending)
        except ProblemError as e:
            return Decision(target=node.name, action="blocked", problems=e.problems)
        missing = self._missing(node, made)
        if missing:
            return Decision(target=node.name, action="blocked", problems=missing)
        damage = self.store.damage(previous) if previous else ()
        if assumed is None or damage or manifest.key(made) != manifest.key(assumed):
            return Decision(target=node.name, action="build", reasons=explain(self.store, node, made, damage))
        waits = tuple(f"may rebuild: depends on whether `{n}` comes out different" for n in pending)
        return Decision(target=node.name, action="maybe", reasons=waits)

    def _manifest(
        self, node: Node, assumed: Manifest | None = None, pending: Sequence[str] = ()
    ) -> tuple[Manifest, dict[str, job.SourceUse]]:
        """A target's manifest and its sources; for fields with a pending input, `assumed` tells the digests."""
        read = {source.field: sources.read(source, self.store.cache) for source in node.sources}
        inputs: dict[str, tuple[str, ...]] = {}
        lineage: dict[str, str] = {}
        for field, names in node.inputs.items():
            if pending and not set(pending).isdisjoint(names):
                inputs[field] = assumed.inputs.get(field, ()) if assumed else ()
                if field in node.lineage:
                    lineage[field] = assumed.lineage.get(field, "") if assumed else ""
                continue
            inputs[field] = tuple([self._record_of(n).digest for n in names])
            if field in node.lineage:
                lineage[field] = manifest.lineage(self.history(names))
        made = Manifest(
            kind=node.kind,
            version=node.version,
            options={name: node.spec[name] for name in node.options},
            inputs=inputs,
            lineage=lineage,
            sources={field: fact for field, (_, fact) in read.items()},
            tools=tools.versions(node.tools),
            hardware=tools.hardware(node.hardware),
            names=node.called(),
        )
        return made, {field: use for field, (use, _) in read.items()}

    def history(self, names: Sequence[str]) -> tuple[tuple[Manifest, str], ...]:
        """How `names` were made: the manifest and output of every stage, inputs first, equal stages once."""
        stages = [self._record_of(n) for n in self.graph.closure(names)]
        return tuple({r.key: (r.manifest, r.digest) for r in stages}.values())

    def _missing(self, node: Node, made: Manifest) -> tuple[Problem, ...]:
        """What this machine lacks to build a target, though its key may be known and its artifact restored."""
        return self._missing_tools(node, made) + self._missing_hardware(node, made)

    @staticmethod
    def _missing_hardware(node: Node, made: Manifest) -> tuple[Problem, ...]:
        lacking = [name for name, value in made.hardware.items() if value is None]
        if not lacking:
            return ()
        facts = (("needed by", f"`{node.name}` (kind `{node.kind}`)"), ("not found", ", ".join(lacking)))
        return (Problem("this machine has no NVIDIA GPU", node.where, facts, node.hardware[lacking[0]]),)

    @staticmethod
    def _missing_tools(node: Node, made: Manifest) -> tuple[Problem, ...]:
        return tuple(
            Problem(
                f"the package `{name}` is not installed",
                node.where,
                (("needed by", f"`{node.name}` (kind `{node.kind}`)"),),
                f"pip install 'modelbuild[{node.tools[name]}]'" if node.tools.get(name) else f"pip install {name}",
            )
            for name, version in made.tools.items()
            if version is None
        )
