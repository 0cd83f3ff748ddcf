"""Times of the family, of other libraries and of the published algorithm, forward and both ways."""

from __future__ import annotations

from functools import partial

from baselines.published import Configs, candidates, default_configs, published_backward, published_forward
from torch import Tensor

from flashlla import lla_attention_with_stats
from flashlla.functional import DEFAULT_RTOL
from gpu.calls import Contender, arguments, call_of, member, operands, published, rivals
from gpu.counts import (
    Iterations,
    emulated,
    executed_products,
    operations,
    summarise,
    tile_rows,
    useful_products,
)
from gpu.launches import observed

FORWARD, BOTH = "forward", "forward and backward"
RIDGES = (10.0, 1.0, 0.1)
LOOSE = 1e-3
HOST_UP_TO = 2048  # the time of launching a call does not depend on its length
EMULATED_UP_TO = 4096  # rows of the float64 emulation, whose memory is quadratic


def sizes(session) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Head dimensions, lengths that come first, and lengths that come if there is time."""
    if session.interpreted:
        return (16,), (32,), ()
    return ((64,), (1024, 2048), ()) if session.quick else ((64, 128), (2048, 4096), (1024, 8192, 16384))


def measure_first(session) -> None:
    """The lengths that the bars are about."""
    dims, first, _ = sizes(session)
    _measure(session, "speed", dims, first)


def measure_rest(session) -> None:
    """The other lengths, as far as they fit."""
    dims, _, rest = sizes(session)
    _measure(session, "more speed", dims, rest)


def _measure(session, section: str, dims: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    others, missing = rivals(session.quick)
    for name, why in missing.items():
        session.note(section, f"{name} is not there: {why}")
    for n in lengths:
        for dim in dims:
            x = operands(n, dim, session.batch, session.heads, session.device)
            for contender in [*others, *family(session), tuned(session, section, x, dim)]:
                for direction in (FORWARD, BOTH):
                    _measure_one(session, section, contender, x, direction)


def rows(session) -> list[dict]:
    """Rows of all lengths."""
    return session.rows("speed") + session.rows("more speed")


def family(session) -> list[Contender]:
    """What this library computes, lla at every ridge to its default tolerance and to a loose one."""
    default, loose = (RIDGES[1:], RIDGES[1:2]) if session.interpreted else (RIDGES, RIDGES)
    tolerances = ((None, default), (LOOSE, loose))
    lla = [member("lla", ridge, rtol) for rtol, ridges in tolerances for ridge in ridges]
    return [member("softmax"), member("parallax"), *lla]


def _measure_one(session, section: str, contender: Contender, x: dict[str, Tensor], direction: str) -> None:
    batch, n, heads, dim = x["q"].shape
    about = {
        "contender": contender.name,
        "kind": contender.kind,
        "ridge": contender.ridge,
        "rtol": contender.rtol,
    }
    with session.attempt(section, **about, d=dim, n=n, direction=direction) as row:
        if contender.ours:
            session.require_trusted(contender.kind, dim, contender.ridge)
        elif contender.kind == "published":
            session.require_trusted("published", dim)
        products = contender.products[direction == BOTH]
        session.require_time_for(operations(products, n, dim, batch * heads))
        timing = session.timer.measure(call_of(contender, x, direction == BOTH))
        row |= timing._asdict()
        if n <= HOST_UP_TO:
            row["host_ms"] = session.timer.host_ms(call_of(contender, x, direction == BOTH))
        flash = time_of(session, "sdpa flash", dim, n, direction)
        row["over_sdpa_flash"] = timing.ms / flash if flash else None
        if contender.ours:
            row |= arithmetic(session, contender, x, direction, timing.ms)


def time_of(session, name: str, dim: int, n: int, direction: str) -> float | None:
    """Milliseconds of a contender, None if it has not been timed."""
    for row in rows(session):
        if (row["contender"], row["d"], row["n"], row["direction"]) == (name, dim, n, direction):
            return row.get("ms")
    return None


# ---- arithmetic ------------------------------------------------------------------------------------------


def arithmetic(session, contender: Contender, x: dict[str, Tensor], direction: str, ms: float) -> dict:
    """Products a pair, executed and useful, what share of the matmul rate they are, and the iterations."""
    batch, n, heads, dim = x["q"].shape
    launches = observed(call_of(contender, x, direction == BOTH))
    found, forward, adjoint = {}, Iterations(0, 0, 0), Iterations(0, 0, 0)
    if contender.kind == "lla":
        tile, few = tile_rows(launches), dim + dim // 4
        stats = lla_attention_with_stats(
            *arguments(contender, x), ridge=contender.ridge, rtol=contender.rtol, backend="triton"
        )
        forward = summarise(stats.iterations, tile, few)
        found["iterations"] = forward._asdict()
        if direction == BOTH:
            witness, adjoint = adjoint_iterations(contender, x, tile, few)
            found["adjoint_iterations"] = adjoint._asdict()
            found["emulated_iterations"] = witness._asdict()
    for name, (first, second) in {
        "executed": executed_products(launches),
        "useful": useful_products(contender.kind),
    }.items():
        products = first.total(forward.tiles) + (second.total(adjoint.tiles) if direction == BOTH else 0)
        needed = operations(products, n, dim, batch * heads)
        found[f"products_{name}"] = products
        found[f"share_{name}"] = needed / (ms / 1e3) / session.rate
    return found


def adjoint_iterations(contender: Contender, x: dict[str, Tensor], tile: int, few: int) -> tuple:
    """Emulated iterations of both solves, of the first rows where all of them would not fit."""
    rows = {name: t[:1, :EMULATED_UP_TO, :1] for name, t in x.items()}
    rtol = DEFAULT_RTOL[x["q"].dtype] if contender.rtol is None else contender.rtol
    return emulated(rows, contender.ridge, rtol, tile, few)


# ---- the published algorithm -----------------------------------------------------------------------------


def tuned(session, section: str, x: dict[str, Tensor], dim: int) -> Contender:
    """The baseline in the configurations that are fastest on this device, searched once a head dimension."""
    if dim not in session.published:
        session.published[dim] = _search(session, section, x, dim)
        session.note(section, f"published, d={dim}: {session.published[dim]}")
    return published(1.0, session.published[dim])


def last_tuned(session, dim: int) -> Contender:
    """The baseline as it was searched in this run, or else as it comes: for what is not its time."""
    return published(1.0, session.published.get(dim, default_configs(dim)))


def _search(session, section: str, x: dict[str, Tensor], dim: int) -> Configs:
    best = default_configs(dim)
    if session.interpreted or not session.trusted("published", dim):
        return best
    q, k, v, do = (x[name] for name in ("q", "k", "v", "do"))
    _, saved = published_forward(q, k, v, 1.0)
    for kernel, choices in candidates(dim).items():
        times = {}
        for config in choices:
            configs = best._replace(**{kernel: config})
            if kernel == "forward":
                call = partial(published_forward, q, k, v, 1.0, configs=configs)
            else:
                call = partial(published_backward, do, q, k, v, saved, 1.0, configs=configs)
            try:
                times[config] = session.timer.measure(call).ms
            except Exception as error:  # too large for this device
                session.note(section, f"published, d={dim}, {kernel} {tuple(config)}: {error}"[:200])
                session.check_device()
        best = best._replace(**{kernel: min(times, key=times.get, default=choices[0])})
    return best
