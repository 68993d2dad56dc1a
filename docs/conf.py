"""How Sphinx builds this folder: `make docs`. Nothing is fetched from a network."""

import importlib
import inspect
import pathlib
import re
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import bayesian_active_learning

PACKAGE = "bayesian_active_learning"

project = PACKAGE
author = ""
version = release = bayesian_active_learning.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = PACKAGE
html_copy_source = html_show_sourcelink = html_show_copyright = False

myst_heading_anchors = 3
suppress_warnings: list[str] = []

default_role = "code"  # docstrings write code in single backticks
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Types of others: there is no inventory of their names without a network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(jax|numpy|np|optax|haiku|hk|os|pathlib|collections)\b.*"),
    # Of any function: a type variable each.
    ("py:class", rf"(P|{PACKAGE}\.(compilation|precision)\.T)"),
    ("py:class", r"(Axes|Figure)"),  # of matplotlib, which is imported where it is used
    ("py:class", rf"{PACKAGE}\.acquisition_functions\.selection\.State"),  # any pytree
    ("py:class", rf"{PACKAGE}\.data_utils\.idx\.FileCheck"),  # a size and a hash
]


def public_names() -> dict[str, str]:
    """Where a name is defined -> the package that shows it, for names in an `__all__`."""
    found = {}
    for name in ("experiment", *bayesian_active_learning._SUBMODULES):
        module = importlib.import_module(f"{PACKAGE}.{name}")
        for each in getattr(module, "__all__", ()):
            home = getattr(getattr(module, each), "__module__", None)
            if isinstance(home, str) and home.startswith(PACKAGE) and home != module.__name__:
                found.setdefault(f"{home}.{each}", f"{module.__name__}.{each}")
    return found


PUBLIC = public_names()


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """A reference to where something is defined, as one to where it is shown."""
    target = PUBLIC.get(node.get("reftarget"))
    if target is None or node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)


def escaped(text: str) -> str:
    """Absolute values and products are meant as they stand, outside code."""
    return re.sub(r"(``.*?``|`[^`]*`)|([|*])", lambda m: m[1] or f"\\{m[2]}", text, flags=re.DOTALL)


def listed(thing: Any, lines: list[str]) -> list[str]:
    """Lines such as `field: what it is` about fields or arguments, as a list."""
    try:
        names = set(getattr(thing, "_fields", None) or inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return lines
    found: list[str] = []
    inside = False
    for line in lines:
        item = re.match(r"(\w+): +(.*)", line)
        if item and item[1] in names:
            found += [] if inside else [""]
            found.append(f"- `{item[1]}`: {item[2]}")
            inside = True
        elif inside and line.startswith(" "):
            found.append(f"  {line.strip()}")
        else:
            found += ["", line] if inside else [line]
            inside = False
    return found


def prepare(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon reads the docstring."""
    lines[:] = listed(thing, escaped("\n".join(lines)).split("\n"))


def describe_field(
    app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """For a field of a named tuple, the comment that stands behind it in the source."""
    if not (lines and lines[0].startswith("Alias for field number")):
        return
    module, _, rest = name.partition(f"{PACKAGE}.")[2].partition(".")
    holder: Any = importlib.import_module(f"{PACKAGE}.{module}")
    *path, field = rest.split(".")
    for part in path:
        holder = getattr(holder, part)
    source = inspect.getsource(holder)
    found = re.search(rf"^    {field}: [^#\n]*# (.+)$", source, re.MULTILINE)
    lines[:] = [escaped(found[1]), ""] if found else [""]


def setup(app: Any) -> None:
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", prepare, priority=400)  # napoleon: 500
    app.connect("autodoc-process-docstring", describe_field, priority=600)
