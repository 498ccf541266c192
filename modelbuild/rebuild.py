"""Decides for each target: fresh, restore or build, and why; and does it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from modelbuild import events, job, kind, lock, manifest, sources, store, tools
from modelbuild.errors import BuildError, Problem, ProblemError
from modelbuild.executors import local
from modelbuild.explain import explain
from modelbuild.graph import Graph, Node
from modelbuild.manifest import Manifest
from modelbuild.store import Record, Store

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


class Rebuilder:
    """Brings targets of one graph up to date in one store. `finished` holds the records of those that are."""

    def __init__(self, graph: Graph, store: Store, sink: events.Sink) -> None:
        self.graph, self.store, self.sink = graph, store, sink
        self.finished: dict[str, Record] = {}
        self.decisions: dict[str, Decision] = {}

    # ---- deciding

    def survey(self, names: Iterable[str]) -> tuple[Decision, ...]:
        """What is to be done for `names` (in build order, with all they need), without doing it."""
        return tuple(self._foresee(self.graph.nodes[name]) for name in names)

    def decide(self, name: str) -> Decision:
        """What is to be done for a target whose inputs are all finished."""
        known = self.decisions.get(name)
        if known is None or (known.key is None and known.action != "blocked"):
            known = self._decide(self.graph.nodes[name])
            self._note(known)
        return known

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
        damage = self.store.damage(record) if record else ()
        named = self.store.named(node.recipe, node.short)
        if record and not damage and named == key:
            return Decision(target=node.name, action="fresh", key=key, manifest=made, record=record, sources=uses)
        reasons = explain(self.store, node, made, damage)
        if record and not damage:
            return Decision(
                target=node.name, action="restore", reasons=reasons, key=key, manifest=made, record=record, sources=uses
            )
        missing = self._missing_tools(node, made)
        if missing:
            return Decision(target=node.name, action="blocked", reasons=reasons, problems=missing)
        return Decision(target=node.name, action="build", reasons=reasons, key=key, manifest=made, sources=uses)

    def _guess(self, node: Node, pending: Sequence[str]) -> Decision:
        """With inputs yet to be made: `build` when something else changed too, else `maybe`."""
        named = self.store.named(node.recipe, node.short)
        previous = self.store.record(named) if named else None
        assumed = previous.manifest if previous else None
        try:
            made, _ = self._manifest(node, assumed, pending)
        except ProblemError as e:
            return Decision(target=node.name, action="blocked", problems=e.problems)
        missing = self._missing_tools(node, made)
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
        target = node.target
        module = kind.load(target.kind)
        roles = kind.fields(module.Spec)
        uses, facts = {}, {}
        for source in target.sources:
            role = next(r for r in roles if r.name == source.field)
            uses[source.field], facts[source.field] = sources.read(source, role, self.store.cache)
        inputs: dict[str, tuple[str, ...]] = {}
        lineage: dict[str, str] = {}
        for role in roles:
            if role.role != "ref":
                continue
            names = node.inputs[role.name]
            if any(n in pending for n in names):
                inputs[role.name] = assumed.inputs.get(role.name, ()) if assumed else ()
                if role.lineage:
                    lineage[role.name] = assumed.lineage.get(role.name, "") if assumed else ""
                continue
            inputs[role.name] = tuple(self._record_of(n).digest for n in names)
            if role.lineage:
                lineage[role.name] = manifest.lineage(self._history(names))
        return (
            Manifest(
                kind=target.kind,
                version=module.VERSION,
                options={
                    r.name: msgspec.to_builtins(getattr(target.spec, r.attribute)) for r in roles if r.role == "option"
                },
                inputs=inputs,
                lineage=lineage,
                sources=facts,
                tools=tools.versions(kind.used_tools(module, target.spec)),
                hardware=tools.hardware(module.HARDWARE),
            ),
            uses,
        )

    def _history(self, names: Sequence[str]) -> tuple[tuple[Manifest, str], ...]:
        """How `names` were made: the manifest and output of every stage, inputs first, equal stages once."""
        stages = [self._record_of(n) for n in self.graph.closure(names)]
        return tuple({r.key: (r.manifest, r.digest) for r in stages}.values())

    @staticmethod
    def _missing_tools(node: Node, made: Manifest) -> tuple[Problem, ...]:
        extras = kind.load(node.target.kind).TOOLS
        return tuple(
            Problem(
                f"the package `{name}` is not installed",
                node.target.where,
                (("needed by", f"`{node.name}` (kind `{node.target.kind}`)"),),
                f"pip install 'modelbuild[{extras[name]}]'" if extras.get(name) else f"pip install {name}",
            )
            for name, version in made.tools.items()
            if version is None
        )

    # ---- doing

    def bring(self, name: str) -> None:
        """Restore or build a target that `decide` says is not fresh; a `BuildError` where that fails."""
        node, decision = self.graph.nodes[name], self.decide(name)
        if decision.action == "blocked":
            raise ProblemError(*decision.problems)
        assert decision.key is not None
        if decision.action == "restore" and decision.record is not None:
            self._restore(node, decision, decision.record)
        elif decision.action == "build":
            with self.store.building(), lock.exclusive(self.store.lock_path(decision.key), self._waits(node)):
                self._build_locked(node, decision)

    def _waits(self, node: Node) -> lock.Waiting:
        return lambda: self.sink(events.Waiting(node.name, "another process builds the same thing"))

    def _build_locked(self, node: Node, decision: Decision) -> None:
        """Build, unless whoever held the lock before did."""
        assert decision.key is not None
        record = self.store.record(decision.key)
        if record and not self.store.damage(record):
            self._restore(node, decision, record)
            return
        before = self.store.named(node.recipe, node.short)
        previous = self.store.record(before) if before else None
        self.sink(events.Started(node.name, node.target.kind, decision.reasons))
        record = self._build(node, decision)
        self._finish(node, record, "build", decision.reasons)
        self.sink(
            events.Built(
                node.name,
                record.key,
                record.digest,
                record.size,
                record.wall_s,
                record.cpu_s,
                changed=previous is None or previous.digest != record.digest,
            )
        )

    def _restore(self, node: Node, decision: Decision, record: Record) -> None:
        self._finish(node, record, "restore", decision.reasons)
        self.sink(events.Restored(node.name, record.key, decision.reasons))

    def _finish(self, node: Node, record: Record, action: str, reasons: tuple[str, ...]) -> None:
        self.store.name(node.recipe, node.short, record.key)
        self.store.add_reasons(node.recipe, node.short, store.Reasons(record.key, action, time.time(), reasons))
        self.finished[node.name] = record

    def _build(self, node: Node, decision: Decision) -> Record:
        assert decision.key is not None
        assert decision.manifest is not None
        place = self.store.workplace(decision.key)
        try:
            started = time.monotonic()
            task = self._job(node, decision, place)
            (place / "job.json").write_bytes(msgspec.json.format(msgspec.json.encode(task), indent=2))
            outcome = local.run(place / "job.json", place / "log", lambda m: self._relay(node, m))
            if local.stopping():
                raise KeyboardInterrupt
            if outcome.problems:
                raise BuildError(*self._failed(node, decision.key, place, outcome.problems))
            changed = sources.changed(node.target.sources, decision.manifest.sources, task.sources, self.store.cache)
            if changed:
                raise BuildError(*(p.replacing(where=node.target.where) for p in changed))
            return self._publish(decision.manifest, place, outcome, time.monotonic() - started)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _job(self, node: Node, decision: Decision, place: Path) -> job.Job:
        spec = msgspec.to_builtins(node.target.spec)
        roles = kind.fields(type(node.target.spec))
        return job.Job(
            kind=node.target.kind,
            spec=spec,
            inputs={
                field: tuple(self.store.out(self.finished[n].key) for n in names) for field, names in node.inputs.items()
            },
            sources=dict(decision.sources),
            history={r.name: manifest.history(self._history(node.inputs[r.name])) for r in roles if r.lineage},
            out=place / "out",
            scratch=place / "scratch",
        )

    def _relay(self, node: Node, message: job.AnyMessage) -> None:
        match message:
            case job.Progress(done, total, what):
                self.sink(events.Progressed(node.name, done, total, what))
            case job.Log(text):
                self.sink(events.Said(node.name, text))
            case _:
                pass

    def _failed(self, node: Node, key: str, place: Path, problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
        """The problems of a failed build with its place, its log and the command that repeats it alone."""
        kept = self.store.keep_failed(key, place)
        task = msgspec.json.decode((kept / "job.json").read_bytes(), type=job.Job)
        task = msgspec.structs.replace(task, out=kept / "out", scratch=kept / "scratch")
        (kept / "job.json").write_bytes(msgspec.json.format(msgspec.json.encode(task), indent=2))
        shutil.rmtree(kept / "scratch", ignore_errors=True)
        first, *rest = problems
        facts = (
            ("target", f"{node.name} (kind {node.target.kind})"),
            ("log", str(kept / "log")),
            ("repeat", f"python -P -m modelbuild.worker {kept / 'job.json'}"),
        )
        return (first.replacing(where=node.target.where, facts=facts), *rest)

    def _publish(self, made: Manifest, place: Path, outcome: local.Outcome, wall_s: float) -> Record:
        shutil.rmtree(place / "scratch", ignore_errors=True)
        files, folders = self.store.scan(place / "out", self.store.digests_of(outcome.linked))
        record = Record(
            manifest=made,
            digest=store.tree(files, folders),
            files=files,
            folders=folders,
            metrics={m.name: store.Figure(m.value, m.unit) for m in outcome.metrics},
            log=outcome.log,
            built_at=time.time(),
            wall_s=wall_s,
            cpu_s=outcome.cpu_s,
            peak_rss_bytes=outcome.peak_rss_bytes,
        )
        self.store.publish(place, record)
        return record
