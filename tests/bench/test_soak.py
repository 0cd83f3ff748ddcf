"""The soak without its hour: it decodes, saves nothing, and finds what does not come back or changes."""

from __future__ import annotations

from unittest import mock

from other_python import ROOT, elsewhere, run_python


def test_a_short_soak_decodes_and_saves_nothing():
    page = (ROOT / "docs" / "reliability.md").read_text()
    done = run_python("bench/soak.py", "--minutes", "0.05", interpreted=False)
    assert done.returncode == 0, done.stderr
    rows = dict(line.strip("| ").split(" | ")[:2] for line in done.stdout.splitlines() if line[:2] == "| ")
    found = {name.strip(): value.strip() for name, value in rows.items()}
    requests, tokens = map(int, found["requests, tokens decoded"].split(", "))
    assert 0 < requests < tokens
    assert (ROOT / "docs" / "reliability.md").read_text() == page


def complaints() -> list[str]:
    """What a soak says where pages are lost, and where a cache of one kind goes on in another way."""
    import soak

    from flashlla.nn import PageTable

    original, calls = soak.generate, []

    def generate(model, prompt, new, *, cache):
        calls.append(cache)
        return original(model, prompt, new, cache=cache) + (cache == "sliding" and calls.count(cache) > 1)

    faults = (
        mock.patch.object(PageTable, "_cut", lambda table, sequence, length: None),
        mock.patch.object(soak, "generate", generate),
    )
    said = []
    for fault in faults:
        with fault:
            try:
                list(soak.soak(0.02, seed=0))
            except AssertionError as error:
                said.append(str(error))
    return said


def test_faults_are_found():
    lost, changed = elsewhere(complaints, interpreted=False)
    assert "did not come back" in lost and "cache='sliding' has continued in another way" in changed
