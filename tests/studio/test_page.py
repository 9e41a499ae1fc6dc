"""The page as programs use it: every function by gradio's own client, twenty clients at once, what the door refuses."""
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax import read_request
from diffusion_jax.data.image import read
from diffusion_jax.data.pictures import save_png
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.studio import bounds
from diffusion_jax.studio.desk import filled

gradio_client = pytest.importorskip("gradio_client", reason="the studio needs gradio: pip install '.[studio]'")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("studio")]
LONG = """import sys, gradio_client
client = gradio_client.Client(sys.argv[1], verbose=False)
job = client.submit(*eval(sys.argv[2]), api_name="/make")
for look in job: print("look", flush=True)
"""


@pytest.fixture(scope="module")
def client(studio):
    return gradio_client.Client(studio.url, verbose=False, httpx_kwargs={"timeout": 60})


@pytest.fixture(scope="module")
def pipe(digits):
    return pipeline(digits)


def fields(pipe, **changes):
    """The form of the run of digits, as a client sends it."""
    form = filled("digits", pipe, **({"steps": 4, "num": 1} | changes))
    return list(form._replace(label=list(form.label)))


def pictures(result):
    """uint8 [N, H, W, C] of the gallery that function make returns."""
    return np.stack([read(item["image"]) for item in result[1]["value"]])


def sent(path):
    return gradio_client.handle_file(str(path))


def test_pictures_are_made_and_say_how(client, pipe):
    job = client.submit(*fields(pipe, label=["3"], num=4, seed=7, steps=40), api_name="/make")
    result = job.result()
    looks = [look[0] for look in job.outputs()]
    assert any("<progress" in look and "<img" in look for look in looks[:-1])  # they were seen as they arose
    assert np.array_equal(pictures(result), pipe.using(steps=40)(3, num=4, seed=7).images)
    files = [Path(item["image"]) for item in result[1]["value"]]
    assert read_request(files[1]).index == 1 and read_request(files[1]).seed == 7
    assert "seed 7, picture 1" in result[1]["value"][1]["caption"]
    form = client.predict(sent(files[1]), api_name="/fill")
    values = [one["value"] if isinstance(one, dict) else one for one in form]
    assert values[:2] == ["digits", ["3"]] and values[4:7] == [4, 7, 40]


def test_a_picture_is_edited_undone_and_saved(client, pipe, tmp_path):
    client.predict(*fields(pipe, seed=1), api_name="/make")
    client.predict(api_name="/take")
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[:32, :32] = 255
    save_png(tmp_path / "layer.png", layer)
    editor = {"background": None, "layers": [sent(tmp_path / "layer.png")], "composite": None, "id": None}
    result = client.predict(editor, 1, *fields(pipe, label=["5"], seed=2), api_name="/paint")
    assert "Edits: 1" in result[-1]
    files = client.predict(api_name="/save")
    files = files["value"] if isinstance(files, dict) else files
    story = json.loads(Path(files[1]).read_text())
    assert story["edits"][0]["rect"] == [[0, 0, 4, 4]] and story["edits"][0]["label"] == "5"
    assert np.array_equal(read(files[0]), pipe.using(steps=4)(num=1, seed=1).images[0])
    assert "Edits: 0" in client.predict(api_name="/undo")[-1]
    save_png(tmp_path / "x.png", np.full((30, 20, 3), 200, np.uint8))
    assert "Edits: 0" in client.predict("digits", sent(tmp_path / "x.png"), api_name="/load")[-1]
    for name in ("strength", "inversion"):
        assert "<table>" in client.predict(None, "", *fields(pipe), api_name=f"/{name}")[0]
    assert "mix 0.5" in client.predict(0.5, None, "7", *fields(pipe), api_name="/mix_at")[0]


@pytest.mark.parametrize("name", ["guidance", "switch", "samplers", "runs", "path"])
def test_experiments(client, pipe, name):
    stage, files = client.predict(None, "7", *fields(pipe, num=2), api_name=f"/{name}")
    files = files["value"] if isinstance(files, dict) else files
    assert stage.count("<img") >= (2 if name == "runs" else 5)
    assert (files or [""])[0].endswith(".gif") == (name not in ("samplers", "runs"))
    says = {"samplers": "4 calls", "runs": "<td>text</td>", "path": "step 4, σ/α "}
    assert says.get(name, "diversity ") in stage


