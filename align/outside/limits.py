"""How much of what others wrote is read: files, rows, templates. docs/security.md has the table with the reasons.

What goes beyond is refused in a sentence. Sizes are in bytes unless a name says otherwise.
"""

from __future__ import annotations

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# recipes, lock files and launcher configurations
RECIPE = 256 * KIB  # YAML takes a second for so much
ALIASES = 100  # uses of anchors in one file
DOCUMENT_CHARACTERS = 1 << 20  # of all keys and values, once aliases stand for what they name
NESTING = 64  # levels of lists and mappings in each other, in YAML, JSON and Arrow; tool schemas have a dozen
LARGEST = 2**32 - 1  # whole number in a recipe: the largest seed
NAME = 255  # one name in a path, as file systems have it
PATH = 4096  # a whole path

ENTRIES = 100_000  # files and folders of a model or a run, which is looked through before it is read

# rows
ROW = 4 * MIB  # about a million tokens; to tokenise a prompt with two answers takes 200 times its bytes
ARRAY = 1 * GIB  # a JSON file that is no JSON lines is read whole
WHOLE_NUMBER_BITS = 64  # Arrow has no longer ones
UNPACKED_RATIO = 100  # unpacked bytes for each packed one; text packs to a fifth
UNPACKED_FREE = 8 * MIB  # unpacked bytes of which nobody asks how well they were packed

# other files that are parsed whole
JSON = 64 * MIB  # a marker, a metrics file, a model's configuration
LOG = 1 * GIB  # of an evaluation, with its texts
TEXTS = 64 * MIB  # a file of texts, one a line
TEMPLATE = 1 * MIB  # a chat template
HEADER = 100 * MIB  # of a safetensors file, as the format allows
STORE_HEADER = 1 * MIB  # of a file of the reference store

# a chat template at work; a millisecond and a few kilobytes are usual
TEMPLATE_SECONDS = 4.0  # for one conversation, by the clock: on a busy machine, too
TEMPLATE_MEAN_SECONDS = 0.1  # for each of many
TEMPLATE_MEMORY = 512 * MIB
RENDERED_CHARACTERS = 8 << 20  # of one conversation: twice the largest row
