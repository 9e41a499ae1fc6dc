"""configs/folder.py: what it makes of a folder. tests/modes/test_own_pictures.py trains it."""
import jax
import numpy as np
import own_pictures as own
import pytest
from pages import ROOT

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.clip_bpe import FILE
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.runs import first_stage, page, pages
from diffusion_jax.runs.folder import save_start
from diffusion_jax.train.state import plain, task_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One of each layout."""
    root = tmp_path_factory.mktemp("pictures")
    for layout in (own.classes, own.loose, own.captioned):
        layout(root / layout.__name__)
    own.loose(root / "grey", shape=(40, 70, 1))
    own.latents(root / "latents")
    return root


@pytest.fixture(autouse=True)
def no_merges(monkeypatch):
    """Whether CLIP's merges are installed must not matter."""
    monkeypatch.setattr("diffusion_jax.data.tokenizers.find_merges", fails)


def fails():
    raise ConfigError("not installed")


def read(folder, variants="", **keywords):
    return plain(pages.read(f"folder:{folder}{variants}", **keywords))


def inner(config):
    """The conditioner within augmentation."""
    cond = config["task"]["cond"]
    return cond.get("cond", cond)


def test_the_docstring_holds_the_command_the_hardware_and_the_number():
    text = (ROOT / "configs" / "folder.py").read_text()
    assert "python -m diffusion_jax.main --config folder:photos/" in text and "Hardware:" in text
    assert "promises no number" in text


@pytest.mark.parametrize(("layout", "reads", "sizes"), [
    ("classes", ("label",), (8, 3)), ("loose", (), (8, 3)), ("captioned", ("tokens",), (8, 3)), ("grey", (), (32, 1))])
def test_it_infers_what_a_folder_is(folders, layout, reads, sizes):
    config = read(folders / layout)
    task = task_of(config)
    assert task.needs == reads and task.shape == (sizes[0], *sizes) and task.num_classes == (3 if layout == "classes" else 0)
    decode = config["data"]["decode"]
    assert (decode["size"], decode["channels"]) == sizes
    assert config["evaluate"]["num"] == 200 and config["evaluate"]["every"] == 500
    train, test = (build(config["data"][split]) for split in ("train", "test"))
    assert len(train) + len(test) == (18 if layout == "classes" else 12) and len(test)


def test_a_single_class_is_none(tmp_path):
    own.loose(tmp_path / "photos" / "cats")
    assert task_of(read(tmp_path / "photos")).needs == ()


VARIANTS = [("classes", variant) for variant in (",unet", ",edm2", ",vae", ",tiny", ",unet,tiny", ",edm2,tiny", ",vae,tiny")]
VARIANTS += [("captioned", variant) for variant in (",text", ",unet", ",tiny")]
VARIANTS += [("loose", variant) for variant in ("", ",unet", ",edm2")]


OF_EACH = (("classes", ",tiny"), ("classes", ",vae,tiny"), ("captioned", ",text"), ("loose", ""), ("loose", ",edm2"))
"""A DiT, a first stage, a UNet that reads captions, a model of nothing, EDM2."""


@pytest.mark.parametrize(("layout", "variants"), [
    pytest.param(*pair, marks=() if pair in OF_EACH else pytest.mark.slow) for pair in VARIANTS])
def test_every_variant_is_a_page_whose_parts_go_together(folders, layout, variants):
    config = read(folders / layout, variants)
    page.check(config)
    task = task_of(config)
    if "sample" in config:
        Recipe.of(page.recipe_fields(config)).check(task)
    record = build(config["data"]["decode"])(build(config["data"]["train"])[0], np.random.default_rng(0))
    assert set(task.needs) <= set(record)
    batch = {key: np.stack([value] * 2) for key, value in record.items() if key != "caption"}
    params = jax.eval_shape(task.init, jax.random.key(0), batch)
    jax.eval_shape(build(config["optim"]).init, params)


