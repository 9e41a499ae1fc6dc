"""What comes from elsewhere, drawn at random: it is read, or refused in one line; nothing else happens."""
import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusion_jax.build import ConfigError, build, symbol
from diffusion_jax.data import image
from diffusion_jax.data.clip_bpe import ClipBPE
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.glide_bpe import GlideBPE
from diffusion_jax.data.pictures import read_batch
from diffusion_jax.data.words import Bytes, Words
from diffusion_jax.diffusion.times import space
from diffusion_jax.runs import page

quickly = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8,
)
FOREIGN = ("os:system", "diffusion_jax.build:importlib", "diffusion_jax.main:sys", "diffusion_jax..os:x", "diffusion_jax.nn:os")
INSIDE = st.builds("diffusion_jax.{}:{}".format, st.text(max_size=15), st.text(max_size=10))
NAMES = st.text(max_size=30) | INSIDE | st.sampled_from(FOREIGN)


def one_line(error):
    return "\n" not in str(error) and len(str(error)) < 2000


@quickly
@given(NAMES)
def test_a_symbol_is_of_this_package_or_refused(name):
    try:
        found = symbol(name)
    except ConfigError as error:
        assert one_line(error)
    else:
        assert found.__module__.startswith("diffusion_jax.")


@quickly
@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_unknown_options_are_refused(options):
    spec = {**options, "name": "diffusion_jax.diffusion.process:Flow"}
    if set(spec) == {"name"}:
        return
    try:
        build(spec)
    except ConfigError as error:
        assert one_line(error)


SECTIONS = st.sampled_from(sorted(page.SECTIONS)) | st.text(max_size=8)


@quickly
@given(st.dictionaries(SECTIONS, JSON, max_size=6))
def test_a_config_is_checked_without_falling_over(config):
    with pytest.raises(ConfigError) as error:
        page.check(json.loads(json.dumps(config)))
    assert one_line(error.value)


@quickly
@given(st.text(max_size=12) | st.from_regex(r"(ddim|fast)?[0-9,٣²]{0,8}", fullmatch=True), st.integers(1, 1000))
def test_a_respacing_keeps_times_of_the_process_or_is_refused(spec, steps):
    try:
        kept = space(spec, steps)
    except ConfigError as error:
        assert one_line(error)
        return
    assert kept.dtype == np.int32 and len(kept) and (np.diff(kept) > 0).all() and kept[0] >= 0 and kept[-1] < steps


TOKENIZERS = (ClipBPE(merges="", context=16), GlideBPE(merges="", context=16), Bytes(16), Words(("a", "b"), 16))


@quickly
@given(st.sampled_from(TOKENIZERS), st.text(max_size=40))
def test_any_text_gives_tokens_or_is_refused(tokenizer, text):
    try:
        tokens = tokenizer(text, truncate=True)
    except ConfigError as error:
        assert one_line(error) or "\n" in text
        return
    assert tokens.shape == (16,) and tokens.dtype == np.int32 and (tokens >= 0).all()


def encoded(kind):
    stream = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(stream, kind)
    return stream.getvalue()


FILES = [encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")]


@quickly
@given(st.sampled_from(FILES), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8), st.integers(0, 10**6))
def test_a_damaged_image_is_an_image_or_refused(file, changes, end):
    data = bytearray(file)
    for place, byte in changes:
        data[place % len(data)] = byte
    data = bytes(data[: end % (len(data) + 1) or None])
    try:
        found = image.read(data, "x.png")
    except ConfigError as error:
        assert one_line(error)
        return
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[-1] in (1, 3)


ROWS = st.fixed_dictionaries({"file_name": st.sampled_from(["0.png", "1.png", "x/0.png"]) | JSON}, optional={
    "text": JSON, "caption": JSON, "label": JSON | st.integers(-1, 3)})
LINES = st.lists(ROWS.map(json.dumps).map(str.encode) | JSON.map(json.dumps).map(str.encode) | st.binary(max_size=20), max_size=4)


@quickly
@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\xe2\x80\xa8"]), st.booleans())
def test_any_listing_of_a_folder_is_records_or_refused(tmp_path_factory, lines, end, mark):
    folder = tmp_path_factory.getbasetemp() / "listing"
    (folder / "x").mkdir(parents=True, exist_ok=True)
    for name in ("0.png", "1.png", "x/0.png"):
        (folder / name).write_bytes(FILES[0])
    (folder / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" * mark + end.join(lines))
    source = Folder(str(folder))
    try:
        records = [source[i] for i in range(len(source))]
    except ConfigError as error:
        assert one_line(error)
        return
    assert records and len({tuple(sorted(record)) for record in records}) == 1
    assert all(isinstance(record.get("label", 0), int) and 0 <= record.get("label", 0) < 2**31 for record in records)
    assert all(isinstance(record.get("caption", ""), str) for record in records)


@quickly
@given(st.binary(max_size=60), st.integers(0, 150), st.integers(0, 255))
def test_a_damaged_array_is_an_array_or_refused(tmp_path_factory, body, place, byte):
    path = tmp_path_factory.getbasetemp() / "x.npz"
    whole = io.BytesIO()
    np.save(whole, np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3))
    data = bytearray(whole.getvalue())
    data[place % len(data)] = byte
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", bytes(data) + body * (place % 2))
    try:
        images, labels = read_batch(path)
    except ConfigError as error:
        assert one_line(error)
        return
    assert images.dtype == np.uint8 and images.ndim == 4 and labels is None


@quickly
@given(st.binary(max_size=200))
def test_any_bytes_are_no_image(data):
    with pytest.raises(ConfigError):
        image.read(data, "x")


@settings(quickly, max_examples=20)
@given(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1))
def test_a_header_that_promises_much_is_refused_before_it_is_unpacked(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    if width * height > 100:
        with pytest.raises(ConfigError):
            image.read(data, "x.png")
