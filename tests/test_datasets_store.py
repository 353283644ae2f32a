"""The registry of data sets, and where their files come from."""

from __future__ import annotations

import hashlib
import re
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from scisparse import datasets
from scisparse.datasets import store
from scisparse.datasets.registry import SOURCES, DataFile, DataSource
from scisparse.errors import DataError, MissingDependencyError, OptionError

NAMES = ["nmme_south_asia", "improver_uk", "cnrm_iberia", "ersst"]
CONTENT = b"not really netCDF"


# Registry


def test_available_gives_a_line_for_each_data_set() -> None:
    lines = datasets.available()
    assert list(lines) == NAMES
    for line in lines.values():
        assert 30 < len(line) < 100
        assert "\n" not in line


@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_a_checksum_and_a_pinned_address(name: str) -> None:
    source = SOURCES[name]
    assert len({file.path for file in source.files}) == len(source.files)
    for file in source.files:
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        if file.url is not None:
            address = urlparse(file.url)
            assert address.scheme == "https"
            assert re.search(r"/[0-9a-f]{40}/", address.path), "not pinned to a commit"
    assert urlparse(source.origin).netloc == "github.com"


def test_checksums_are_those_of_the_data_folder(data_dir: Path) -> None:
    lines = (data_dir / "SHA256SUMS").read_text().splitlines()
    listed = {line.split()[1].removeprefix("./"): line.split()[0] for line in lines}
    for source in SOURCES.values():
        for file in source.files:
            assert listed[file.path] == file.sha256


@pytest.mark.parametrize("name", ["ersst5", "", None, ["ersst"]])
def test_an_unknown_name_lists_the_known_ones(name: Any) -> None:
    with pytest.raises(OptionError, match=", ".join(map(repr, NAMES))) as caught:
        datasets.load(name)
    near = "did you mean 'ersst'? The" if name and "ersst" in str(name) else "the"
    assert str(caught.value).startswith(f"`name` is {name!r}; {near} choices are ")


# Where files come from


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloads, and no data folder."""
    monkeypatch.delenv("SCISPARSE_DATA_DIR", raising=False)
    folder = tmp_path / "cache"
    monkeypatch.setattr("pooch.os_cache", lambda project: folder / project)
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A web server on this machine that has the file `ours/a.nc`."""
    root = tmp_path / "site"
    (root / "ours").mkdir(parents=True)
    (root / "ours" / "a.nc").write_bytes(CONTENT)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def source_of(file: DataFile) -> DataSource:
    return DataSource(
        name="ours",
        summary="",
        source="",
        origin="https://example.org/ours",
        references="",
        license="",
        files=(file,),
    )


def our_file(url: str | None, content: bytes = CONTENT) -> DataFile:
    return DataFile("ours/a.nc", hashlib.sha256(content).hexdigest(), url)


def locate(file: DataFile) -> Path:
    return store.locate(file, source_of(file))


def test_a_file_is_downloaded_once(cache: Path, site: str) -> None:
    file = our_file(f"{site}/ours/a.nc")
    path = locate(file)
    assert path == cache / "scisparse" / "ours" / "a.nc"
    assert path.read_bytes() == CONTENT
    stamp = path.stat().st_mtime_ns
    assert locate(DataFile(file.path, file.sha256, "http://127.0.0.1:1/gone")) == path
    assert path.stat().st_mtime_ns == stamp


def test_the_folder_comes_first_and_is_read_at_every_call(
    cache: Path, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = our_file(f"{site}/ours/a.nc")
    mine = tmp_path / "mine" / "ours" / "a.nc"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(CONTENT)
    monkeypatch.setenv("SCISPARSE_DATA_DIR", str(tmp_path / "mine"))
    assert locate(file) == mine
    assert not cache.exists()
    mine.unlink()
    assert locate(file).is_relative_to(cache)


def test_a_download_of_other_bytes_is_refused(cache: Path, site: str) -> None:
    with pytest.raises(DataError, match=r"ours/a.nc is missing.*failed \(ValueError\)"):
        locate(our_file(f"{site}/ours/a.nc", content=b"expected"))
    assert not list(cache.rglob("*.nc"))


def test_a_file_that_the_site_does_not_have_is_an_error(cache: Path, site: str) -> None:
    with pytest.raises(DataError, match=r"ours/a.nc is missing.*failed \(HTTPError\)"):
        locate(our_file(f"{site}/ours/b.nc"))


def test_offline_names_file_origin_and_remedy_in_a_line(cache: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.nc"
        with pytest.raises(DataError, match="is missing: SCISPARSE_DATA_DIR is not set") as e:
            locate(our_file(url))
    message = str(e.value)
    assert url in message
    assert "set SCISPARSE_DATA_DIR to a folder that holds it, or connect" in message
    assert "\n" not in message
    assert e.value.__cause__ is not None


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_offline(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_network(url: str, **options: Any) -> str:
        raise ConnectionError(url)

    monkeypatch.setattr("pooch.retrieve", no_network)
    first = SOURCES[name].files[0]
    origin = first.url or SOURCES[name].origin
    expected = f"{first.path} is missing: SCISPARSE_DATA_DIR is not set.*{re.escape(origin)}"
    with pytest.raises(DataError, match=expected) as caught:
        datasets.load(name)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("SCISPARSE_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"SCISPARSE_DATA_DIR \(=.*\) does not hold it"):
        datasets.load(name)


def test_a_set_without_an_address_says_so(cache: Path) -> None:
    with pytest.raises(
        DataError, match=r"no download address.*converted from.*climate4R\.datasets"
    ):
        datasets.load("cnrm_iberia")


def test_a_wrong_folder_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCISPARSE_DATA_DIR", str(tmp_path / "typo"))
    with pytest.raises(DataError, match=r"SCISPARSE_DATA_DIR \(='.*typo'\) is not a folder"):
        datasets.load("ersst")


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_refused(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ours" / "a.nc"
    path.parent.mkdir()
    damaged = {"cut": CONTENT[:-4], "changed": CONTENT.swapcase(), "empty": b""}
    path.write_bytes(damaged[damage])
    monkeypatch.setenv("SCISPARSE_DATA_DIR", str(tmp_path))
    expected = f"{re.escape(str(path))} has SHA-256 .* not .*: it is cut short or changed"
    with pytest.raises(DataError, match=expected):
        locate(our_file(None))


def test_a_download_needs_pooch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingDependencyError, match="pip install pooch"):
        datasets.load("ersst")
