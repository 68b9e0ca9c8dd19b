"""The built site: an entry for every public name, and no link or anchor that leads nowhere.

`.ci/run` builds it before and tells its place in DOCS_SITE; otherwise it is built here.
"""

import html.parser
import importlib.util
import os
import pathlib
import subprocess
import sys
import urllib.parse

import pytest

pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

ROOT = pathlib.Path(__file__).resolve().parent.parent


def hook():
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "docs" / "support" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(html.parser.HTMLParser):
    """The ids and the addresses of one page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links |= {found[key] for key in ("href", "src") if found.get(key)}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """{path below the site's root: Page}."""
    folder = os.environ.get("DOCS_SITE") or str(tmp_path_factory.mktemp("site"))
    if "DOCS_SITE" not in os.environ:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    root = pathlib.Path(folder)
    return root, {p.relative_to(root).as_posix(): Page(p.read_text()) for p in root.rglob("*.html")}


def test_every_public_name_has_an_entry(site):
    _, pages = site
    found = hook().pages()
    assert {"egm", "energymatch", "egm.paths", "energymatch.posterior.operators"} <= set(found)
    missing = [
        f"{module}.{name}"
        for module, names in found.items()
        for name in names
        if f"{module}.{name}" not in pages[f"api/{module}.html"].ids
    ]
    assert not missing, missing


def test_every_link_and_anchor_leads_somewhere(site):
    root, pages = site
    broken = []
    for path, page in pages.items():
        if path == "404.html":  # its addresses are those of a server
            continue
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (root / path).parent / urllib.parse.unquote(parts.path) if parts.path else root / path
            target = target / "index.html" if target.is_dir() else target
            key = os.path.relpath(os.path.normpath(target), root)
            if not target.exists():
                broken.append(f"{path}: {link}")
            elif parts.fragment and key in pages:
                anchor = urllib.parse.unquote(parts.fragment)
                if anchor not in pages[key].ids and anchor != "__tabbed":
                    broken.append(f"{path}: {link}")
    assert not broken, broken[:20]
