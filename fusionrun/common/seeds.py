"""Every random decision of a study is a pure function of what it is for."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for the decision named by `parts`, e.g. (42, "expert-resnet-0", epoch, step).

    Deriving seeds instead of storing generator states is what makes a resumed run equal an
    uninterrupted one, whichever rank continues it.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
