"""Tuned configurations: opt-in, kept in a JSON file a device, and without influence on results beyond
rounding.
"""

from __future__ import annotations

import json
import os

import pytest
import torch
import triton

from flashlla import cli, lla_attention
from flashlla.ops.triton import _configs, tune, tuning
from flashlla.ops.triton.tuning import Config
from flashlla.testing.numerics import assert_within_budget, exact
from flashlla.testing.problems import random_operands

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    tuning.load.cache_clear()
    monkeypatch.setenv("FLASHLLA_TUNING", str(tmp_path))
    yield tmp_path
    tuning.load.cache_clear()


def test_files_are_read_where_the_variable_says(folder, monkeypatch):
    before = _configs.choose("probe_fwd", CPU, 16, wide=False)
    config = Config(16, 16, 4, 1)
    assert config != before
    path = tuning.save(folder, "cpu", {tuning.key("probe_fwd", 16): config})
    tuning.save(folder, "cpu", {tuning.key("rows_bwd", 16): config})
    assert set(json.loads(path.read_text())["configs"]) == {"probe_fwd/16", "rows_bwd/16"}
    assert list(folder.iterdir()) == [path]
    assert _configs.choose("probe_fwd", CPU, 16, wide=False) == config
    assert _configs.choose("probe_fwd", CPU, 64, wide=False) != config
    monkeypatch.delenv("FLASHLLA_TUNING")
    assert _configs.choose("probe_fwd", CPU, 16, wide=False) == before


def test_another_configuration_is_as_right(folder):
    configs = {tuning.key(name, 16): Config(16, 32, 4, 1) for name in _configs.KERNELS}
    tuning.save(folder, "cpu", configs)
    operands, _ = random_operands("iid", q_len=40, head_dim=16, dtype=torch.bfloat16, gate=False)
    out = lla_attention(**operands, backend="triton")
    assert_within_budget(out, exact(lla_attention, operands)["out"], torch.bfloat16, 1.0)


def entry(numbers):
    return f'{{"configs": {{"probe_fwd/16": {numbers}}}}}'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        pytest.param("[" * 10**5, id="deep"),
        '{"configs": 3}',
        *map(
            entry, ("3", "[1, 2]", '"abcd"', "[16, 16, 4, NaN]", "[16, 16, 4, Infinity]", "[16, 16, true, 1]")
        ),
        *map(
            entry,
            ("[0, 16, 4, 1]", "[-16, 16, 4, 1]", "[16, 48, 4, 1]", "[16.0, 16, 4, 1]", '["16", 16, 4, 1]'),
        ),
        *map(entry, (f"[{10**9}, 16, 4, 1]", f"[16, {2**80}, 4, 1]", "[16, 16, 64, 1]", "[16, 16, 4, 1000]")),
    ],
)
def test_a_broken_file_is_named(folder, content):
    (folder / "cpu.json").write_text(content)
    with pytest.raises(ValueError, match=r"cpu\.json .*FLASHLLA_TUNING"):
        _configs.choose("probe_fwd", CPU, 16, wide=False)


def test_what_is_no_file_is_named(folder):
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        make(folder / "cpu.json")
        with pytest.raises(ValueError, match=r"cpu\.json .*FLASHLLA_TUNING"):
            _configs.choose("probe_fwd", CPU, 16, wide=False)
        os.rmdir(folder / "cpu.json") if make is os.mkdir else os.unlink(folder / "cpu.json")


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuning, "device_name", lambda device: "gpu")
    monkeypatch.setattr(tune, "tune", lambda *_, **options: pytest.fail("something was measured"))
    (tmp_path / "file").touch()
    assert cli.main(["tune", "--out", str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err
    assert "file cannot be written: Not a directory" in error and error.count("\n") == 1


def test_the_fastest_wins_and_what_does_not_fit_is_passed_over():
    def measure(config):
        if config.num_stages == 3:
            raise triton.runtime.errors.OutOfResources(1, 0, "shared memory")
        return float(config.BLOCK_M)

    candidates = [Config(32, 16, 4, 1), Config(16, 16, 4, 3), Config(16, 16, 4, 1)]
    assert tuning.fastest(measure, candidates, Config(64, 16, 4, 1)) == (Config(16, 16, 4, 1), 16.0)
    assert tuning.fastest(measure, [], Config(64, 16, 4, 1)) == (Config(64, 16, 4, 1), 64.0)


def test_a_whole_run(capsys):
    lines = []
    configs = tune.tune(
        16,
        length=20,
        heads=1,
        device="cpu",
        candidates=[Config(16, 16, 4, 1)],
        decoding_candidates=[Config(16, 16, 4, 2)],
        report=lines.append,
    )
    kernels = (*_configs.KERNELS, *_configs.DECODING)
    assert set(configs) == {tuning.key(kernel, 16) for kernel in kernels}
    assert len(lines) == len(kernels)


def test_the_command_needs_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert cli.main(["tune"]) == 1
    assert "no GPU" in capsys.readouterr().err
