"""The report as one HTML file: style and the pieces that sections are made of. Nothing is loaded from outside."""

from collections.abc import Container, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

CSS = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")


def page(title: str, body: str) -> str:
    return ("<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>\n{body}\n</main></body></html>\n")


def section(title: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def paragraph(text: str, soft: bool = False) -> str:
    """A paragraph of plain text."""
    return f"<p{' class=soft' if soft else ''}>{escape(text)}</p>"


def tiles(values: Mapping[str, str]) -> str:
    """Large figures: {label: text}."""
    cells = "".join(f"<div class=tile><b>{escape(value)}</b><span>{escape(label)}</span></div>"
                    for label, value in values.items())
    return f"<div class=tiles>{cells}</div>"


def table(header: Sequence[str], rows: Iterable[Iterable[object]], numbers: Container[int] = ()) -> str:
    """A table; cells are plain text, or `Html`. Columns `numbers` are set flush right."""
    def cell(tag: str, column: int, value: object) -> str:
        text = value if isinstance(value, Html) else escape(str(value))
        return f"<{tag}{' class=number' if column in numbers else ''}>{text}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", column, title) for column, title in enumerate(header)) + "</tr>"]
    lines += ["<tr>" + "".join(cell("td", column, value) for column, value in enumerate(row)) + "</tr>" for row in rows]
    return "<div class=scroll><table>" + "\n".join(lines) + "</table></div>"


class Html(str):
    """Text that is HTML already."""


def verdict(passed: bool, distance: str) -> Html:
    """A pill that says in words and colour whether something was reached, or by how much it was missed."""
    return Html("<span class=pass>✓ reached</span>" if passed else f"<span class=fail>✗ missed by {distance}</span>")


def code(text: str) -> Html:
    return Html(f"<code>{escape(text)}</code>")


def bar(share: float) -> Html:
    """A bar of this share of its column."""
    return Html(f"<div class=bar style='width:{100 * share:.1f}%'></div>")


def figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def clip(moving: tuple[str, int], title: str, note: str = "", columns: Sequence[str] = ()) -> str:
    """A moving picture (data URI, widest display in pixels) with a title, a note and words under its columns."""
    data, width = moving
    below = f"<div class=columns>{''.join(f'<span>{escape(name)}</span>' for name in columns)}</div>" if columns else ""
    return (f"<figure style='max-width:{width}px'><figcaption><b>{escape(title)}</b><span>{escape(note)}</span>"
            f"</figcaption><video src='{data}' autoplay loop muted playsinline aria-label='{escape(title)}'></video>"
            f"{below}</figure>")


def clips(items: Sequence[str], column: int = 1040) -> str:
    """Moving pictures in columns of at least this many pixels, as many as fit."""
    return f"<div class=clips style='--column:{column}px'>" + "\n".join(items) + "</div>"


def definitions(values: Mapping[str, object]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
                            for name, value in values.items()) + "</dl>"
