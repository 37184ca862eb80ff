"""The docs site: it builds without a warning, its links lead somewhere, and it asks nobody."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parents[2]
# What a page loads, as against what a reader may click.
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("source", "srcset")}


class Page(HTMLParser):
    """The links, the loads and the anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name"):
                self.anchors.add(value)
            elif (tag, name) in LOADED:
                self.loads.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", ROOT / "docs", folder]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def test_every_page_of_the_docs_is_one_of_the_site(site):
    """And an index leads to it: a page outside of the navigation is a warning, and so an error."""
    written = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert written <= built


def test_no_page_loads_anything_from_elsewhere(site, pages):
    """Fonts, scripts and pictures are files of the site: it can be read on a train, and tells
    nobody who reads it."""
    for path, page in pages.items():
        assert page.loads, path
        for load in page.loads:
            assert "//" not in load, f"{path.relative_to(site)} loads {load}"
    for path in site.rglob("*.css"):
        assert "@import" not in path.read_text()
        assert "url(http" not in path.read_text().replace("'", "").replace('"', "")


def test_every_link_leads_to_a_page_and_a_place_that_exist(site, pages):
    """Dead links are how a reader learns that nobody reads."""
    assert len(pages) > 25
    for path, page in pages.items():
        for link in (*page.links, *page.loads):
            if "://" in link or link.startswith(("mailto:", "data:")):
                continue
            target, place = urldefrag(link)
            target = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            assert target.exists(), f"{path.relative_to(site)} links to {link}"
            if place and target in pages:
                assert unquote(place) in pages[target].anchors, f"{path.relative_to(site)} links to {link}"


def test_links_into_the_repository_lead_to_files_of_it(site, pages):
    """They are made from relative ones."""
    import tomllib

    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    seen = 0
    for path, page in pages.items():
        for link in page.links:
            kind, _, target = urldefrag(link)[0].removeprefix(f"{repository}/").partition("/main/")
            if link.startswith(repository) and kind in ("blob", "tree"):
                seen += 1
                assert (ROOT / target).exists(), f"{path.relative_to(site)} links to {link}"
    assert seen


def test_the_search_finds_what_pages_are_about(site):
    """Its index is a file of the site."""
    index = (site / "searchindex.js").read_text()
    for word in ("dyad", "adding-a-rule", "tutorial", "kink"):
        assert word in index
