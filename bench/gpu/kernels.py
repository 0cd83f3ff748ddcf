"""Which kernel the time of a forward and backward pass goes to."""

from __future__ import annotations

from gpu.calls import call_of, member, operands
from gpu.launches import split
from gpu.speed import last_tuned, sizes


def measure(session) -> None:
    """A row for every contender: milliseconds of each kernel, the rest being PyTorch's own and gaps."""
    dims, lengths, _ = sizes(session)
    n = lengths[-1]
    for dim in dims:
        x = operands(n, dim, session.batch, session.heads, session.device)
        ours = [member("softmax"), member("parallax"), member("lla", 1.0), member("lla", 0.1)]
        for contender in [*ours, last_tuned(session, dim)]:
            with session.attempt("kernels", contender=contender.name, d=dim, n=n) as row:
                session.require_trusted(contender.kind, dim, contender.ridge if contender.ours else None)
                call = call_of(contender, x, backward=True)
                if not session.interpreted:
                    call()
                row["ms"] = split(call, session.device)
