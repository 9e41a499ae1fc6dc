"""The distance of two folders by our command and by pytorch-fid, with the same weights, and how fast each of them is."""
import time

import numpy as np
import pytest
from golden_case import load
from pages import measuring

from diffusion_jax.data import image
from diffusion_jax.data.pictures import save_png
from diffusion_jax.evaluation import compare

COUNT, SIZE, BATCH = 64, 48, 16
GOLDENS = "tests/goldens/metrics/inception_fid_resize64.json"


def folder(path, seed):
    """Smooth random pictures, so that the resizers matter and the features differ."""
    rng = np.random.default_rng(seed)
    for i in range(COUNT):
        small = rng.integers(0, 256, (6 + 2 * seed, 6, 3), dtype=np.uint8)
        save_png(path / f"{i:03d}.png", image.resize(small, SIZE, SIZE))
    return str(path)


@pytest.mark.slow
def test_fid_is_pytorch_fids(tmp_path, monkeypatch, request, capsys):
    torch, peer = pytest.importorskip("torch"), pytest.importorskip("pytorch_fid.fid_score")
    from pytorch_fid import inception

    case = load(request.config.rootpath / GOLDENS)
    weights = {key: torch.tensor(value) for key, value in case.weights.items()}
    torch.save(weights, tmp_path / "rule.pth")
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **options: weights)
    one, two = folder(tmp_path / "one", 0), folder(tmp_path / "two", 1)

    start = time.perf_counter()
    want = peer.calculate_fid_given_paths([one, two], BATCH, "cpu", 2048, num_workers=0)
    theirs, start = time.perf_counter() - start, time.perf_counter()
    network = dict(features=f"inception={tmp_path / 'rule.pth'}", resize="pytorch_fid")
    options = measuring(images=one, reference=two, batch=BATCH, **network)
    found = compare.of_images(str(tmp_path), options).figures
    ours = time.perf_counter() - start
    with capsys.disabled():
        print(f"\nFID {found['FID[inception, pytorch_fid]']:.6f}, pytorch-fid {want:.6f}; {ours:.1f} s and {theirs:.1f} s in all")
    assert found["FID[inception, pytorch_fid]"] == pytest.approx(want, rel=1e-3)
    assert want > 0.01 and "64 samples do not determine" in found["warnings"][0]
