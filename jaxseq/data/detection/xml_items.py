"""Checked access to a small XML file from anywhere: nothing in it is expanded, fetched or nested without end."""

import re
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from jaxseq.data.images.decoding import regular_file
from jaxseq.data.images.json_items import Fault

MAX_BYTES = 2**20
MAX_DEPTH = 32
ENCODINGS = ("utf-8", "utf-16", "iso-8859-1", "us-ascii")
"""Those that expat decodes itself; others would be looked up among all codecs of Python."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def read_xml(path: Path) -> Element:
    """The root of an XML file of at most ``MAX_BYTES``.

    A document type declaration is refused as soon as it starts. Entities can be declared nowhere else, so that none is
    expanded and no other file is read.

    Raises:
        ImageError: missing, not a regular file, empty, or unreadable; the message is the reason.
        Fault: larger, not XML, a document type declaration, another encoding, or deeper than ``MAX_DEPTH``.
    """
    with regular_file(path) as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise Fault(f"more than {MAX_BYTES:,} bytes")
    return parse_xml(raw)


def parse_xml(raw: bytes) -> Element:
    """The root of an XML document; see ``read_xml``."""
    builder, parser, depth = TreeBuilder(), expat.ParserCreate(), 0

    def doctype(*_: object) -> None:
        raise Fault("a document type declaration (DOCTYPE), which can declare entities, is refused")

    def declaration(version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ENCODINGS:
            raise Fault(f"the encoding {encoding[:40]!r}; known: {', '.join(ENCODINGS)}")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise Fault(f"elements nested more than {MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartDoctypeDeclHandler, parser.XmlDeclHandler = doctype, declaration
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(raw, True)
        return builder.close()
    except expat.ExpatError as error:
        raise Fault(f"not XML: {error}") from None


def only_child(element: Element, tag: str, place: str) -> Element:
    """The child of this tag, which must be there once."""
    found = element.findall(tag)
    place = f"{place}.{tag}" if place else tag
    if len(found) != 1:
        raise Fault(f"{place}: {f'{len(found)} times' if found else 'missing'}")
    return found[0]


def text_in(element: Element, tag: str, place: str) -> str:
    """The text of the only child of this tag, which must not be blank."""
    text = (only_child(element, tag, place).text or "").strip()
    if not text:
        raise Fault(f"{place}.{tag}: empty" if place else f"{tag}: empty")
    return text


def number_in(element: Element, tag: str, place: str) -> float:
    """The number in the only child of this tag, which must be finite."""
    text = text_in(element, tag, place)
    value = float(text) if NUMBER.fullmatch(text) else float("nan")
    if not -float("inf") < value < float("inf"):
        raise Fault(f"{place}.{tag}: must be a finite number, not {text[:40]!r}")
    return value


def whole_number_in(element: Element, tag: str, place: str) -> int:
    """The whole number, 0 or more, in the only child of this tag."""
    text = text_in(element, tag, place)
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise Fault(f"{place}.{tag}: must be a whole number, not {text[:40]!r}")
    return int(text)
