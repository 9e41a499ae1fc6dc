"""The parts of a system, from the pages of its stages."""
import pytest
from made import LINEAGE, STAGES

from diffusion_jax.lineage import compare
from diffusion_jax.lineage.diagram import HEIGHT, WIDTH, diagram

BY_KEY = {stage.key: stage for stage in STAGES}


@pytest.fixture(scope="module")
def pages():
    return compare.pages_of(LINEAGE)


def edges(drawing):
    return {(arrow.start.name, arrow.end.name) for arrow in drawing.arrows}


@pytest.mark.parametrize(("key", "expected"), [
    ("dit", {("a class", "Label"), ("Label", "DiT"), ("noise", "DiT"), ("DiT", "a picture")}),
    ("adm", {("a class", "noisy classifier"), ("noisy classifier", "UNet"), ("noise", "UNet"), ("UNet", "a picture")}),
    ("dalle", {("a caption", "DALLE"), ("DALLE", "discrete VAE"), ("discrete VAE", "a picture"), ("CLIP", "a picture")}),
    ("unclip", {("a caption", "CLIP"), ("CLIP", "diffusion prior"), ("diffusion prior", "ImageText"), ("ImageText", "UNet"),
                ("noise", "UNet"), ("UNet", "a picture")}),
    ("cads", {("a class", "Label"), ("Label", "CADS"), ("CADS", "DiT"), ("noise", "DiT"), ("DiT", "a picture")}),
])
def test_which_network_feeds_which(pages, key, expected):
    assert edges(diagram(BY_KEY[key], BY_KEY, pages)) == expected


def test_a_weaker_self_and_a_decoder_of_latents(pages):
    stage = BY_KEY["dit"]._replace(needs={"weak": "dit", "latents": "dvae"}, sample={"weak_step": 20})
    drawing = diagram(stage, BY_KEY, pages)
    assert {("its weaker self", "DiT"), ("DiT", "discrete VAE"), ("discrete VAE", "a picture")} <= edges(drawing)
    assert "at step 20" in next(box for box in drawing.boxes if box.name == "its weaker self").details


def test_an_upsampler_stands_before_the_picture(pages):
    drawing = diagram(BY_KEY["dit"]._replace(needs={"upsampler": "guide"}), BY_KEY, pages)
    assert {("DiT", "noisy classifier"), ("noisy classifier", "a picture")} <= edges(drawing)
    assert "small pictures" in {arrow.text for arrow in drawing.arrows}


@pytest.mark.parametrize("key", ["dalle", "adm", "unclip", "dit", "cads"])
def test_boxes_lie_apart_and_inside(pages, key):
    drawing = diagram(BY_KEY[key], BY_KEY, pages)
    left, top, width, height = drawing.view
    places = {(box.row, box.column) for box in drawing.boxes}
    assert len(places) == len(drawing.boxes)
    assert all(left < box.x < left + width - WIDTH and top < box.y < top + height - HEIGHT for box in drawing.boxes)


def test_a_page_that_does_not_read_has_no_diagram():
    assert diagram(BY_KEY["dit"], BY_KEY, {}) is None
