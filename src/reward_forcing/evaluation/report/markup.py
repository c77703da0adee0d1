"""Elements of the page, in which text cannot become markup by accident."""

from __future__ import annotations

from html import escape

VOID = {"img", "link", "meta"}


class Html(str):
    """Markup that goes into the page as it is; any other string is text and is escaped."""

    __slots__ = ()


def element(tag: str, /, *content: str, **attributes: str | float | bool | None) -> Html:
    """`<tag attributes>content</tag>`, content escaped unless it is `Html`.

    `class_` is the attribute class, `aria_label` is aria-label. True gives an attribute without a value; None and False
    leave it out.
    """
    given = {key: value for key, value in attributes.items() if value is not None and value is not False}
    words = [tag, *(_attribute(key, value) for key, value in given.items())]
    end = "" if tag in VOID else f"</{tag}>"
    return Html(f"<{' '.join(words)}>{join(*content)}{end}")


def join(*content: str, between: str = "") -> Html:
    """The contents in turn, escaped unless they are `Html`; no line begins with a per cent sign."""
    return Html(between.join(part if isinstance(part, Html) else _escaped(part) for part in content))


def _escaped(text: str) -> str:
    return escape(text).replace(" %", "&nbsp;%")


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    return name if value is True else f'{name}="{escape(str(value))}"'
