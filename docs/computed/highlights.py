"""The two tables of the README: few rows of the committed results, as ratios."""

from __future__ import annotations

from _tables import markdown_table
from gpu_tables import DIRECTIONS, rows
from tables import LENGTH

CONTENDERS = {
    "sdpa cudnn": "PyTorch's attention by cuDNN",
    "softmax": "`softmax_attention`",
    "parallax": "`parallax_attention`",
    "lla, ridge 1": "`lla_attention`, ridge 1",
    "lla, ridge 0.1": "`lla_attention`, ridge 0.1",
    "published": "the published kernels of LLA, ridge 1",
}
SDPA = "Time over that of torch SDPA, causal, n=2048, 8 heads, d=64, float32, 1 thread"
DECODING = "Decoding, time over that of torch SDPA on the same cache"
RATE = "Arithmetic rate, as a share of sgemm at 2048 x 2048"
MEMORY = "Memory beyond the inputs, 8 heads, d=64, float32, 2 threads"
GENERATION = "Generation, tokens a second"
DEFINITION = "forward, n=1024, 1 head, default rtol, 1 thread"
FAMILIES = ("softmax", "parallax", "lla")
KINDS = ("softmax", "parallax", "lla, ridge 1", "lla, ridge 0.1")


def highlights(of_gpu: dict, of_cpu: dict) -> dict[str, str]:
    """Tables by their markers in README.md, from a GPU run and from ``make bench``."""
    return {"readme-gpu": gpu(of_gpu), "readme-cpu": cpu(of_cpu)}


def gpu(content: dict) -> str:
    """Times over that of PyTorch's flash attention, and whole steps over those with PyTorch's attention."""
    cells = {
        (row["contender"], row["d"], row["direction"]): row["over_sdpa_flash"]
        for row in rows(content, "speed")
        if row["n"] == LENGTH
    }
    dims = sorted({dim for _, dim, _ in cells})
    lines = [
        [name, *(" / ".join(f"{cells[key, dim, way]:.1f}x" for way in DIRECTIONS) for dim in dims)]
        for key, name in CONTENDERS.items()
    ]
    table = markdown_table([f"n={LENGTH}, {' / '.join(DIRECTIONS)}", *(f"d={dim}" for dim in dims)], lines)
    return f"{table}\n\n{steps(content)}"


def steps(content: dict) -> str:
    """What becomes of it in a training step, and in a step of decoding."""
    training = {row["mixer"]: row for row in rows(content, "training")}
    times = [f"{training[name]['ms'] / training['sdpa']['ms']:.1f}x for {name}" for name in FAMILIES]
    decoding = []
    for name in FAMILIES:
        found = [
            row["over_sdpa"]
            for row in rows(content, "decode")
            if row.get("contender") == f"{name}, triton" and row.get("length", 0) >= LENGTH
        ]
        decoding.append(f"{min(found):.1f}x to {max(found):.1f}x for {name}")
    parameters = f"{training['sdpa']['parameters'] / 1e6:.0f} million parameters"
    return (
        f"The same for a training step of a language model ({parameters}, length {LENGTH}), over that with\n"
        f"PyTorch's attention: {', '.join(times)}; for a step of decoding over {LENGTH} keys or\n"
        f"more: {', '.join(decoding)}."
    )


def cpu(content: dict) -> str:
    """Some rows of ``make bench``."""
    found = {(row["topic"], row["name"]): row["measured"] for row in content["rows"]}

    def over(topic: str, *names: str) -> str:
        return " / ".join(f"{found[topic, name]:.2g}x" for name in names)

    def threads(name: str) -> tuple[str, str]:
        return f"{name}, 1 thread", f"{name}, 2 threads"

    blockwise = (f"{way}, n=2048, 4 heads, rtol 1e-3, cg, 1 thread" for way in ("forward", "backward"))
    einsum = (f"{DEFINITION}, {way}" for way in ("at once", "in chunks of 64 queries"))
    memory = found[MEMORY, "forward, n=16384"]
    lines = [
        [
            f"{way}: arithmetic rate over torch's matrix product, 1 / 2 threads",
            over(RATE, *threads(way)),
        ]
        for way in ("forward", "backward")
    ]
    lines += [
        [
            "speed over our own tiled PyTorch, forward / backward",
            over("Speed against the blockwise backend", *blockwise),
        ],
        [
            "speed over the definition in einsum (default rtol): at once / in chunks",
            over("Speed against the definition, written with einsum", *einsum),
        ],
        ["memory of a forward pass beyond its inputs, n=16384", f"{memory:.0f} MiB"],
    ]
    for name in ("8/8 heads, d=64, float32", "8/8 heads, d=64, bfloat16", "32/8 heads, d=64, float32"):
        lines.append(
            [
                f"decoding, 16384 keys, {name}: time over SDPA, 1 / 2 threads",
                over(DECODING, *threads(name)),
            ]
        )
    for kind in KINDS:
        ways = (f"{kind}, {way}" for way in DIRECTIONS)
        lines.append([f"{kind}, n=2048: time over SDPA, forward / forward and backward", over(SDPA, *ways)])
    for way in ("no cache", "static", "static, compiled"):
        pair = [f"{found[GENERATION, f'{mixer}, {way}']:.0f}" for mixer in ("lla", "softmax")]
        lines.append([f"generation, {way}: tokens a second, lla / softmax", " / ".join(pair)])
    return markdown_table(["what", "measured"], lines)
