"""How long a whole call may take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic


@dataclass(frozen=True)
class Deadline:
    """A time of the monotonic clock; infinity where there is no limit."""

    at: float = math.inf

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """So many seconds from now."""
        return cls() if seconds is None else cls(monotonic() + seconds)

    @property
    def limited(self) -> bool:
        """Whether there is one."""
        return self.at < math.inf

    @property
    def left(self) -> float:
        """Seconds until then; negative when it is over."""
        return self.at - monotonic()

    @property
    def passed(self) -> bool:
        """Whether nothing may be begun any more."""
        return self.left <= 0

    def earlier(self, seconds: float) -> Deadline:
        """One that leaves so many seconds for what comes after."""
        return Deadline(self.at - seconds)

    def share(self, part: float) -> Deadline:
        """When this part of what is left is over."""
        return Deadline(monotonic() + part * self.left) if self.limited else self
