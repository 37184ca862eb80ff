"""Sphinx's settings for the docs site: `make docs` builds it into build/docs.

Nothing on its pages is fetched from elsewhere: fonts are the system's, the search index is a file.
"""

import posixpath
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
# Pages of the repository that are pages of the site too.
PAGES = {"LOG.md": "log.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}

project, author, version = PROJECT["name"], PROJECT["authors"][0]["name"], PROJECT["version"]
project_copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns: list[str] = []
default_role = "code"

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_use_ivar = True
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = "dualprop"
html_static_path = ["static"]
html_favicon = "static/favicon.svg"
html_css_files = ["site.css"]
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def lead_out_of_docs(app, name, source):
    """Links to files outside docs/ lead to their page here, or to the repository."""
    folder = posixpath.dirname(f"docs/{name}")

    def outward(link):
        target, heading = re.fullmatch(r"([^#]*)(#.*)?", link[2]).groups(default="")
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in PAGES:
            return f"{link[1]}({posixpath.relpath(f'docs/{PAGES[path]}', folder)}{heading})"
        if "://" in target or not target or path.startswith("docs/"):
            return link[0]
        return f"{link[1]}({REPOSITORY}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}{heading})"

    source[0] = re.sub(r"(?<!!)(\[[^\]]*\])\(([^)\s]+)\)", outward, source[0])


def setup(app):
    app.connect("source-read", lead_out_of_docs)
