"""Hook of mkdocs: links of the pages to files of the repository, which are not part of the site, lead to the code."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Rewrite links that leave docs/: to `repo_url` where mkdocs.yml has one, else only their text stays."""
    docs = Path(config["docs_dir"])

    def rewrite(match: re.Match[str]) -> str:
        text, (target, _, anchor) = match[1], match[2].partition("#")
        path = (Path(page.file.abs_src_path).parent / target).resolve()
        if ":" in target or not target or path.is_relative_to(docs) or not path.exists():
            return match[0]
        if not config["repo_url"]:
            return text
        address = f"{config['repo_url'].rstrip('/')}/blob/main/{path.relative_to(docs.parent)}"
        return f"[{text}]({address}{'#' + anchor if anchor else ''})"

    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", rewrite, markdown)
