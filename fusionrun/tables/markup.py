"""HTML and SVG that can't be broken by what stands in a file: text is escaped as it enters."""

import html


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, *content: str, **attributes: str | float | None) -> Markup:
    """An element. `class_` and `stroke_width` become class and stroke-width; None leaves one out.

    Content that isn't Markup is escaped, and so is every attribute.
    """
    written = ""
    for key, value in attributes.items():
        if value is not None:
            # numbers are pixels: a hundredth of one is enough
            text = value if isinstance(value, str) else f"{round(value, 2):g}"
            written += f' {key.rstrip("_").replace("_", "-")}="{html.escape(text)}"'
    return Markup(f"<{name}{written}>{join(*content)}</{name}>")


def join(*content: str) -> Markup:
    """One after the other; what isn't Markup is escaped."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in content))
