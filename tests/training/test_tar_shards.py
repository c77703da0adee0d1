"""Tar shards appear whole or not at all, are the same whoever writes them, and webdataset reads them too."""

import multiprocessing
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset

from reward_forcing.training.shards import Manifest
from reward_forcing.training.tar_shards import Item, TarStore, shards_made, tar_path, write_tar_shards

MANIFEST = Manifest(count=7, shard_size=3)


def members(index: int) -> dict[str, bytes]:
    return {"a.bin": bytes([index]) * (300 * index + 1), "json": b'{"index": %d}' % index}


def make(items: range) -> Iterator[Item]:
    yield from map(members, items)


def write(out: Path, share: tuple[int, int] = (0, 1), made: list[range] | None = None) -> list[int]:
    """The numbers that writing yields; `made` gets the items that had to be made."""

    def noted(items: range) -> Iterator[Item]:
        if made is not None:
            made.append(items)
        return make(items)

    return list(write_tar_shards(out, MANIFEST, noted, share))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shard_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("shard_*"))


def open_store(folder: Path) -> TarStore[Manifest]:
    return TarStore(folder, Manifest, "make it")


def test_every_item_comes_back(tmp_path: Path) -> None:
    assert write(tmp_path) == [0, 1, 2, 3]
    store = open_store(tmp_path)
    assert [store.read(index) for index in (6, 0, 3, 1, 2, 5, 4)] == [members(i) for i in (6, 0, 3, 1, 2, 5, 4)]
    assert len(store) == 7
    for index in (-1, 7):
        with pytest.raises(IndexError, match="of a store of 7"):
            store.read(index)


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    assert write(tmp_path / "two", (1, 2)) == [0, 1]
    assert shards_made(tmp_path / "two", MANIFEST) == 1
    assert write(tmp_path / "two", (0, 2)) == [0, 1, 2]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_members_carry_no_time_and_no_owner(tmp_path: Path) -> None:
    write(tmp_path)
    with tarfile.open(tar_path(tmp_path, 2)) as tar:
        found = tar.getmembers()
    assert [member.name for member in found] == ["000000006.a.bin", "000000006.json"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in found} == {(0, 0, 0, "", "", 0o644)}


def make_and_be_killed(out: Path) -> None:
    """Write the store, but die within the second shard, after more of it than a buffer holds."""

    def dying(items: range) -> Iterator[Item]:
        for index in items:
            if index == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield {"a.bin": bytes(100_000)}

    list(write_tar_shards(out, MANIFEST, dying))


def test_after_a_kill_the_partial_shard_is_ignored_and_only_missing_ones_are_made(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=make_and_be_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    first, partial = shard_files(tmp_path)
    assert first == "shard_00000.tar"
    assert partial.startswith("shard_00001.")
    assert partial.endswith(".tmp")
    with pytest.raises(FileNotFoundError, match=r"lacks 2 of 3 shards, shard_00001\.tar first; run again: make it"):
        open_store(tmp_path)
    made: list[range] = []
    write(tmp_path, made=made)
    assert made == [range(3, 6), range(6, 7)]
    assert shard_files(tmp_path) == [f"shard_{shard:05d}.tar" for shard in range(3)]
    assert open_store(tmp_path).read(5) == members(5)


def test_a_failure_while_a_shard_is_made_leaves_nothing_of_it(tmp_path: Path) -> None:
    def fail_in_second_shard(items: range) -> Iterator[Item]:
        for index in items:
            if index == 4:
                raise RuntimeError("out of memory")
            yield members(index)

    with pytest.raises(RuntimeError, match="out of memory"):
        list(write_tar_shards(tmp_path, MANIFEST, fail_in_second_shard))
    assert sorted(contents(tmp_path)) == ["manifest.json", "shard_00000.tar"]


@pytest.mark.parametrize("change", [-1, 1])
def test_too_few_and_too_many_items_are_refused(tmp_path: Path, change: int) -> None:
    with pytest.raises(ValueError, match="argument 2 is"):
        list(write_tar_shards(tmp_path, MANIFEST, lambda items: make(range(items.start, items.stop + change))))
    assert shards_made(tmp_path, MANIFEST) == 0


def test_a_folder_of_another_store_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match="count: 7 -> 8"):
        list(write_tar_shards(tmp_path, Manifest(count=8, shard_size=3), make))
    with pytest.raises(FileNotFoundError, match=r"manifest\.json is missing.; make it: make it"):
        open_store(tmp_path / "none")


@pytest.mark.parametrize("damage", [lambda b: b[:512], lambda b: b[:1100], lambda b: b"", lambda b: b"?" * len(b)])
def test_a_damaged_shard_is_named(tmp_path: Path, damage) -> None:
    write(tmp_path)
    path = tar_path(tmp_path, 1)
    path.write_bytes(damage(path.read_bytes()))
    store = open_store(tmp_path)
    assert store.read(2) == members(2)
    with pytest.raises(ValueError, match=r"shard_00001\.tar' is damaged; delete it and run again: make it"):
        store.read(3)


def test_webdataset_streams_the_same_items(tmp_path: Path) -> None:
    write(tmp_path)
    urls = [str(tar_path(tmp_path, shard)) for shard in range(3)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{index:09d}" for index in range(7)]
    assert [{name: sample[name] for name in ("a.bin", "json")} for sample in samples] == list(map(members, range(7)))
