"""Sphinx: `pip install -e '.[docs]' && sphinx-build -W docs docs/_build`."""

project = "lbclient"
copyright = "2026, the lbclient authors"  # noqa: A001  # Sphinx's word
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "furo"
exclude_patterns = ["_build"]
