"""The option `--share i/n`, by which several processes divide work."""


def parse_share(share: str) -> tuple[int, int]:
    """(i, n) of `i/n`; raises ValueError for another form and unless 0 <= i < n."""
    index, _, parts = share.partition("/")
    if not (index.isdigit() and parts.isdigit() and int(index) < int(parts)):
        raise ValueError(f"--share must be i/n with 0 <= i < n, for example 0/2, got {share!r}")
    return int(index), int(parts)


def device_of(index: int) -> str:
    """Where the part of this number computes if nothing is said: on a GPU, the next one for each part, or the CPU."""
    import torch

    return f"cuda:{index % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
