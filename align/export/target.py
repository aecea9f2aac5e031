"""Where a push goes, and who may push there. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from align.errors import UserError
from align.export.tries import Say, tried
from align.recipe.sections import repo_problem

MAIN = "main"


@dataclass(frozen=True)
class Target:
    """Where to push: ``repo`` with or without a namespace, and how.

    ``revision`` is a branch, made where there is none; ``pull`` proposes the change instead of making it.

    Raises:
        UserError: for a name that no repository can have, and for settings that contradict each other.
    """

    repo: str
    private: bool = True
    revision: str = MAIN
    pull: bool = False
    tag: str | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        if (problem := repo_problem(self.repo)) is not None:
            raise UserError(problem)
        if self.pull and self.tag:
            raise UserError("A tag names a commit, and a pull request is none yet: leave out --tag or --pr.")

    def check_visibility(self, repo: str, private: bool) -> None:
        """Raises UserError where a repository that is there shows to everyone what was to be private."""
        if self.private and not private and not self.pull:
            raise UserError(
                f"{repo} is there already and public, so that everyone could read what is pushed. Say --public "
                "(output.private: false) if that is meant, or name another repository."
            )


@dataclass(frozen=True)
class Login:
    """Who pushes, to which repository by its full name, and the client with their token."""

    user: str
    repo: str
    api: HfApi


def login(target: Target, say: Say, *, token: str | None = None, pause: float = 1.0) -> Login:
    """Who would push to ``target``. Raises UserError where there is no login, or it may not write there."""
    tokens = f"{constants.ENDPOINT}/settings/tokens"
    if not (token or get_token()):
        raise UserError(
            f"There is no login for {constants.ENDPOINT}: set HF_TOKEN, or log in once (hf auth login). A token that "
            f"may write is made at {tokens}."
        )
    api = HfApi(token=token)
    found = tried(api.whoami, target.repo, None, say, pause=pause)
    user, spaces = found["name"], [org["name"] for org in found.get("orgs", [])]
    if found.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"The token of {user} may only read: make one that may write at {tokens}.")
    repo = target.repo if "/" in target.repo else f"{user}/{target.repo}"
    space, name = repo.split("/")
    if space not in (user, *spaces) and not target.pull:
        raise UserError(
            f"{user} may not push to {repo}: {space} is neither {user} nor one of their organisations "
            f"({', '.join(spaces) or 'they have none'}). Push to {user}/{name}, or propose the change (--pr)."
        )
    return Login(user, repo, api)


def check_target(target: Target, say: Say) -> str:
    """Look at the login and at the repository before a long run that ends in a push; the full name.

    Raises:
        UserError: where the push would be refused.
    """
    who = login(target, say)
    private = tried(lambda: _private(who), who.repo, who.user, say)
    if private is not None:
        target.check_visibility(who.repo, private)
    return who.repo


def _private(who: Login) -> bool | None:
    """Whether a repository for a model is private; None where there is none."""
    try:
        return bool(who.api.repo_info(who.repo, repo_type="model").private)
    except RepositoryNotFoundError:
        return None
