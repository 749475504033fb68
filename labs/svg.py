"""SVG drawings made fit to stand inside a page: only what draws, ids of their own, nothing loaded, nothing run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from xml.etree import ElementTree

from markupsafe import Markup

_SVG = "{http://www.w3.org/2000/svg}"
_HREFS = ("href", "{http://www.w3.org/1999/xlink}href")
# What a page should not run or load, and what would act on the whole page (matplotlib's style is in report.css).
_SVG_DROPPED = {"script", "style", "foreignObject", "image", "a", "metadata", "title"}
_URL = re.compile(r"url\(\s*['\"]?([^)'\"]*)['\"]?\s*\)")


def inline(text: str, prefix: str, title: str) -> Markup:
    """Return an SVG to put into a page: only what draws, and every id with a prefix; empty if it is not SVG."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return Markup("")
    if root.tag != f"{_SVG}svg":
        return Markup("")
    clean = _clean(root, prefix)
    clean.attrib.pop("style", None)
    clean.attrib.update({"role": "img", "aria-label": title})
    return Markup(ElementTree.tostring(clean, encoding="unicode"))


def _clean(element: ElementTree.Element, prefix: str) -> ElementTree.Element:
    copy = ElementTree.Element(element.tag.removeprefix(_SVG), dict(_attributes(element, prefix)))
    copy.text, copy.tail = element.text, element.tail
    # A namespace other than SVG's, and comments, draw nothing.
    kept = [child for child in element if isinstance(child.tag, str) and child.tag.startswith(_SVG)]
    copy.extend(_clean(child, prefix) for child in kept if child.tag.removeprefix(_SVG) not in _SVG_DROPPED)
    return copy


def _attributes(element: ElementTree.Element, prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in element.attrib.items():
        if name in _HREFS:
            if value.startswith("#"):
                yield "href", f"#{prefix}{value[1:]}"
        elif name == "id":
            yield name, prefix + value
        elif not name.startswith(("{", "on")):
            yield name, _URL.sub(lambda found: _local_url(found, prefix), value)


def _local_url(found: re.Match[str], prefix: str) -> str:
    return f"url(#{prefix}{found[1][1:]})" if found[1].startswith("#") else "none"


def title_of(text: str) -> str:
    """Return the title that an SVG gives itself, for readers who do not see it."""
    found = re.search(r"<title[^>]*>([^<]+)</title>", text)
    return unescape(found[1].strip()) if found else "Plot; the sentence below it says what to see"
