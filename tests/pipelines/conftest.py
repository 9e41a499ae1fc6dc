"""What this folder's tests share: folders of runs whose networks are one line, with random weights."""
from types import SimpleNamespace

import pytest

from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.request import Request
from pipelines.toy_task import LABEL, LOW_RES, TEXT, classifier_page, page, write


@pytest.fixture(scope="package")
def folders(tmp_path_factory):
    """The folders of a model of labels and another one of its kind, of a model of texts, an upsampler and a classifier."""
    root = tmp_path_factory.mktemp("pipelines")
    return SimpleNamespace(
        root=root,
        label=write(root / "label", page(LABEL)),
        other=write(root / "other", page(LABEL), seed=1),
        text=write(root / "text", page(TEXT)),
        upsampler=write(root / "upsampler", page(LABEL, LOW_RES, side=16)),
        classifier=write(root / "classifier", classifier_page()),
    )


@pytest.fixture(scope="package")
def texts(folders):
    """Four pictures of two prompts under a negative one."""
    pipe = pipeline(folders.text).using(guidance=2.5, sampler="ddim,eta=0.5", phi=0.3)
    return pipe(Request(["a three", "a one"], "eight"), num=2, seed=11, batch=3)


@pytest.fixture(scope="package")
def zeros(folders):
    """Two pictures of label 0, which is as good as any other."""
    return pipeline(folders.label)(Request(label=0), num=2, seed=3)
