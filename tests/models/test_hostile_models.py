"""Files of models from strangers: refused with one error, and before they take memory."""

import functools
import json
import math
import os
import re

import pytest
from processes import MEMORY, outcomes
from safetensors.torch import save

from flashlla import models

HUGE, LONG = 10**12, 10**30
CONFIG = {"vocab_size": 16, "dim": 16, "depth": 2, "heads": 2}
NO_MODEL, OTHER, CORRUPT = "has a configuration that no model has", "does not fit its own", "is corrupt"


@functools.cache
def weights():
    return models.LanguageModel(models.LanguageModelConfig(**CONFIG)).state_dict()


def whole(config=None, kind="LanguageModel"):
    """A good file; or one with another configuration, given as text, or of another kind."""
    return save(weights(), {"format": f"flashlla.{kind}", "config": config or json.dumps(CONFIG)})


def changed(**changes):
    return whole(json.dumps({**CONFIG, **changes}))


def with_options(mixer, **options):
    return changed(mixer=mixer, mixer_options=options)


def with_entry(**changes):
    """Another entry for the first tensor."""
    data = whole()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    entry = header[next(name for name in header if name != "__metadata__")]
    entry |= {key: new(entry[key]) if callable(new) else new for key, new in changes.items()}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def nested(depth):
    return "[" * depth + "]" * depth


DEEP_OPTIONS = json.dumps({**CONFIG, "mixer_options": {"ridge": "?"}}).replace('"?"', nested(900))

# name: bytes of the file, or what puts something else in its place; and what is said
CASES = {
    "whole": (whole(), "accepted"),
    "empty": (b"", CORRUPT),
    "cut": (whole()[:1000], CORRUPT),
    "cut in the last tensor": (whole()[:-1], CORRUPT),
    "pickle": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", CORRUPT),
    "header longer than the file": ((2**60).to_bytes(8, "little") + b"{}", CORRUPT),
    "header of deep JSON": (len(nested(10**5)).to_bytes(8, "little") + nested(10**5).encode(), CORRUPT),
    "tensor behind the end": (with_entry(shape=[HUGE], data_offsets=[0, 4 * HUGE]), CORRUPT),
    "tensor larger than its bytes": (with_entry(shape=[HUGE]), CORRUPT),
    "tensor of 2**80 numbers": (with_entry(shape=[2**40, 2**40]), CORRUPT),
    "tensor of negative size": (with_entry(shape=[-16, -16]), CORRUPT),
    "tensor with a fraction of rows": (with_entry(shape=[16.0, 16]), CORRUPT),
    "tensor over another": (with_entry(data_offsets=[4, 1028]), CORRUPT),
    "tensor of another shape": (with_entry(shape=lambda shape: [1, *shape]), OTHER),
    "tensor of an unknown dtype": (with_entry(dtype="F33"), CORRUPT),
    "tensor of whole numbers": (with_entry(dtype="I32"), OTHER),
    "other kind": (whole(kind="Bomb"), "its format is"),
    "configuration of another kind": (whole(kind="PolicyModel"), OTHER),
    "configuration cut": (whole("{"), NO_MODEL),
    "configuration no object": (whole("[1]"), NO_MODEL),
    "configuration of deep JSON": (whole(nested(10**5)), NO_MODEL),
    "configuration without an end of digits": (whole('{"dim": ' + "9" * 10**5 + "}"), NO_MODEL),
    "configuration with nothing": (whole("{}"), "missing keys"),
    "configuration with more": (changed(code="import os"), "unknown keys"),
    "depth": (changed(depth=10**9), "depth=1000000000"),
    "depth by a list of mixers": (changed(mixer=["lla"] * 10**5, depth=10**5), "depth=100000"),
    "dim": (changed(dim=HUGE), NO_MODEL),
    "dim beyond 64 bits": (changed(dim=LONG), NO_MODEL),
    "dim no number": (changed(dim=math.nan), NO_MODEL),
    "dim infinite": (changed(dim=math.inf), NO_MODEL),
    "dim negative": (changed(dim=-16), NO_MODEL),
    "dim a fraction": (changed(dim=16.5), NO_MODEL),
    "dim a truth": (changed(dim=True), NO_MODEL),
    "dim a word": (changed(dim="16"), NO_MODEL),
    "dim nothing": (changed(dim=None), NO_MODEL),
    "heads": (changed(heads=HUGE), NO_MODEL),
    "kv_heads a list": (changed(kv_heads=[2]), NO_MODEL),
    "vocab_size": (changed(vocab_size=HUGE), OTHER),
    "vocab_size beyond 64 bits": (changed(vocab_size=LONG), NO_MODEL),
    "mlp_hidden": (changed(mlp_hidden=HUGE), OTHER),
    "mlp_hidden a word": (changed(mlp_hidden=""), NO_MODEL),
    "tie_embeddings a number": (changed(tie_embeddings=1), NO_MODEL),
    "mixer unknown": (changed(mixer="os.system"), NO_MODEL),
    "mixer a number": (changed(mixer=3), NO_MODEL),
    "mixer of mixers": (changed(mixer=[["lla"]]), NO_MODEL),
    "options a list": (changed(mixer_options=[1]), NO_MODEL),
    "options of deep JSON": (whole(DEEP_OPTIONS), NO_MODEL),
    "options unknown": (with_options("lla", code=1), NO_MODEL),
    "options with a device": (with_options("lla", device="cuda"), NO_MODEL),
    "ridge no number": (with_options("lla", ridge=math.nan), NO_MODEL),
    "ridge infinite": (with_options("lla", ridge=math.inf), NO_MODEL),
    "head_dim": (with_options("lla", head_dim=HUGE), NO_MODEL),
    "window": (with_options("lla", window_size=-1), NO_MODEL),
    "orders of Hyena": (with_options("hyena", order=HUGE), OTHER),
    "taps": (with_options("hyena", short_conv=HUGE), OTHER),
    "taps beyond 64 bits": (with_options("hyena", short_conv=LONG), NO_MODEL),
    "filter": (with_options("hyena", filter_length=LONG), OTHER),
    "chunks": (with_options("gla", chunk_size=2**70), OTHER),
    "rank": (with_options("gla", gate_rank=HUGE), OTHER),
    "states": (with_options("mamba2", state_dim=HUGE), OTHER),
    "groups": (with_options("mamba2", groups=HUGE), NO_MODEL),
    "folder": (os.mkdir, "does not exist"),
    "pipe": (os.mkfifo, "does not exist"),
    "link to nothing": (lambda path: os.symlink("nothing", path), "does not exist"),
    "link to zeros without an end": (lambda path: os.symlink("/dev/zero", path), "does not exist"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What ``load_model`` says of each."""
    folders = {name: tmp_path_factory.mktemp("model") for name in CASES}
    for name, folder in folders.items():
        content, path = CASES[name][0], folder / "model.safetensors"
        path.write_bytes(content) if isinstance(content, bytes) else content(path)
    return dict(zip(CASES, outcomes(models.load_model, list(folders.values())), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_file_from_a_stranger_is_refused(name, said):
    expected = CASES[name][1]
    kind = "" if expected == "accepted" else r"(ValueError|FileNotFoundError): .*model\.safetensors .*"
    assert re.match(f"{kind}{re.escape(expected)}", said[name]), said[name]


def test_too_much_memory_would_be_seen():
    assert outcomes(bytes, [MEMORY // 2, 2 * MEMORY]) == ["accepted", "MemoryError: "]
