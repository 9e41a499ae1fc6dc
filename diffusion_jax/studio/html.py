"""What a page shows that is no component. All text is escaped: names, texts and reports come from
elsewhere."""
from __future__ import annotations

import base64
import html
import io

import numpy as np

from diffusion_jax.data.image import to_pillow
from diffusion_jax.evaluation.experiments import Sheet

SIDE = 96
"""Pixels, about, to which a smaller picture is enlarged."""
STYLE = """
footer { display: none !important }
.small img, .studio img { image-rendering: pixelated }
.studio img { max-width: none; border-radius: 3px }
.studio progress { width: 100%; height: .8rem }
.wide { overflow-x: auto }
.studio td { padding: .2rem .8rem .2rem 0; vertical-align: middle }
.studio table, .studio tr, .studio td { border: 0 !important }
.small, .small .grid-wrap { height: auto !important; min-height: 0 !important; max-height: none }
.small, .small .grid-wrap { overflow: visible !important }
.caption-label { position: static !important; max-width: none !important }
.caption-label { white-space: normal !important; border: 0 !important }
.thumbnail-lg { aspect-ratio: auto !important; height: auto !important }
.beside { display: flex; flex-wrap: wrap; gap: 1rem }
.beside iframe { flex: 1 1 20rem; min-width: 0; height: 75vh; border: 1px solid #ccc }
@media (max-width: 640px) { .small .grid-container { grid-template-columns: 1fr 1fr !important } }
"""


def picture(image: np.ndarray, side: int) -> str:
    """uint8 [h, w, C], whose pictures have sides of about `side` pixels, as an element; small ones
    are enlarged."""
    with io.BytesIO() as file:
        to_pillow(image).save(file, format="PNG")
        png = base64.b64encode(file.getvalue()).decode()
    width = image.shape[1] * max(1, SIDE // side)
    return f'<img alt="pictures" width={width} src="data:image/png;base64,{png}">'


def stage(text: str, done: int = 0, total: int = 0, inner: str = "") -> str:
    """How far a job is, and below it what there is of it."""
    bar = f"<progress max={total} value={done}></progress>" if total else ""
    text = html.escape(text)
    return f"<div class=studio><div>{text}</div>{bar}<div class=wide>{inner}</div></div>"


def table(sheet: Sheet, side: int) -> str:
    """A sheet of pictures with sides of `side` pixels."""
    lines = []
    for name, images, captions in zip(sheet.names, sheet.images, sheet.captions, strict=True):
        cells = [html.escape(name)]
        for image, text in zip(images, captions, strict=True):
            cells.append(f"{picture(image, side)}<br>{html.escape(text)}")
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return stage("", inner=f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")
