"""Archives as folders: what is found in them, and those that are refused."""

import io
import tarfile
import zipfile

import pytest
from miniature_archives import write_tar, write_zip

from cagnet_hf.data.builders.archives import open_source
from cagnet_hf.data.samples import BrokenFileError, read_image


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made" / "in" / ".deep").mkdir(parents=True)
    (tmp_path / "made" / "in" / "a.txt").write_text("first")
    (tmp_path / "made" / "in" / ".deep" / "b.txt").write_text("second" * 1000)
    return tmp_path / "made"


@pytest.fixture(params=["w", "w:gz", "w:bz2", "zip"])
def archive(request, folder, tmp_path):
    if request.param == "zip":
        return write_zip(folder / "in", tmp_path / "made.zip")
    return write_tar(folder, tmp_path / "made.tar", request.param)


def test_an_archive_is_used_like_its_folder(archive, folder):
    for root in (folder, open_source(archive)):
        assert sorted(path.name for path in (root / "in").iterdir()) == [".deep", "a.txt"]
        assert [path.name for path in root.iterdir()] == ["in"]
        assert (root / "in").is_dir() and (root / "").is_dir() and not (root / "in").is_file()
        assert (root / "in/a.txt").exists() and not (root / "in/c.txt").exists()
        assert (root / "in" / "a.txt").read_text() == "first"
        assert (root / "in/.deep/b.txt").read_bytes() == b"second" * 1000
        assert ((root / "in/a.txt").stem, (root / "in/a.txt").suffix) == ("a", ".txt")


def test_errors_name_archive_and_member(archive):
    path = open_source(archive) / "in" / "c.txt"
    assert str(path) == f"{archive}/in/c.txt"
    with pytest.raises(BrokenFileError, match=rf"^{path}: No such file in the archive$"):
        read_image(path)


@pytest.mark.parametrize("member", ["../out.txt", "in/../../out.txt", "/etc/out.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_members_that_point_out_are_refused(tmp_path, member, kind):
    path = tmp_path / f"made.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, "out")
    else:
        with tarfile.open(path, "w:gz" if kind == "tgz" else "w") as archive:
            info = tarfile.TarInfo(member)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"out"))
    with pytest.raises(ValueError) as refused:
        open_source(path)
    assert str(refused.value) == f"{path}: member {member!r} points out of the archive; get the official one"


def test_links_are_no_files(tmp_path):
    with tarfile.open(tmp_path / "made.tar", "w") as archive:
        link = tarfile.TarInfo("passwords")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert not (open_source(tmp_path / "made.tar") / "passwords").exists()


def test_a_truncated_archive_is_refused(archive):
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 3])
    with pytest.raises(ValueError, match=rf"^{archive}: truncated or damaged \(.+\); get it anew$"):
        open_source(archive)


def test_a_damaged_member_is_an_error_of_its_own(folder, tmp_path):
    path = write_zip(folder / "in", tmp_path / "made.zip")
    data = bytearray(path.read_bytes())
    data[data.index(b"a.txt") + 6] ^= 255
    path.write_bytes(data)
    with pytest.raises(BrokenFileError, match=rf"^{path}/in/a.txt: damaged in its archive \("):
        read_image(open_source(path) / "in/a.txt")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "data.rar").write_bytes(b"Rar!")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/data\.rar: neither a folder nor an archive \(\.zip, \.tar, "):
        open_source(tmp_path / "data.rar")
    with pytest.raises(FileNotFoundError, match=rf"^{tmp_path}/absent\.tar: no such folder or archive$"):
        open_source(tmp_path / "absent.tar")
