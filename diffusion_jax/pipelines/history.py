"""A picture that is changed again and again: states that are undone, saved and replayed."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import save_png
from diffusion_jax.pipelines.session import Editor, prepared


class History(NamedTuple):
    """States of a picture, and what was changed between them.

    Attributes:
      states: uint8 [H, W, C] each: the first as it was loaded, one more for each edit.
      edits: as in a session's file, pipelines/session.py.
    """

    states: tuple[np.ndarray, ...] = ()
    edits: tuple[Mapping[str, Any], ...] = ()

    @property
    def now(self) -> np.ndarray:
        """The newest state.

        Raises:
          ConfigError: there is none.
        """
        if not self.states:
            raise ConfigError("there is no picture to edit: load one, or send one from Make")
        return self.states[-1]

    def edited(self, pipe: Editor, edit: Mapping[str, Any]) -> History:
        """With one more edit, made by a pipeline.

        Raises:
          ConfigError: what `session.prepared` and `Edits.inpainted` refuse, or no picture.
        """
        after = prepared(pipe, edit)(self.now[None])[0]
        return History((*self.states, after), (*self.edits, edit))

    def undone(self) -> History:
        """Without the last edit, if there is one."""
        return History(self.states[:-1], self.edits[:-1]) if self.edits else self

    def save(self, folder: str | Path) -> list[Path]:
        """Writes start.png and session.json, which `--mode edit --op replay --session session.json`
        reads in their folder; returns where they are.

        Raises:
          ConfigError: there is no picture.
        """
        start = Path(folder, "start.png")
        file = Path(folder, "session.json")
        save_png(start, self.states[0] if self.states else self.now)
        story = {"image": start.name, "edits": self.edits}
        file.write_text(json.dumps(story, indent=2) + "\n", encoding="utf-8")
        return [start, file]
