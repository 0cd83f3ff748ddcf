"""``flashlla doctor``: what it reports is what happens, and it survives what it is there to find."""

import importlib.metadata
import json

import pytest
import torch

import flashlla
from flashlla import _backends, cli

CPU = ["doctor", "--device", "cpu"]


def report(capsys, *arguments):
    code = cli.main([*CPU, "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_versions_and_extension(capsys):
    code, found = report(capsys)
    assert code == 0
    assert found["problems"] == []
    assert found["versions"]["flashlla"] == flashlla.__version__
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["extension"]["instruction_set"] in found["extension"]["available"]


def test_versions_are_found_where_owners_of_modules_are_not_known(capsys, monkeypatch):
    """As in Python 3.10, which knows only of packages that come with a list of their modules."""
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    _, found = report(capsys)
    assert found["versions"]["numpy"] == importlib.metadata.version("numpy")


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16", "float64"))
def test_backend_is_the_one_that_is_chosen(capsys, dtype):
    _, found = report(capsys, "--dtype", dtype, "--shape", "2,100,4,48")
    assert found["call"]["backend"] == _backends.choose("auto", "cpu", getattr(torch, dtype)).name
    assert found["call"]["shape"] == [2, 100, 4, 48]
    assert set(found["call"]["backends"]) == set(_backends.BACKENDS)


def test_a_triton_that_is_too_old_is_named_and_passed_over(capsys, monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", "3.3.1")
    code, found = report(capsys)
    assert code == 0 and found["call"]["backend"] == "cpu"
    assert found["call"]["backends"]["triton"].startswith("Triton 3.3.1 is too old")


def test_text_has_every_section(capsys):
    assert cli.main(CPU) == 0
    text = capsys.readouterr().out
    for part in (
        "versions",
        "compiled extension",
        "devices",
        "FLASHLLA_ISA",
        "takes cpu",
        "trial calls",
        "problems",
    ):
        assert part in text


def test_variables_in_effect(capsys, monkeypatch):
    monkeypatch.setenv("FLASHLLA_BACKEND", "blockwise")
    _, found = report(capsys)
    assert found["environment"]["FLASHLLA_BACKEND"] == "blockwise"
    assert (found["call"]["backend"], found["call"]["reason"]) == ("blockwise", "named by FLASHLLA_BACKEND")


@pytest.mark.parametrize(
    ("name", "value"),
    (("FLASHLLA_BACKEND", "magic"), ("FLASHLLA_NUM_THREADS", "many"), ("FLASHLLA_ISA", "abacus")),
)
def test_wrong_variables_are_problems(capsys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    code, found = report(capsys)
    assert code == 1
    assert any(value in problem for problem in found["problems"])
    assert cli.main(CPU) == 1
    assert value in capsys.readouterr().out


def test_missing_extension_is_a_problem(capsys, monkeypatch):
    monkeypatch.setitem(
        _backends.BACKENDS, "cpu", _backends.BACKENDS["cpu"]._replace(missing=lambda: "the extension is gone")
    )
    code, found = report(capsys)
    assert code == 1
    assert found["extension"] == {"present": False, "reason": "the extension is gone"}
    assert found["call"]["backend"] == "blockwise"
    assert cli.main(CPU) == 1
    assert "the extension is gone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    (
        (["--shape", "1,2,3"], "four positive whole numbers"),
        (["--shape", "1,2,x,4"], "four positive whole numbers"),
        (["--shape", "1,2,3,1000"], "limits are 1 and 256"),
        (["--dtype", "int8"], "choose one of float32"),
        (["--device", "abacus"], "'abacus' is unknown"),
    ),
)
def test_wrong_arguments_give_one_line(capsys, arguments, complaint):
    try:
        code = cli.main([*CPU, *arguments])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code != 0
    assert complaint in error
    assert error.count("\n") == 1
