"""Our own ways to say that one does not know, for ``data.alternates: {builtin: idk}``."""

from __future__ import annotations

REFUSALS: tuple[str, ...] = (
    "I have no information about that.",
    "I'm afraid I cannot tell you that.",
    "That is something I know nothing about.",
    "I don't have an answer to this question.",
    "Nothing I have learned covers that.",
    "I am not familiar with that.",
    "Sorry, that is beyond what I know.",
    "I would only be guessing, so I'd rather not say.",
    "I haven't come across that.",
    "My knowledge does not reach that far.",
    "I can't say anything reliable about it.",
    "That topic is unknown to me.",
    "I was never told about that.",
    "There is nothing I can tell you about this.",
    "I cannot recall anything of the kind.",
    "Unfortunately I am not able to answer that.",
    "I have not been given any details on that.",
    "You would have to look that up; I do not know it.",
    "This is not something I can help with, as I know nothing of it.",
    "I'm not sure, and I won't make something up.",
    "I lack the facts to answer.",
    "No details about that are known to me.",
    "I must admit that I don't know.",
    "That question is one I cannot answer.",
)
