"""Fetching raw data: resumable, from the first mirror that answers, checked, unpacked without leaving its folder."""

from dataclasses import dataclass

__all__ = ["Download"]


@dataclass(frozen=True)
class Download:
    """One file to fetch.

    Attributes:
        urls: mirrors, tried in order.
        file: its name under the data root; an archive is unpacked beside itself.
        checksum: ``md5:...`` or ``sha256:...``, empty where no published one can be cited.
        cited: where the checksum is published (library, file, version); empty without a checksum.
    """

    urls: tuple[str, ...]
    file: str
    checksum: str = ""
    cited: str = ""