def test_one_value_and_reports_and_another_run(client, pipe):
    assert "guidance 2.5" in client.predict(2.5, None, "", *fields(pipe), api_name="/guidance_at")[0]
    assert "CADS 0.1" in client.predict(0.1, None, "", *fields(pipe), api_name="/CADS_at")[0]
    assert client.predict([], api_name="/look").count("<iframe sandbox") == 2
    assert client.predict(["text"], api_name="/look_at").count("<iframe") == 1
    assert client.predict(api_name="/lineages") == ""
    form = client.predict("text", api_name="/run")
    assert form[0]["value"] == "text" and form[1]["visible"] is False and form[2]["visible"] is True


@pytest.mark.parametrize(("change", "says"), [
    (dict(phi=0.5), "phi (--phi) is of guidance, which is 1 here"),
    (dict(interval="x"), "interval 'x': write 'low,high'"),
    (dict(sampler="os:system"), "os:system"),
    (dict(num=2.5), "number is a whole number"),
    (dict(prompt="a cat"), "this model reads no text"),
])
def test_errors_are_the_librarys_lines(client, pipe, change, says):
    with pytest.raises(Exception, match=r"\w") as error:  # of another kind in each release of the client
        client.predict(*fields(pipe, **change), api_name="/make")
    assert says in str(error.value) and "Traceback" not in str(error.value)


def test_twenty_clients_at_once_lose_and_mix_nothing(studio, pipe, record_property):
    clients = [gradio_client.Client(studio.url, verbose=False, httpx_kwargs={"timeout": 60}) for _ in range(20)]
    clock = time.perf_counter()

    def ask(seed):
        return pictures(clients[seed].predict(*fields(pipe, label=[str(seed % 10)], seed=seed, num=2), api_name="/make"))

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(ask, range(20)))
    record_property("seconds", time.perf_counter() - clock)
    quick = pipe.using(steps=4)
    assert len({images.tobytes() for images in results}) == 20
    for seed, images in enumerate(results):
        assert np.array_equal(images, quick(seed % 10, num=2, seed=seed).images), seed


def test_who_leaves_frees_the_device(studio, client, pipe):
    client.predict(*fields(pipe, seed=99), api_name="/make")
    long = str(fields(pipe, num=64, steps=250))
    other = subprocess.Popen([sys.executable, "-c", LONG, studio.url, long], stdout=subprocess.PIPE)
    for _ in range(3):
        other.stdout.readline()  # it is being made
    other.kill()
    other.wait()
    clock = time.perf_counter()
    result = client.predict(*fields(pipe, seed=99), api_name="/make")
    waited = time.perf_counter() - clock
    assert np.array_equal(pictures(result), pipe.using(steps=4)(num=1, seed=99).images)
    clock = time.perf_counter()
    pipe.using(steps=25)(num=64)
    assert waited < 10 * (time.perf_counter() - clock)


# The door -----------------------------------------------------------------------------------------


def test_only_what_the_page_made_is_served(studio, client, pipe, digits, tmp_path):
    import httpx

    made = client.submit(*fields(pipe, seed=5), api_name="/make")
    made.result()
    with httpx.Client(base_url=studio.url, timeout=60) as web:
        for path in ("/etc/passwd", str(digits / "checkpoints"), __file__, str(tmp_path), "../../etc/passwd", f"{studio.out}"):
            for route in ("/gradio_api/file=", "/file="):
                assert web.get(f"{route}{path}").status_code in (403, 404), path
        for address in ("http://127.0.0.1:1/x", "https://example.org/x.png", "file:///etc/passwd"):
            assert web.get(f"/gradio_api/file={address}").status_code == 403, address
            assert web.get(f"/gradio_api/proxy={address}").status_code in (403, 404), address
        for path in ("/etc/passwd", __file__, "http://127.0.0.1:1/x.png"):
            body = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}], "session_hash": "x"}
            answer = web.post("/gradio_api/run/fill", json=body)
            assert answer.status_code >= 400 and "root:" not in answer.text, path
        large = {"files": ("x.png", b"x" * (bounds.UPLOAD + 1))}
        assert web.post("/gradio_api/upload", files=large).status_code in (400, 413)
        assert web.post("/gradio_api/run/fill", content=b"[" * 9, headers={"content-type": "application/json"}).status_code == 403


def test_a_password_is_asked_for(served):
    import httpx

    studio = served("--password", "s3cret", "--host", "0.0.0.0")
    with httpx.Client(base_url=studio.url, timeout=60) as web:
        assert web.get("/config").status_code == 401 and web.post("/gradio_api/run/look", json={"data": [[]]}).status_code == 401
        assert web.post("/login", data={"username": "a", "password": "wrong"}).status_code == 400
        assert web.post("/login", data={"username": "a", "password": "s3cret"}).status_code == 200
        assert web.get("/config").status_code == 200