@pytest.mark.parametrize("size", [16, 24, 40, 64, 128, 256])
@pytest.mark.parametrize("variant", ["", ",unet", ",edm2"])
def test_networks_divide_every_size(folders, size, variant):
    model = read(folders / "classes", variant, size=size)["model"]
    if variant:
        deepest = 2 ** (len(model["mults"]) - 1)
        assert size % deepest == 0 and size // deepest >= 8 and max(model["attend"]) <= deepest
        assert size // min(model["attend"]) <= 32
    else:
        assert size % model["patch"] == 0 and size // model["patch"] <= 16


def test_captions_are_read_by_what_is_there(folders, tmp_path, monkeypatch):
    spec = read(folders / "captioned")["data"]["decode"]["tokenizer"]
    assert spec["name"].endswith(":Words") and spec["length"] == 8 and "tulips" in spec["words"]
    merges = tmp_path / FILE
    merges.write_text("#version\na b\n")
    named = read(folders / "captioned", merges=str(merges))
    spec = named["data"]["decode"]["tokenizer"]
    assert spec["name"] == "diffusion_jax.data.clip_bpe:ClipBPE" and spec["context"] % 8 == 0
    assert (spec["merges"], spec["most"]) == (str(merges), 3582)
    tower = inner(named)["tower"]
    assert (tower["vocab"], tower["context"]) == (515, spec["context"]) and inner(named)["empty"] == [513, 514, 0]
    for module in ("tokenizers", "clip_bpe"):
        monkeypatch.setattr(f"diffusion_jax.data.{module}.find_merges", lambda: merges)
    assert "merges" not in read(folders / "captioned")["data"]["decode"]["tokenizer"]


def test_the_preset_follows_the_number_of_pictures_and_may_be_named(folders):
    assert read(folders / "loose") == read(folders / "loose", preset="tiny")
    small = read(folders / "loose", preset="small")
    assert small["model"]["width"] == 256 and small["steps"] == 30_000


def test_latents_that_were_written_and_those_made_on_the_way(folders, tmp_path):
    of_folder = read(folders / "classes", ",latent,tiny", first_stage=str(folders / "latents"))
    assert of_folder["task"]["shape"] == [4, 4, 2] and of_folder["first_stage"] == f"{folders}/latents/first_stage"
    assert of_folder["task"]["cond"]["name"].endswith(":Label") and of_folder["evaluate"]["num"] == 0
    own.latents(tmp_path / "large", shape=(8, 8, 2))                          # of pictures of another size than its autoencoder's
    with pytest.raises(ConfigError, match="latents, of which a share is held out: leave out --config.holdout"):
        read(folders / "classes", ",tiny", first_stage=str(folders / "latents"), holdout=0.3)
    large = read(folders / "classes", ",tiny", first_stage=str(tmp_path / "large"))     # which says that it is of latents
    assert large["first_stage"] == {"folder": f"{tmp_path}/large/first_stage", "shape": [16, 16, 3]}
    on_the_way = read(folders / "classes", ",latent,edm2", first_stage=str(folders / "latents" / "first_stage"), size=16)
    assert on_the_way["task"]["shape"] == [8, 8, 2] and on_the_way["data"]["decode"]["size"] == 16
    assert on_the_way["first_stage"]["shape"] == [16, 16, 3] and on_the_way["task"]["scale"]["sigma_data"] == 1.0
    for config in (of_folder, large, on_the_way):
        page.check(config)
        joined = first_stage.read(config, str(tmp_path / "run")).config
        assert task_of(joined).picture_shape == tuple({8: (16, 16, 3), 4: (8, 8, 3)}[config["task"]["shape"][0]])


def test_without_a_first_stage_the_two_commands_are_said(folders, tmp_path):
    with pytest.raises(ConfigError) as error:
        read(folders / "classes", ",latent")
    train = f"python -m diffusion_jax.main --config folder:{folders}/classes,vae --workdir runs/classes_vae"
    encode = "python -m diffusion_jax.main --mode encode --workdir runs/classes_vae --out runs/classes_latents"
    says = str(error.value)
    assert f"{train}, then {encode}, then --config.first_stage=runs/classes_latents" in says and "\n" not in says
    unmeasured = {**own.CODER, "task": {key: own.CODER["task"][key] for key in ("name", "shape")}}
    save_start(tmp_path / "vae", unmeasured, {"model": {"weight": np.zeros(1)}})
    with pytest.raises(ConfigError, match="nobody measured the latents of .*: python .* --mode encode"):
        read(folders / "classes", ",latent", first_stage=str(tmp_path / "vae"))


