"""multipart/form-data (RFC 7578) without any I/O: a request's body to its parts."""

from __future__ import annotations

from email.message import Message
from email.parser import HeaderParser
from email.utils import collapse_rfc2231_value
from typing import NamedTuple


class Part(NamedTuple):
    """One field of a form."""

    name: str
    content: bytes
    filename: str = ""
    """Empty for a field that is not a file."""


def parse(body: bytes, content_type: str) -> list[Part]:
    """Cut a form into its parts, in their order.

    Args:
        body: the request's body.
        content_type: its `content-type` header, which names the boundary.

    Raises:
        ValueError: it is not a form, or a broken one.
    """
    header = Message()
    header["content-type"] = _printable(content_type)
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/form-data" or not boundary:
        raise ValueError("send multipart/form-data with a boundary")
    # The first delimiter has no line break of its own before it.
    _, *pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    if not pieces or not pieces[-1].startswith(b"--"):
        raise ValueError("the form's closing boundary is missing")
    return [_part(piece) for piece in pieces[:-1]]


def _part(piece: bytes) -> Part:
    head, blank, content = piece.partition(b"\r\n\r\n")
    # Browsers and HTTP libraries write names in UTF-8 as they are (HTML Standard, multipart/form-data).
    headers = HeaderParser().parsestr(head.lstrip().decode("utf-8", "replace"))
    name = headers.get_param("name", header="content-disposition")
    if not blank or name is None:
        raise ValueError("a part of the form has no name")
    return Part(_text(name), content, _text(headers.get_filename("")))


def _text(value: str | tuple[str | None, str | None, str]) -> str:
    # Escapes of RFC 2231 may hide bytes that are no text, which no JSON could carry.
    return collapse_rfc2231_value(value).encode("utf-8", "replace").decode()


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())
