"""The manifest of a folder of real clips: what is read of it, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.benches.manifest import read

HEAD = "file,kind,identity,frames_header,frames_decoded\n"


def manifest(folder: Path, content: str | bytes) -> Path:
    (folder / "a.mp4").write_bytes(b"x")
    (folder / "manifest.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_spreadsheets_file_is_read(tmp_path: Path) -> None:
    text = HEAD + "a.mp4,talk,anna,\u00b2,\u00b2\n"
    (row,) = read(manifest(tmp_path, "\ufeff" + text.replace("\n", "\r\n")))
    assert (row.name, row.kind, row.identity, row.decodes) == ("a", "talk", "anna", True)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe\x00", b"\x00\x01", HEAD, "name,kind\na,b\n", HEAD + "../a.mp4,talk,anna\n",
        HEAD + ",talk\n", HEAD + "a.mp4,talk,anna,1,1,more\n", HEAD + "a\x00.mp4,talk,anna\n",
        HEAD + "x" * 200_000, HEAD + "/etc,talk,a\n", HEAD + '"a.mp4"x,talk,anna\n',
    ],
)
def test_what_is_no_manifest_is_refused_by_name(content: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.csv") as refused:
        read(manifest(tmp_path, content))
    assert "\n" not in str(refused.value)
