"""A folder of pictures as a person has it: several sizes, a grey one, one with alpha, one that lies on its side, two that are the
same, some that are cut or none at all, and what systems leave beside them."""
import io
import zipfile

import numpy as np
from PIL import Image

from diffusion_jax.data import damage
from diffusion_jax.data.image import read

BROKEN = {"rose/cut.jpg": "image file is truncated", "rose/empty.png": "or damaged", "tulip/cut.png": "",
          "tulip/text.jpg": "or damaged"}
"""Files that do not read, and what is said of them."""
SAME = ("rose/3.jpg", "tulip/3.jpg")


def encoded(size, mode="RGB", form="JPEG", seed=0, **options):
    """The bytes of a picture of noise, size (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(file, form, **options)
    return file.getvalue()


def sound():
    """{name: bytes} of pictures that read."""
    turned = Image.Exif()
    turned[0x0112] = 6                                     # orientation: its top lies at the right
    return {
        "rose/0.jpg": encoded((40, 30)), "rose/1.jpg": encoded((30, 50), "L", seed=1),
        "rose/2.png": encoded((33, 32), "RGBA", "PNG", 2), SAME[0]: encoded((36, 36), seed=3),
        "tulip/0.jpg": encoded((48, 32), seed=4, exif=turned),
        "tulip/1.webp": encoded((40, 40), form="WEBP", seed=5), "tulip/2.gif": encoded((32, 32), "P", "GIF", 6),
        SAME[1]: encoded((36, 36), seed=3),
    }


def photos(root, broken=True):
    """Writes the folder; returns the names of the pictures that read."""
    files = dict(sound())
    good = sorted(files)
    if broken:
        jpg, png = files["rose/0.jpg"], files["rose/2.png"]
        files |= {"rose/cut.jpg": jpg[:len(jpg) // 2], "rose/empty.png": b"", "tulip/cut.png": png[:len(png) // 2],
                  "tulip/text.jpg": b"<html>"}
    files |= dict.fromkeys(("rose/._0.jpg", "__MACOSX/rose/._0.jpg", "rose/Thumbs.db", "desktop.ini", ".DS_Store"), b"\0")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return good


def zipped(folder):
    """The same files as an archive beside the folder."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def note_decoded(monkeypatch):
    """A list that gets the names of the files that are looked at from now on."""
    names = []
    monkeypatch.setattr(damage, "read", lambda data, name: names.append(name) or read(data, name))
    return names
