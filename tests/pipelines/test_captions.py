"""A line under each picture."""
from diffusion_jax.pipelines.captions import captions


def test_a_line_says_what_it_shows_and_how_it_was_made(zeros, texts):
    assert captions(zeros) == [f"0 · seed 3, picture {i} · steps 4, guidance 1.0, sampler ddim" for i in (0, 1)]
    lines = captions(texts)
    assert [line.split(" · ")[0] for line in lines] == ["a three", "a three", "a one", "a one"]
    assert lines[3].endswith("seed 11, picture 3 · steps 4, guidance 2.5, sampler ddim,eta=0.5")


def test_pictures_of_nothing_have_no_name(zeros):
    assert captions(zeros._replace(labels=None))[1].startswith("seed 3, picture 1 · ")
