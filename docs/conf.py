"""How Sphinx builds these pages into a site: `sphinx-build -W docs SITE`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for from_code.py

import npgpt2

project = "npgpt2"
author = "the npgpt2 authors"
copyright = "MIT licence"  # noqa: A001  (Sphinx's name)
release = version = npgpt2.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "from_code"]
smartquotes_action = "D"  # dashes alone: quotation marks stay as they are typed

# Docstrings write names in single backquotes, as code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
autodoc_typehints_description_target = "documented"
napoleon_use_rtype = False
add_module_names = False

# Pages in MyST Markdown (https://myst-parser.readthedocs.io); those with {code-cell} are run.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300

html_theme = "furo"
html_title = f"npgpt2 {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_search_summary = False  # it fetches pages, which a browser refuses without a server
html_show_sphinx = html_show_copyright = html_copy_source = False
