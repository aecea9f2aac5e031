"""Push a listing to the Hub: what differs from what is there goes up, in one commit. Imports no torch.

A push that was cut off anywhere is made whole by the next one: every try compares first, large files that arrived stay
there, and a commit that was made though its answer was lost is found to be there. The token comes from HF_TOKEN or from
huggingface_hub's own login, and nothing here prints or keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, constants
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from align.errors import UserError
from align.export.listing import Entry, Listing, listing
from align.export.target import MAIN, Target, login
from align.export.tries import Say, bars_on_a_terminal, tried

T = TypeVar("T")

_LARGE = 1 << 20  # bytes from which a file goes up by itself, and is named when it is there


@dataclass(frozen=True)
class State:
    """What the Hub has.

    Attributes:
        head: the commit that ``revision`` names; None where it names none yet.
        files: by name, git's SHA-1, and the SHA-256 of one that is kept as a large file; of a branch that is not there
            yet, those that it will begin with.
    """

    exists: bool
    private: bool
    revision: str = MAIN
    head: str | None = None
    files: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    def holds(self, entry: Entry) -> bool:
        """Whether a file is there as it is here."""
        blob, large = self.files.get(entry.name, (None, None))
        return blob == entry.blob if large is None else large == entry.sha256


def push_now(place: Path, target: Target, say: Say, *, token: str | None = None) -> str:
    """Push what of a run or folder ``align push`` would take, without a question; the address. Raises UserError."""
    push = Push(listing(place), target, say, token=token)
    for note in push.listing.notes:
        say(f"note: {note}")
    say(push.ending(push.run()))
    return push.url


@dataclass(frozen=True)
class Pushed:
    """What a push has changed: nothing, where ``changed`` is empty. ``commit`` is what the Hub has now."""

    commit: str | None
    changed: tuple[str, ...]
    pull_request: str | None = None


class Push:
    """A push that has been looked at, and that ``run`` does.

    Args:
        listing: what goes.
        target: where it goes.
        say: takes a sentence for people.
        token: in place of the login.
        pause: seconds before a second try; doubled for each one after it.

    Attributes:
        user, repo: who pushes, and the full name.
        state: what the Hub has.
        todo: files that differ from it.
        tagged: whether the tag is where it shall be, or none was asked for.

    Raises:
        UserError: where there is no login, it may not write there, or the push would do what was not asked for.
    """

    def __init__(
        self, listing: Listing, target: Target, say: Say, *, token: str | None = None, pause: float = 1.0
    ) -> None:
        self.listing, self.target, self.say, self.pause = listing, target, say, pause
        who = login(target, say, token=token, pause=pause)
        self.user, self.repo, self._api = who.user, who.repo, who.api
        self.message = target.message or f"Push {listing.name}"
        self._where: dict[str, Any] = {"repo_id": self.repo, "repo_type": listing.kind}
        self._operations: dict[str, CommitOperationAdd] = {}
        self._pull: str | None = None
        self.state = self._tried(self._look)
        self.todo = self._differing(self.state)
        self._check(self.state)
        self.tagged = target.tag is None
        if target.tag is not None and self.state.exists:
            self.tagged = self._tried(lambda: self._check_tag(None if self.todo else self.state.head))

    @property
    def url(self) -> str:
        """The page of the repository."""
        prefix = "datasets/" if self.listing.kind == "dataset" else ""
        return f"{constants.ENDPOINT}/{prefix}{self.repo}"

    def run(self) -> Pushed:
        """Bring what differs. Raises UserError where the Hub refuses, or does not answer for long."""
        if not self.state.exists:
            self._tried(self._create, also=(409,))
        if self.todo or self.state.head is None:
            with bars_on_a_terminal():
                self._tried(self._bring, also=(409, 412))
        state = self._tried(self._look)
        if left := self._differing(state):
            raise UserError(f"{left[0].path} was changed while it was pushed: push again.")
        try:
            if self.target.tag is not None:
                self._tried(lambda: self._tag(state.head))
        except UserError as error:
            head = (state.head or "")[:12]
            raise UserError(
                f"The files are there, at {head}, but the tag {self.target.tag} was not made: {error}"
            ) from error
        return Pushed(state.head, tuple(entry.name for entry in self.todo), self._pull)

    def ending(self, done: Pushed) -> str:
        """What came of it, as a sentence."""
        many = "1 file" if len(done.changed) == 1 else f"{len(done.changed)} files"
        tag = "" if self.tagged else f", and tagged {self.target.tag}"
        if not done.changed:
            return f"Nothing differs from {self.url}: no commit is made{tag}."
        if done.pull_request:
            return f"{many} proposed: {done.pull_request}"
        branch = "" if self.target.revision == MAIN else f" on {self.target.revision}"
        return f"{many} pushed: {self.url} is at {(done.commit or '')[:12]}{branch}{tag}"

    # ---- what is there

    def _look(self) -> State:
        """What the Hub has now; where a pull request of ours with this title is open, what that one proposes."""
        try:
            private = bool(self._api.repo_info(**self._where).private)
        except RepositoryNotFoundError:
            if self.target.pull:
                raise
            return State(False, self.target.private)
        revision = self._proposed() or self.target.revision
        try:
            head = begin = self._api.repo_info(**self._where, revision=revision).sha
        except RevisionNotFoundError:
            if self.target.pull:
                raise
            head, begin = None, MAIN
        found = self._api.list_repo_tree(**self._where, revision=begin, recursive=True)
        known = [one for one in found if isinstance(one, RepoFile)]
        files = {one.path: (one.blob_id, one.lfs.sha256 if one.lfs else None) for one in known}
        return State(True, private, revision, head, files)

    def _proposed(self) -> str | None:
        """The revision of our open pull request of this title: a second push goes on with it, and opens no other."""
        if not self.target.pull:
            return None
        pulls = self._api.get_repo_discussions(
            **self._where, author=self.user, discussion_type="pull_request", discussion_status="open"
        )
        found = next((pull for pull in pulls if pull.title == self.message), None)
        self._pull = None if found is None else found.url
        return None if found is None else found.git_reference

    def _differing(self, state: State) -> list[Entry]:
        return [entry for entry in self.listing.entries if not state.holds(entry)]

    def _check(self, state: State) -> None:
        """Raises UserError where everyone could read what was to be private, and where weights would be mixed."""
        if not state.exists:
            return
        self.target.check_visibility(self.repo, state.private)
        names = {entry.name for entry in self.listing.entries}
        foreign = sorted(name for name in state.files.keys() - names if self.listing.mixes_with(name))
        if foreign:
            raise UserError(
                f"{self.repo} holds files of {self.listing.another} ({', '.join(foreign)}), and whoever loads it "
                "would get a mixture: remove them there, or name another repository."
            )

    # ---- what is done

    def _create(self) -> None:
        if not self._look().exists:
            self._api.create_repo(**self._where, private=self.target.private)

    def _bring(self) -> None:
        """One try to bring what differs now: large files one after the other, then the commit."""
        state = self._look()
        if state.head is None:
            self._api.create_branch(**self._where, branch=self.target.revision)
            state = self._look()
        self._check(state)
        todo = [(entry, self._operation(entry)) for entry in self._differing(state)]
        if not todo:
            return
        how: dict[str, Any] = {"revision": state.revision, "create_pr": self.target.pull and self._pull is None}
        for entry, operation in todo:
            if entry.size >= _LARGE:
                self._api.preupload_lfs_files(**self._where, additions=[operation], free_memory=False, **how)
                self.say(f"uploaded {entry.name}")
        operations = [operation for _, operation in todo]
        made = self._api.create_commit(
            **self._where, operations=operations, commit_message=self.message, parent_commit=state.head, **how
        )
        self._pull = self._pull or made.pr_url

    def _operation(self, entry: Entry) -> CommitOperationAdd:
        """The file as huggingface_hub takes it; kept, since it remembers its digest and whether it was uploaded."""
        if entry.name not in self._operations:
            content = str(entry.path) if entry.content is None else entry.content
            self._operations[entry.name] = CommitOperationAdd(entry.name, content)
        return self._operations[entry.name]

    def _check_tag(self, head: str | None) -> bool:
        """Whether the tag is on ``head`` already. Raises UserError where it is on another commit."""
        tag = self.target.tag
        found = next((one for one in self._api.list_repo_refs(**self._where).tags if one.name == tag), None)
        if found is not None and found.target_commit != head:
            raise UserError(
                f"{self.repo} has a tag {tag} on another commit, and a tag that others rely on does not move: take "
                "another --tag, or remove that one there."
            )
        return found is not None

    def _tag(self, head: str | None) -> None:
        if self.target.tag is not None and not self._check_tag(head):
            self._api.create_tag(**self._where, tag=self.target.tag, revision=head)

    def _tried(self, call: Callable[[], T], also: tuple[int, ...] = ()) -> T:
        return tried(call, self.repo, self.user, self.say, pause=self.pause, also=also)
