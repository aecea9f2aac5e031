"""``align push RUN REPO``: what would go, a question, and the upload."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.cli.verbs import Verb, argument, flag, path
from align.errors import Exit, UserError
from align.runs.terminal import echo

if TYPE_CHECKING:
    from align.export.hub import Push, Pushed

_HEAD = 6  # lines of the card that are shown


def _push(args: argparse.Namespace) -> int:
    from align.export.hub import Push
    from align.export.listing import listing
    from align.export.target import MAIN, Target

    say = partial(echo, file=sys.stderr if args.json else sys.stdout, flush=True)
    target = Target(args.repo, not args.public, args.revision or MAIN, args.pr, args.tag, args.message)
    push = Push(listing(Path(args.what)), target, say)
    for line in shown(push):
        say(line)
    changes = push.todo or push.state.head is None or not push.tagged
    if changes and not (args.yes or _agreed(push, args.json)):
        say("Nothing was pushed.")
        return Exit.FINDINGS
    done = push.run()
    if args.json:
        print(json.dumps(_plain(push, done), indent=1))
    say(push.ending(done))
    return Exit.OK


def shown(push: Push) -> list[str]:
    """What would go where, in lines."""
    state, target, listing = push.state, push.target, push.listing
    what = "private" if state.private else "public"
    where = f"on {target.revision}" if not target.pull else f"as a pull request, on {state.revision}"
    lines = [f"{push.url}  {f'there, {what}' if state.exists else f'new, {what}'}, {where}, as {push.user}"]
    if state.exists and state.private and not target.private:
        lines.append("note: it stays private, since it is so already; change that on its page")
    todo = {entry.name for entry in push.todo}
    width = max(len(entry.name) for entry in listing.entries)
    for entry in listing.entries:
        becomes = "as it is there" if entry.name not in todo else "changed" if entry.name in state.files else "new"
        lines.append(f"  {entry.name:<{width}}  {_bytes(entry.size):>8}  {entry.sha256[:12]}  {becomes}")
    if listing.stays:
        lines.append(f"stays here: {', '.join(listing.stays)}")
    lines += [f"note: {note}" for note in listing.notes]
    body = [line for line in listing.card.split("---\n", 2)[-1].split("\n") if line.strip()]
    if body and todo:
        lines += ["the card begins:", *(f"  | {line}" for line in body[:_HEAD])]
    return lines


def _agreed(push: Push, for_scripts: bool) -> bool:
    """Ask. Raises UserError where nobody can answer."""
    if for_scripts or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError("Nobody can be asked here whether to push this: say --yes if it is meant.")
    what = f"Push {len(push.todo)} files to {push.repo}"
    what += "" if push.tagged else f" and tag them {push.target.tag}"
    try:
        return input(f"{what}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False


def _bytes(count: int) -> str:
    """In the units of the Hub's pages, which count in thousands."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"


def _plain(push: Push, done: Pushed) -> dict[str, Any]:
    listing = push.listing
    return {
        "repo": push.repo,
        "kind": listing.kind,
        "url": push.url,
        "private": push.state.private,
        "revision": push.target.revision,
        "commit": done.commit,
        "pull_request": done.pull_request,
        "tag": push.target.tag,
        "files": [
            {"name": e.name, "bytes": e.size, "sha256": e.sha256, "changed": e.name in done.changed}
            for e in listing.entries
        ],
        "stays": list(listing.stays),
        "notes": list(listing.notes),
    }


PUSH = Verb(
    "push",
    "upload a run's model, an exported folder or a data set to the Hub",
    (
        "align push runs/dpo my-model",
        "align push exported/ lab/my-model --public --tag v1 --yes",
        "align push samples.jsonl my-samples --message 'Best of 16'",
    ),
    _push,
    (
        path("what", metavar="RUN", help="a run, a folder with a model, or a file or folder of rows"),
        argument("repo", metavar="REPO", help="USER/NAME, or NAME for one of yours"),
        flag("--public", "let everyone read a repository that is made; private by default"),
        argument("--revision", metavar="R", help="a branch, made where there is none; main by default"),
        flag("--pr", "propose the change as a pull request"),
        argument("--tag", metavar="T", help="name the commit"),
        argument("--message", metavar="M", help="of the commit, and the title of a pull request"),
        flag("--yes", "ask nothing"),
    ),
)
