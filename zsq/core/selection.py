"""`SRC#labels=10-29`: of any source of images those with such labels, ends included."""

from __future__ import annotations

import re

from zsq.core.errors import OptionError

MARK = "#labels="


def split_source(source: str) -> tuple[str, range | None]:
    """The source without its selection, and the labels selected; None for all.

    Raises:
        OptionError: no source, or a selection that is not FIRST-LAST.
    """
    path, mark, text = source.rpartition(MARK)
    if not (path if mark else source).strip():
        raise OptionError(f"images '{source}'", "a source of images")
    if not mark:
        return source, None
    match = re.fullmatch(r"(\d{1,9})-(\d{1,9})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise OptionError(f"'{source}'", f"SRC{MARK}FIRST-LAST, as in faces.npz{MARK}0-9")
    return path, range(int(match[1]), int(match[2]) + 1)
