"""Brings a target up to date: restores what was made before, else builds it and publishes what came out."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from modelbuild import events, job, lock, manifest, sources, variation
from modelbuild.decide import Decider, Decision
from modelbuild.errors import BuildError, Problem, ProblemError
from modelbuild.executors import local
from modelbuild.graph import Node
from modelbuild.manifest import Manifest
from modelbuild.names import Reasons
from modelbuild.pools import Pools
from modelbuild.record import Figure, Record, tree


class Rebuilder:
    """Does what the decider says for the targets of one graph in one store, and tells `sink`."""

    def __init__(self, decider: Decider, sink: events.Sink, within: Rebuilder | None = None) -> None:
        """`within` asks for targets with other options: what is made is kept, but the names stay with the recipe's."""
        self.decider, self.sink = decider, sink
        self.graph, self.store = decider.graph, decider.store
        self.within = within
        self.pools: Pools = within.pools if within else Pools()
        self.places: set[Path] = within.places if within else set()
        """The folders in which something is being built, or put away."""

    def bring(self, name: str) -> None:
        """Restore or build a target that `decide` says is not fresh; a `BuildError` where that fails."""
        node, decision = self.graph.nodes[name], self.decider.decide(name)
        if decision.action == "blocked":
            raise ProblemError(*decision.problems)
        assert decision.key is not None
        if decision.action in ("restore", "build"):
            locked = lock.exclusive(self.store.lock_path(decision.key), self._waits(node))
            with self.pools.using(node.resources), self.store.building(), locked:
                self._bring_locked(node, decision)

    def _waits(self, node: Node) -> lock.Waiting:
        return lambda: self.sink(events.Waiting(node.name, "another process builds the same thing"))

    def _bring_locked(self, node: Node, decision: Decision) -> None:
        """Build, unless it was made before or whoever held the lock before did it. What was seen before the lock may
        be gone: `clean` and `gc` wait for the same lock."""
        assert decision.key is not None
        record = self.store.record(decision.key)
        if record and not self.store.damage(record):
            self._restore(node, decision, record)
            return
        before = self.store.names.key(node.recipe, node.short)
        previous = self.store.record(before) if before else None
        self.sink(events.Started(node.name, node.kind, decision.reasons))
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
        if self.within is None:
            self.store.names.link(node.recipe, node.short, record.key)
            self.store.names.add_reasons(node.recipe, node.short, Reasons(record.key, action, time.time(), reasons))
        self.decider.finish(node.name, record)

    def _build(self, node: Node, decision: Decision) -> Record:
        assert decision.key is not None
        assert decision.manifest is not None
        place = self.store.workplace(decision.key)
        self.places.add(place)
        try:
            started = time.monotonic()
            task = self._job(node, decision, place)
            (place / "job.json").write_bytes(job.dump(task))
            outcome = local.run(place / "job.json", place / "log", lambda m: self._relay(node, m))
            if local.stopping():
                raise KeyboardInterrupt
            if outcome.problems:
                raise BuildError(*self._failed(node, decision.key, place, outcome.problems))
            changed = sources.changed(node.sources, decision.manifest.sources, task.sources, self.store.cache)
            if changed:
                raise BuildError(*(p.replacing(where=node.where) for p in changed))
            try:
                return self._publish(decision.manifest, place, outcome, time.monotonic() - started)
            except ProblemError as e:
                raise BuildError(*self._failed(node, decision.key, place, e.problems)) from None
        finally:
            shutil.rmtree(place, ignore_errors=True)
            self.places.discard(place)

    def _job(self, node: Node, decision: Decision, place: Path) -> job.Job:
        return job.Job(
            kind=node.kind,
            spec=node.spec,
            inputs={field: tuple(map(self._folder, names)) for field, names in node.inputs.items()},
            sources=dict(decision.sources),
            history={field: manifest.history(self.decider.history(node.inputs[field])) for field in node.lineage},
            out=place / "out",
            scratch=place / "scratch",
            names=node.called(),
            options={field: tuple(map(self._options, node.inputs[field])) for field in node.varied},
        )

    def _options(self, name: str) -> dict[str, Any]:
        node = self.graph.nodes[name]
        return {option: node.spec[option] for option in node.options}

    def _folder(self, name: str) -> Path:
        return self.store.out(self.decider.finished[name].key)

    def _relay(self, node: Node, message: job.AnyMessage) -> job.Varied | None:
        match message:
            case job.Vary(label, changes):
                return self._vary(node, label, changes)
            case job.Progress(done, total, what):
                self.sink(events.Progressed(node.name, done, total, what))
            case job.Log(text):
                self.sink(events.Said(node.name, text))
            case _:
                pass
        return None

    def _vary(self, node: Node, label: str, changes: Mapping[str, Mapping[str, Any]]) -> job.Varied:
        """Bring what `node` needs up to date with other options, and say where it is or why it cannot be."""

        def sink(event: events.AnyEvent) -> None:
            self.sink(msgspec.structs.replace(event, target=f"{event.target} ({label})"))

        needed = self.graph.closure(node.needs())
        try:
            graph, different = variation.varied(self.graph, node, changes)
            decider = Decider(graph, self.store, verify=self.decider.verify)
            decider.take(self.decider, (name for name in needed if name not in different))
            trial = Rebuilder(decider, sink, within=self)
            for name in needed:
                if decider.decide(name).action != "fresh":
                    trial.bring(name)
        except ProblemError as e:
            return job.Varied(problems=e.problems)
        return job.Varied({field: tuple(str(trial._folder(n)) for n in names) for field, names in node.inputs.items()})

    def _failed(self, node: Node, key: str, place: Path, problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
        """The problems of a failed build with its place, its log and the command that repeats it alone."""
        kept = self.store.keep_failed(key, place)
        shutil.rmtree(kept / "scratch", ignore_errors=True)
        first, *rest = problems
        facts = (
            ("target", f"{node.name} (kind {node.kind})"),
            ("log", str(kept / "log")),
            ("repeat", shlex.join([*local.WORKER, str(kept / "job.json")])),
        )
        return (first.replacing(where=node.where, facts=facts), *rest)

    def _publish(self, made: Manifest, place: Path, outcome: local.Outcome, wall_s: float) -> Record:
        shutil.rmtree(place / "scratch", ignore_errors=True)
        files, folders = self.store.scan(place / "out", outcome.linked)
        record = Record(
            key=manifest.key(made),
            manifest=made,
            digest=tree(files, folders),
            files=files,
            folders=folders,
            metrics={m.name: Figure(m.value, m.unit) for m in outcome.metrics},
            log=outcome.log,
            built_at=time.time(),
            wall_s=wall_s,
            cpu_s=outcome.cpu_s,
            peak_rss_bytes=outcome.peak_rss_bytes,
        )
        self.store.publish(place, record)
        return record
