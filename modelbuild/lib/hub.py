"""Checkpoints of the Hugging Face hub, pinned by commit, from the local cache where it has them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from modelbuild.errors import problem


def snapshot(repo: str, revision: str, patterns: Collection[str]) -> Path:
    """The folder that holds the files of `repo` at `revision` (a commit, which may be abbreviated).

    The local hub cache is asked first; the network only for what it lacks, and not at all when the hub is set
    offline (`HF_HUB_OFFLINE=1`). A `ProblemError` when neither has it.
    """
    commit = _commit(repo, revision)
    folder = _cached(repo).get(commit)
    if folder is not None and _looks_whole(folder):
        return folder
    return _download(repo, commit, patterns)


def _cached(repo: str) -> dict[str, Path]:
    """Commits of `repo` in the local cache -> their folders."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "snapshots"
    return {p.name: p for p in root.iterdir()} if root.is_dir() else {}


def _looks_whole(folder: Path) -> bool:
    """Whether weights were fetched too: a tokenizer's use alone leaves a snapshot without them."""
    from modelbuild.lib.checkpoint_files import INDEX, PICKLED, PICKLED_INDEX, WEIGHTS, read_index

    if (folder / WEIGHTS).is_file() or (folder / PICKLED).is_file():
        return (folder / "config.json").is_file()
    for index in (INDEX, PICKLED_INDEX):
        if (folder / index).is_file():
            return all((folder / shard).is_file() for shard in read_index(folder / index).values())
    return False


def _commit(repo: str, revision: str) -> str:
    """The full commit hash for `revision`."""
    if len(revision) == 40:
        return revision
    cached = [c for c in _cached(repo) if c.startswith(revision)]
    if not cached:
        from huggingface_hub import HfApi

        with _Asking(repo, revision):
            cached = [c.commit_id for c in HfApi().list_repo_commits(repo) if c.commit_id.startswith(revision)]
    if len(cached) == 1:
        return cached[0]
    if not cached:
        raise problem(f"`{repo}` has no commit `{revision}`", hint="see the commits on the repository's Files page")
    raise problem(f"the revision `{revision}` of `{repo}` is ambiguous", commits=", ".join(sorted(cached)))


def _download(repo: str, commit: str, patterns: Collection[str]) -> Path:
    from huggingface_hub import snapshot_download

    with _Asking(repo, commit):
        return Path(snapshot_download(repo, revision=commit, allow_patterns=list(patterns)))


class _Asking:
    """Turns what the hub's client raises into a `ProblemError`."""

    def __init__(self, repo: str, revision: str) -> None:
        self.repo, self.revision = repo, revision

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        from huggingface_hub import constants, errors

        cause = (str(error).strip() or repr(error)).splitlines()[0]
        if isinstance(error, errors.GatedRepoError):
            raise problem(f"`{self.repo}` is gated", cause=cause, hint="accept its terms, then `hf auth login`")
        if isinstance(error, errors.RevisionNotFoundError):
            raise problem(f"`{self.repo}` has no commit `{self.revision}`", cause=cause)
        if isinstance(error, errors.RepositoryNotFoundError):
            raise problem(
                f"the hub has no repository `{self.repo}`", cause=cause, hint="if it is private, `hf auth login`"
            )
        offline = bool(constants.HF_HUB_OFFLINE)
        raise problem(
            f"`{self.repo}` is not in the local hub cache and the hub cannot be reached",
            revision=self.revision,
            cache=constants.HF_HUB_CACHE,
            cause="the hub is set offline (HF_HUB_OFFLINE)" if offline else cause,
            hint=f"hf download {self.repo} --revision {self.revision}, where there is a network; or use `path:`",
        ) from error