@pytest.mark.parametrize(("name", "variants"), [
    ("photos", ()), ("a, b", ()), ("a,unet", ()), ("C:x", ()), ("a, b", ("unet",)), ("a,unet", ("edm2", "tiny"))])
def test_folders_may_have_commas_and_colons_in_their_names(tmp_path, monkeypatch, name, variants):
    own.loose(tmp_path / name, 2)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = read("~/" + name + "/", "".join(f",{variant}" for variant in variants))
    assert config["data"]["train"]["path"] == f"~/{name}/"
    kind = {"unet": ":UNet", "edm2": ":EDM2"}.get(variants[0] if variants else "", ":DiT")
    assert config["model"]["name"].endswith(kind)


def empty(folder):
    folder.mkdir()


def archive(folder):
    folder.mkdir()
    (folder / "pictures.zip").write_bytes(b"PK")


def tfds(folder):
    (folder / "1.0.0").mkdir(parents=True)
    (folder / "1.0.0" / "x-train.tfrecord-00000-of-00001").write_bytes(b"")


def array(folder):
    folder.mkdir()
    np.savez(folder / "images.npz", x=np.zeros(1))


@pytest.mark.parametrize(("make", "says"), [
    (lambda folder: None, "no such file or folder"), (empty, "holds no images"),
    (archive, "pictures.zip: is an archive: unpack it"), (array, "images.npz: is an array: name it as"),
    (tfds, "is a data set of TFDS: name it as diffusion_jax.data.tfds:TFDS"),
    (lambda folder: folder.write_bytes(b"text"), "is a file; give the folder that it lies in"),
], ids=["missing", "empty", "archive", "array", "TFDS", "file"])
def test_what_is_no_folder_of_pictures_is_one_line(tmp_path, make, says):
    make(tmp_path / "photos")
    with pytest.raises(ConfigError, match=says) as error:
        read(tmp_path / "photos")
    assert "\n" not in str(error.value)


def test_an_archive_itself_is_to_be_unpacked(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="photos.zip: is an archive: unpack it, and give the folder"):
        read(tmp_path / "photos.zip")


@pytest.mark.parametrize(("layout", "variants", "keywords", "says"), [
    ("classes", ",unett", {}, "unknown variant of this page 'unett': did you mean 'unet'"),
    ("classes", ",unet,edm2", {}, "asks for both unet and edm2: choose one"),
    ("classes", ",vae,text", {}, "asks for both vae and text"),
    ("classes", ",text", {}, "has no captions"),
    ("captioned", ",edm2", {}, "captions, which EDM2's network does not read"),
    ("classes", "", dict(preset="smal"), "unknown preset 'smal': did you mean 'small'"),
    ("classes", ",tiny", dict(preset="small"), "leave out --config.preset"),
    ("classes", "", dict(size=20), "size 20 is no multiple of 8: choose --config.size=16 or 24"),
    ("classes", "", dict(size="big"), "size is a whole number, got 'big'"),
    ("classes", "", dict(size=4), "size is 8 ... 16384"),
    ("classes", "", dict(holdout=1), "holdout of Folder is a share"),
    ("classes", ",vae", dict(holdout=0), "holdout of Folder is a share"),
    ("classes", "", dict(merges="x"), "--config.merges is for captions"),
    ("classes", ",vae", dict(first_stage="runs/vae"), "leave out --config.first_stage, or ,vae"),
    ("classes", ",latent", dict(first_stage="nowhere"), "nowhere"),
])
def test_what_does_not_go_together_is_one_line(folders, layout, variants, keywords, says):
    with pytest.raises(ConfigError, match=says) as error:
        config = read(folders / layout, variants, **keywords)
        build(config["data"]["train"])
    assert "\n" not in str(error.value)


def test_the_folder_is_asked_for():
    with pytest.raises(ConfigError, match="--config folder:photos/"):
        pages.read("folder")
