"""The report as one HTML file: style and the pieces that sections are made of. Nothing is loaded from outside."""

from collections.abc import Container, Iterable, Mapping, Sequence
from html import escape

CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f25; --soft: #5d6673; --line: #d9dde3; --panel: #f5f6f8;
  --good: #19734a; --good-paper: #dff3e8; --bad: #a8321f; --bad-paper: #fbe4df; --accent: #2f62c4; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e7eaee; --soft: #9aa4b2; --line: #2f353e;
  --panel: #1c2027; --good: #7fd6a8; --good-paper: #16352a; --bad: #ff9c89; --bad-paper: #42201a; --accent: #8fb2f5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.015em; }
h2 { font-size: 1.3rem; margin: 56px 0 8px; padding-top: 18px; border-top: 1px solid var(--line); }
p { max-width: 72ch; margin: 8px 0; }
.soft, figcaption { color: var(--soft); font-size: 0.9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 12px; margin: 24px 0; }
.tile { background: var(--panel); border-radius: 10px; padding: 12px 16px; }
.tile b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; letter-spacing: -0.01em; }
.tile span { color: var(--soft); font-size: 0.85rem; }
.scroll { overflow-x: auto; margin: 16px 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.pass, .fail { display: inline-block; border-radius: 99px; padding: 1px 10px; font-weight: 600; font-size: 0.85rem;
  white-space: nowrap; }
.pass { color: var(--good); background: var(--good-paper); }
.fail { color: var(--bad); background: var(--bad-paper); }
figure { margin: 16px 0; }
figure svg { width: 100%; height: auto; }
video { display: block; width: 100%; image-rendering: pixelated; border-radius: 4px; background: #000; }
.clips { display: grid; gap: 18px 20px; margin: 16px 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--column)), 1fr)); }
.clips figure { margin: 0; }
.clips figcaption { display: flex; justify-content: space-between; gap: 12px; padding-bottom: 4px; }
.clips figcaption b { color: var(--ink); font-weight: 600; }
.columns { display: grid; grid-auto-columns: 1fr; grid-auto-flow: column; font-size: 0.78rem; color: var(--soft);
  text-align: center; padding-top: 2px; }
code { font: 0.82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 20px; font-size: 0.9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.bar { height: 6px; min-width: 1px; border-radius: 3px; background: var(--accent); margin-top: 7px; }
@media print { video { break-inside: avoid; } }
"""


def page(title: str, body: str) -> str:
    """A whole document around HTML text."""
    return ("<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>\n{body}\n</main></body></html>\n")


def section(title: str, *parts: str) -> str:
    """A heading and what is below it."""
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
        text = value.text if isinstance(value, Html) else escape(str(value))
        return f"<{tag}{' class=number' if column in numbers else ''}>{text}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", column, title) for column, title in enumerate(header)) + "</tr>"]
    lines += ["<tr>" + "".join(cell("td", column, value) for column, value in enumerate(row)) + "</tr>" for row in rows]
    return "<div class=scroll><table>" + "\n".join(lines) + "</table></div>"


class Html:
    """Text that is HTML already."""

    def __init__(self, text: str) -> None:
        self.text = text


def verdict(passed: bool, distance: str) -> Html:
    """A pill that says in words and colour whether something was reached, or by how much it was missed."""
    return Html("<span class=pass>✓ reached</span>" if passed else f"<span class=fail>✗ missed by {distance}</span>")


def code(text: str) -> Html:
    """A command."""
    return Html(f"<code>{escape(text)}</code>")


def bar(share: float) -> Html:
    """A bar of this share of its column."""
    return Html(f"<div class=bar style='width:{100 * share:.1f}%'></div>")


def figure(svg: str, caption: str) -> str:
    """A picture with a caption."""
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
    """Names and their values."""
    return "<dl>" + "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
                            for name, value in values.items()) + "</dl>"
