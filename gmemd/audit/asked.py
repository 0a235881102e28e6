"""What an audit that somebody asked for is to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.audit.model import CONFIDENCE
from gmemd.audit.sampling import pages_for

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, slots=True)
class Asked:
    """Every page, or ``sample_pages`` of each guest node; None leaves it to who looks.

    With a ``margin`` they are of each region, and as many as it takes to tell its shares to within
    that, at the ``confidence`` that bounds are to have. ``where`` takes every page: it tells where
    in the regions what is. ``jobs`` threads look at every page.
    """

    where: bool = False
    full: bool = False
    sample_pages: int | None = None
    margin: float | None = None
    confidence: float = CONFIDENCE
    jobs: int = 1

    @classmethod
    def within(cls, margin: float, confidence: float, least: int) -> Self:
        """Ask for shares to within a margin, and for ``least`` pages or more."""
        pages = max(least, pages_for(margin, confidence))
        return cls(sample_pages=pages, margin=margin, confidence=confidence)

    @property
    def every_page(self) -> bool:
        """Whether all pages were asked for."""
        return self.where or self.full

    @property
    def sampled(self) -> bool:
        """Whether a sample was asked for."""
        return not self.every_page and self.sample_pages is not None
