"""An artifact gives back the same recommender, bit for bit, or says in one line why it cannot."""

import errno
import json
import os
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
import torch

import metarec
from metarec import Algorithm, Recommender, Run, create_algorithm, hookimpl, load, save, split
from metarec.data import EncoderSpec
from metarec.errors import ArtifactError, DataError
from metarec.pluginmanager import PluginManager, create_plugin_manager, plugin_manager
from metarec.sealed import SealedFolder
from metarec.testing import small_world

ALGORITHMS = plugin_manager().algorithms
FILES = ("manifest.json", "algorithm.safetensors", "users.safetensors", "items.safetensors")


def fitted(name="bias", *, implicit=False):
    world = small_world(implicit=implicit)
    return Recommender.from_split(create_algorithm(name).fit(world.split.train), world.split)


@pytest.fixture
def saved(tmp_path):
    save(fitted(), tmp_path / "saved")
    return tmp_path / "saved"


def recommended(recommender, side):
    """Everything that is recommended to a few newcomers."""
    partners = recommender.items if side == "user" else recommender.users
    best = 1 if recommender.scale.implicit else 5
    worst = 1 if recommender.scale.implicit else 2
    attributes = {"age": 31, "group": "g1"} if side == "user" else {"kind": "k2"}
    newcomers = [
        recommender.adapt(side=side),
        recommender.adapt({partners.ids[3]: best}, side=side),
        recommender.adapt({partners.ids[3]: best, partners.ids[7]: worst}, attributes, side=side),
    ]
    return [newcomer.recommend(20) for newcomer in newcomers]


class TestRoundTrip:
    @pytest.mark.parametrize("feedback", ["explicit", "implicit"])
    @pytest.mark.parametrize("name", ALGORITHMS)
    def test_recommends_the_same_bit_for_bit(self, tmp_path, name, feedback):
        if feedback not in ALGORITHMS[name].feedback:
            return
        before = fitted(name, implicit=feedback == "implicit")
        save(before, tmp_path / "saved")
        after = load(tmp_path / "saved")
        for side in ("user", "item"):
            if f"new-{side}" in ALGORITHMS[name].scenarios:
                assert recommended(after, side) == recommended(before, side)
            else:
                with pytest.raises(
                    DataError, match=f"{name!r} does not answer for a new {side}, only in warm"
                ):
                    after.adapt(side=side)

    def test_keeps_ids_names_features_popularity_and_scale(self, saved):
        before, after = fitted(), load(saved)
        for mine, its in ((before.users, after.users), (before.items, after.items)):
            assert its.ids.to_list() == mine.ids.to_list() and its.ids.dtype == mine.ids.dtype
            assert its.names.to_list() == mine.names.to_list()
            assert torch.equal(its.popularity, mine.popularity)
            assert torch.equal(its.features.dense(), mine.features.dense())
            assert its.features.blocks == mine.features.blocks
        assert after.scale == before.scale
        assert after.encoders.table() == before.encoders.table()

    def test_keeps_text_of_any_kind(self, tmp_path, make_dataset):
        dataset = make_dataset()
        titles = ["", "naïve ☃", "two\nlines", 'a "quoted" \\', "\x00", "𝔘nicode"]
        attributes = dataset.items.attributes.with_columns(
            title=pl.Series([f"{titles[row % 6]}{row // 6 or ''}" for row in range(len(dataset.items))])
        )
        dataset = replace(dataset, items=replace(dataset.items, attributes=attributes))
        known = split(dataset)
        before = Recommender.from_split(create_algorithm("bias").fit(known.train), known)
        save(before, tmp_path / "saved")
        assert load(tmp_path / "saved").items.names.to_list() == before.items.names.to_list()

    def test_works_without_any_attribute(self, tmp_path, make_dataset):
        dataset = make_dataset()
        bare = [
            replace(side, attributes=side.attributes.drop(side.attributes.columns), encoders={}, display=None)
            for side in (dataset.users, dataset.items)
        ]
        known = split(replace(dataset, users=bare[0], items=bare[1]))
        before = Recommender.from_split(create_algorithm("bias").fit(known.train), known)
        save(before, tmp_path / "saved")
        assert load(tmp_path / "saved").adapt().recommend(9) == before.adapt().recommend(9)

    def test_options_and_state_of_every_allowed_kind(self, tmp_path):
        class Kinds(Algorithm):
            name = "kinds"

            def __init__(self, *, rank: int = 1, sizes: tuple[int, ...] = (1,)) -> None:
                self.rank, self.sizes = rank, sizes

            def fit(self, train, *, valid=None, run=Run()):
                self.number_, self.count_, self.flag_, self.word_ = 0.1 + 0.2, 1 << 60, True, "naïve"
                self.tensors_ = {"a": torch.arange(6).view(2, 3).T, "b": {"c": torch.tensor(float("nan"))}}
                self.half_, self.none_ = torch.tensor([1.5], dtype=torch.bfloat16), torch.zeros(0, 3)
                return self

            def adapt(self, support): ...

            def predict(self, adapted, query): ...

        plugins = PluginManager()
        plugins.algorithms.add("kinds", Kinds, owner="mine")
        world = small_world()
        before = Kinds(rank=3, sizes=(2, 4)).fit(world.split.train)
        save(Recommender.from_split(before, world.split), tmp_path / "saved", plugins=plugins)
        after = load(tmp_path / "saved", plugins=plugins).algorithm
        assert after.options() == {"rank": 3, "sizes": (2, 4)}
        assert (after.number_, after.count_, after.flag_, after.word_) == (0.1 + 0.2, 1 << 60, True, "naïve")
        assert after.flag_ is True
        assert torch.equal(after.tensors_["a"], before.tensors_["a"])
        assert after.tensors_["b"]["c"].isnan() and after.tensors_["b"]["c"].shape == ()
        assert torch.equal(after.half_, before.half_) and after.half_.dtype == torch.bfloat16
        assert after.none_.shape == (0, 3)


