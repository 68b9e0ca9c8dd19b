"""The package's description: README.md, with addresses that a package index can follow.

An index shows the README far from the files beside it. Where the build knows the repository's address (GitHub
Actions tells it) relative links and pictures become absolute ones, at the very commit that is built.
Elsewhere nobody can know it: pictures are left out and links become their text, so that nothing is broken.
"""

import os
import pathlib
import re

from hatchling.metadata.plugin.interface import MetadataHookInterface

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"^!\[(?P<text>[^\]]*)\]\((?P<target>[^):\s]+)\)\n+", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^):\s]+)\)")


def repository(environment):
    """(address of the repository's pages, of its files as they are) at the commit, or None."""
    name, commit = environment.get("GITHUB_REPOSITORY"), environment.get("GITHUB_SHA")
    if not (name and commit):
        return None
    root = f"{environment.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}"
    return f"{root}/blob/{commit}/", f"{root}/raw/{commit}/"


def description(text, addresses):
    """The README's text with absolute targets, or without relative ones; code blocks stay as they are."""
    if addresses is None:
        picture, link = "", r"\g<text>"
    else:
        pages, files = addresses
        picture, link = rf"![\g<text>]({files}\g<target>)\n\n", rf"[\g<text>]({pages}\g<target>)"
    parts, at = [], 0
    for fence in [*FENCE.finditer(text), None]:
        between = text[at : fence.start() if fence else len(text)]
        parts += [LINK.sub(link, PICTURE.sub(picture, between)), fence.group() if fence else ""]
        at = fence.end() if fence else at
    return "".join(parts)


class CustomMetadataHook(MetadataHookInterface):
    """Makes the field `readme` of pyproject.toml."""

    def update(self, metadata):
        text = (pathlib.Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": description(text, repository(os.environ)),
        }
