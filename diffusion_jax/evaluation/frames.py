"""Pages that lie on disk, side by side in another page. Each is shown as it is, in a frame without
any right: no script, no form, no way to the page around it."""
from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from diffusion_jax.evaluation import report

LINEAGE = "lineage.html"
"""The page of a lineage, beside the folders of its runs."""
FRAME = '<iframe sandbox title="page" srcdoc="{}"></iframe>'


def reports(folders: Sequence[str]) -> str:
    """The reports of runs; of one that has none yet the curves of its training."""
    pages = []
    for folder in folders:
        file = Path(folder, "report.html")
        if file.is_file():
            pages.append(file.read_text("utf-8"))
        else:
            pages.append(report.page(Path(folder), report.Measured({})))
    return beside(pages)


def lineages(folders: Sequence[str]) -> str:
    """The pages of the lineages that runs are of, each once; "" where they are of none."""
    files = dict.fromkeys(Path(folder).resolve().parent / LINEAGE for folder in folders)
    return beside(file.read_text("utf-8") for file in files if file.is_file())


def beside(pages: Iterable[str]) -> str:
    """Pages in frames, as an element; "" of none."""
    frames = [FRAME.format(html.escape(page)) for page in pages]
    return f"<div class=beside>{''.join(frames)}</div>" if frames else ""