class TestFormat:
    def test_is_json_and_safetensors_that_any_language_can_read(self, saved):
        assert {path.name for path in saved.iterdir()} == set(FILES)
        manifest = json.loads((saved / "manifest.json").read_text())
        assert (manifest["format"], manifest["format_version"]) == ("metarec-artifact", 1)
        content = (saved / "items.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]

        def column(name, kind):
            start, stop = header[name]["data_offsets"]
            return struct.unpack(f"<{(stop - start) // struct.calcsize(kind)}{kind}", data[start:stop])

        ends, text = column("names.offsets", "q"), bytes(column("names.bytes", "B"))
        names = [text[start:stop].decode() for start, stop in pairwise(ends)]
        assert names == fitted().items.names.to_list()

    def test_nothing_is_pickled(self, saved, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("pickle")

        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(f"pickle.{name}", refuse)
        monkeypatch.setattr(torch, "load", refuse)
        load(saved)
        assert not any((saved / name).read_bytes().startswith((b"\x80", b"PK")) for name in FILES)

    def test_the_same_recommender_makes_the_same_bytes(self, saved, tmp_path):
        save(fitted(), tmp_path / "again")
        for name in FILES:
            assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def problem(path, plugins=None):
    with pytest.raises(ArtifactError) as raised:
        load(path, plugins=plugins)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def resealed(folder, change):
    """Change the manifest as someone does who knows how to seal it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {name: (folder / name).read_bytes() for name in FILES[1:]}
    change(manifest)
    kind = SealedFolder(manifest.pop("format"), manifest.pop("format_version"), "artifact", ArtifactError)
    values = {name: value for name, value in manifest.items() if name not in ("files", "seal")}
    kind.write(folder, values, files)


class TestDamage:
    @pytest.mark.parametrize("name", FILES)
    def test_a_file_is_missing(self, saved, name):
        (saved / name).unlink()
        expected = (
            "is no artifact of metarec: it has no manifest.json" if name == FILES[0] else "cannot be read"
        )
        assert problem(saved).startswith(f"{saved}") and expected in problem(saved)

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("share", [0, 0.5, 0.99])
    def test_a_file_is_truncated(self, saved, name, share):
        content = (saved / name).read_bytes()
        (saved / name).write_bytes(content[: int(share * len(content))])
        assert problem(saved).startswith(f"{saved / name}: is damaged: ")

    @pytest.mark.parametrize("name", FILES)
    def test_any_bit_is_flipped(self, saved, name):
        content = (saved / name).read_bytes()
        generator = torch.Generator().manual_seed(0)
        for bit in torch.randint(8 * len(content), (60,), generator=generator).tolist():
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            (saved / name).write_bytes(flipped)
            if name == "manifest.json" and same_json(flipped, content):
                continue  # such as 1e-06 and 1E-06
            assert str(saved) in problem(saved)

    def test_the_folder_is_missing_or_of_something_else(self, tmp_path):
        assert problem(tmp_path / "none") == f"{tmp_path / 'none'}: no such folder"
        (tmp_path / "file").write_text("x")
        assert problem(tmp_path / "file") == f"{tmp_path / 'file'}: no such folder"
        assert problem(tmp_path).endswith("is no artifact of metarec: it has no manifest.json")
        for content in ('{"manifest_version": 3}', "[1]", "null"):
            (tmp_path / "manifest.json").write_text(content)
            assert problem(tmp_path).endswith(
                "is no artifact of metarec: its manifest.json is of something else"
            )
        (tmp_path / "manifest.json").write_text("<html>")
        assert "manifest.json: is damaged: " in problem(tmp_path)

    def test_it_is_newer(self, saved):
        resealed(saved, lambda manifest: manifest.update(format_version=2))
        assert problem(saved) == f"{saved}: has format version 2, expected at most 1: upgrade metarec"

    def test_it_was_changed_by_someone_who_can_seal_it(self, saved):
        resealed(saved, lambda manifest: manifest.pop("scale"))
        assert problem(saved) == f"{saved}: scale is missing"

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda m: m["algorithm"]["state"].update(mean_={"tensor": "gone"}), "'gone' is missing"),
            (lambda m: m["algorithm"]["options"].update(iterations=-1), "iterations is -1, expected greater"),
            (lambda m: m["algorithm"]["options"].update(rank=8), "unknown option 'rank'"),
            (lambda m: m["encoders"]["user"][0].update(encoder="kategorical"), "did you mean 'categorical'?"),
            (lambda m: m["encoders"].pop("user"), "'user' is missing"),
            (lambda m: m["blocks"].pop("item"), "'item' is missing"),
        ],
    )
    def test_its_parts_do_not_fit(self, saved, change, expected):
        resealed(saved, change)
        assert problem(saved).startswith(f"{saved}: ") and expected in problem(saved)


def same_json(one, other):
    try:
        return json.loads(bytes(one)) == json.loads(other)
    except ValueError:
        return False


class TestPlugin:
    def test_is_missing(self, saved):
        found = problem(saved, PluginManager())
        assert found.startswith(
            f"{saved}: needs the plugin 'algorithms.bias' {metarec.__version__} for algorithm 'bias': it is not loaded"
        )

    @pytest.mark.parametrize(
        ("made", "installed", "fits"),
        [
            ("1.2.3", "1.9.0", True),
            ("1.2.3", "2.0.0", False),
            ("0.3.1", "0.3.9", True),
            ("0.3.1", "0.4.0", False),
        ],
    )
    def test_has_another_version(self, tmp_path, monkeypatch, made, installed, fits):
        manager = create_plugin_manager(installed=False)
        monkeypatch.setattr(type(manager), "version", lambda *_: made)
        save(fitted(), tmp_path / "saved", plugins=manager)
        monkeypatch.setattr(type(manager), "version", lambda *_: installed)
        if fits:
            load(tmp_path / "saved", plugins=manager)
        else:
            found = problem(tmp_path / "saved", manager)
            assert found.endswith(f"was made by plugin 'algorithms.bias' {made}, {installed} is installed")


class TestWriting:
    def test_replaces_an_artifact_and_nothing_else(self, saved, tmp_path):
        save(fitted("global-mean"), saved)
        assert load(saved).algorithm.name == "global-mean"
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("mine")
        with pytest.raises(
            ArtifactError, match="mine: holds something that is no artifact: it is left alone"
        ):
            save(fitted(), tmp_path / "mine")
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]

    @pytest.mark.parametrize("failing", [0, 1, 2])
    def test_a_full_disk_leaves_the_old_one(self, saved, monkeypatch, failing):
        before = {path: path.read_bytes() for path in saved.parent.rglob("*.*")}
        count = []

        def write_bytes(path, content):
            count.append(path)
            if len(count) > failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with open(path, "wb") as file:
                file.write(content)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(ArtifactError, match="saved: cannot be written: No space left on device"):
            save(fitted("global-mean"), saved)
        assert {path: path.read_bytes() for path in saved.parent.rglob("*.*")} == before

    def test_an_interrupt_leaves_the_old_one(self, saved, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("metarec.atomic._flush", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(fitted("global-mean"), saved)
        monkeypatch.undo()
        assert [path.name for path in saved.parent.iterdir()] == ["saved"]
        assert load(saved).algorithm.name == "bias"

    @pytest.mark.parametrize(
        ("value", "found"),
        [
            ([1, 2], "a list"),
            (None, "a NoneType"),
            (float("inf"), "inf"),
            ({1: 2}, "a dict"),
            ({"a/b": 1}, "a dict"),
            (torch.nn.Linear(1, 1), "a Linear"),
            (torch.eye(2).to_sparse(), "a Tensor"),
        ],
    )
    def test_state_that_no_artifact_can_hold_is_named(self, tmp_path, value, found):
        recommender = fitted()
        recommender.algorithm.thing_ = {"part": value}
        with pytest.raises(
            ArtifactError, match=f"algorithm attribute 'thing_/part' is {found}, expected a tensor"
        ):
            save(recommender, tmp_path / "saved")
        assert list(tmp_path.iterdir()) == []

    def test_an_algorithm_that_no_plugin_registers(self, tmp_path):
        with pytest.raises(ArtifactError, match="algorithm 'bias' is registered by no plugin"):
            save(fitted(), tmp_path / "saved", plugins=PluginManager())


def test_an_encoder_of_another_plugin_is_found_again(tmp_path, make_dataset, monkeypatch):
    class Shouted(type(plugin_manager().encoders.create("categorical"))):
        name = "shouted"

    class Plugin:
        @hookimpl
        def register_encoders(self, register):
            register(Shouted)

    manager = plugin_manager()
    plugin = Plugin()
    manager.register(plugin, name="loud")
    try:
        dataset = make_dataset()
        users = replace(dataset.users, encoders={"occupation": EncoderSpec("shouted")})
        known = split(replace(dataset, users=users))
        save(Recommender.from_split(create_algorithm("bias").fit(known.train), known), tmp_path / "saved")
        assert isinstance(load(tmp_path / "saved").encoders.user.encoders["occupation"], Shouted)
    finally:
        manager.unregister(plugin, name="loud")
    assert "unknown encoder 'shouted'" in problem(tmp_path / "saved")
