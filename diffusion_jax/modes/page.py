"""Mode `page`: writes a page out as flat Python, with every value in it, to edit and to train.

    python -m diffusion_jax.main --mode page --config folder:photos/ --out mine.py
    python -m diffusion_jax.main --config mine.py --workdir runs/mine

What --config.<key>=<value> changes stands in the file. Read back it is the same page.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.files import whole, writable
from diffusion_jax.modes.options import PAGE_HELP, Page
from diffusion_jax.runs import page
from diffusion_jax.runs.filled import check_parts
from diffusion_jax.runs.written import written
from diffusion_jax.train.state import plain


@dataclass(frozen=True)
class Options:
    """Which page, and where to."""

    config: Page | None = option(None, PAGE_HELP)
    out: str = option("", "The new file, mine.py")

    def __post_init__(self):
        check_options(self)
        if self.config is None:
            raise ConfigError("mode page needs --config: the page to write out")
        if not self.out:
            raise ConfigError("mode page needs --out, a new file: --out mine.py")
        if Path(self.out).suffix != ".py":
            raise ConfigError(f"--out {self.out} is no name of a page: it ends in .py")


def run(options: Options, workdir: str) -> None:
    """Writes the page.

    Args:
      options: the page, and the new file.
      workdir: '', for no run is read or made.

    Raises:
      ConfigError: a page that cannot be trained; a file that is there already.
    """
    config: Any = cast(Any, options.config)
    page.check(plain(config))
    check_parts(plain(config))
    out = Path(options.out).expanduser()
    if out.exists():
        raise ConfigError(f"{options.out} is there already: choose another --out, or remove it")
    writable(out)
    # Not as plain JSON: tuples are to stay tuples.
    sections = config.to_dict() if hasattr(config, "to_dict") else config
    with whole(out) as unfinished:
        unfinished.write_text(written(sections, options.out), encoding="utf-8")
    print(f"written to {options.out}: train it with --config {options.out}")
