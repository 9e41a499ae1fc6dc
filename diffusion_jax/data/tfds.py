"""TensorFlow Datasets without TensorFlow.

Preparing a set downloads it and needs TensorFlow, once; a set prepared as array_record is then read with random access
and without it. Images are taken as bytes and decoded by `diffusion_jax.data.image.read`, like those of every other source.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.data.image import opaque, read
from diffusion_jax.data.source import Record, class_indices, readable


@dataclass(frozen=True)
class TFDS:
    """A prepared data set of tensorflow-datasets.

    Attributes:
      dataset: its name, with config and version if wanted: 'cifar10', 'coco_captions', 'imagenet2012:5.1.0'.
      split: 'train', 'test', also a slice: 'train[:90%]'.
      data_dir: where it was prepared; None is ~/tensorflow_datasets.
      image: the feature that holds the image.
      label: the feature that holds the class, 'label' by default if there is one, '' for none (some held-out sets have -1); its
        names become `names`.
      caption: the feature that holds the text, by default 'caption', 'captions' or 'text' if there is one. Of several captions
        (a sequence, or a sequence of {'text': ...}) the first is taken.

    Raises:
      ConfigError: at first use: it is not prepared (the message holds the command), or has no such split or feature.
    """

    dataset: str
    split: str
    data_dir: str | None = None
    image: str = "image"
    label: str | None = None
    caption: str | None = None

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the class feature, where it has any."""
        key = self._key("label")
        names = getattr(self._features[key], "names", None) if key else None
        return tuple(names) if names else None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> Record:
        found = self._records[i]
        image = found[self.image]
        image = read(image, self.place(i)) if isinstance(image, bytes) else opaque(np.asarray(image))
        record: Record = {"image": image}
        label, caption = self._key("label"), self._key("caption")
        if label:
            labels, _ = class_indices([np.asarray(found[label])[()]], self.names, self.dataset, lambda _: self.place(i))
            record["label"] = int(labels[0])
        if caption:
            with readable(self.place(i), "is no text in UTF-8"):
                record["caption"] = first_text(found[caption])
        return record

    def place(self, i: int) -> str:
        """What errors call record i."""
        return f"{self.dataset} {self.split}, record {i}"

    @functools.cached_property
    def _builder(self) -> Any:
        try:
            import tensorflow_datasets as tfds
            from tensorflow_datasets.core.read_only_builder import builder_from_files
        except ImportError:
            raise ConfigError("this data set needs tensorflow-datasets: pip install tensorflow-datasets array_record") from None
        try:  # from the prepared files alone: the code of some sets imports TensorFlow
            where = {} if self.data_dir is None else {"data_dir": self.data_dir}
            builder = builder_from_files(self.dataset, **where)
        except ValueError:
            if re.split("[/:]", self.dataset)[0] in tfds.list_builders(with_community_datasets=False):
                raise ConfigError(f"TFDS {self.dataset!r} is not prepared. {self._remedy(self.data_dir)}") from None
            place = self.data_dir or "~/tensorflow_datasets"
            raise ConfigError(f"TFDS {self.dataset!r} is not known, nor prepared in {place}; check name and data_dir") from None
        formats = {kind.value for kind in builder.info.available_file_formats()}
        if "array_record" not in formats:
            raise ConfigError(f"TFDS {self.dataset!r} is prepared as {'/'.join(formats)} only. {self._remedy('another_folder')}")
        return builder

    def _remedy(self, data_dir: str | None) -> str:
        where = "" if data_dir is None else f", data_dir='{data_dir}'"
        builder = f"tfds.builder('{self.dataset}'{where}, file_format='array_record')"
        command = f'python -c "import tensorflow_datasets as tfds; {builder}.download_and_prepare()"'
        return f"Do it once, with tensorflow installed: {command}"

    @property
    def _features(self) -> Mapping[str, Any]:
        return self._builder.info.features

    @functools.cached_property
    def _records(self) -> Sequence[Mapping[str, Any]]:
        import tensorflow_datasets as tfds

        if self.image not in self._features:
            raise unknown(f"feature of {self.dataset}", self.image, self._features)
        encoded = isinstance(self._features[self.image], tfds.features.Image)
        try:
            bytes_only = {self.image: tfds.decode.SkipDecoding()} if encoded else None
            return self._builder.as_data_source(self.split, decoders=bytes_only)
        except ValueError as error:
            raise ConfigError(f"TFDS {self.dataset!r}, split {self.split!r}: {str(error).splitlines()[0]}") from None

    def _key(self, kind: str) -> str | None:
        """The feature that holds the label or the caption: the one given, or the usual one, or None."""
        given = getattr(self, kind)
        if given == "":
            return None
        if given is not None and given not in self._features:
            raise unknown(f"feature of {self.dataset}", given, self._features)
        usual = {"label": ("label",), "caption": ("caption", "captions", "text")}[kind]
        return given or next((key for key in usual if key in self._features), None)


def first_text(value: Any) -> str:
    """The caption in bytes, a string, a sequence of them, or {'text': sequence of them}: the first of several."""
    if isinstance(value, Mapping):
        value = value.get("text", ())
    while not isinstance(value, (bytes, str)):
        if not np.ndim(value) or not len(value):
            raise ConfigError(f"{str(value)[:40]!r} is no text: choose another caption feature")
        value = value[0]
    return value.decode("utf-8") if isinstance(value, bytes) else value
