"""A judgement that is the sum of what its regions say, and names those it rests on."""

from dataclasses import dataclass

MOST = 0.8
"Share of the evidence for a decision that the regions it rests on hold together."


@dataclass(frozen=True)
class Evidence:
    """What one region says of an item."""

    region: str
    "Name."
    tokens: int
    "Tokens that it was read from."
    log_odds: float
    "What its own probe says, both classes weighing the same; positive for spoof."
    contribution: float
    "Its part of the score: the log-odds times the say of the region."


@dataclass(frozen=True)
class Decision:
    """A score that is the sum of its regions' contributions."""

    score: float | None
    "Log-odds of spoof; None where no region was there to judge by."
    evidence: tuple[Evidence, ...]
    "Regions that were there, the largest contribution first, whatever its sign."
    absent: tuple[str, ...]
    "Regions that abstained."

    @property
    def is_spoof(self) -> bool | None:
        """Whether the score is above 0; None where there is none."""
        return None if self.score is None else self.score > 0

    @property
    def rests_on(self) -> tuple[str, ...]:
        """The fewest regions with `MOST` of the evidence for the decision, largest first."""
        sign = 1 if self.is_spoof else -1
        agreeing = [e for e in self.evidence if sign * e.contribution > 0]
        wanted = MOST * sum(abs(e.contribution) for e in agreeing)
        named: list[str] = []
        held = 0.0
        for part in agreeing:
            if held >= wanted:
                break
            named.append(part.region)
            held += abs(part.contribution)
        return tuple(named)

    def __str__(self) -> str:
        missing = f" Absent: {', '.join(self.absent)}." if self.absent else ""
        if self.score is None:
            return f"No decision: no region was there to judge by.{missing}"
        parts = ", ".join(f"{e.region} {e.contribution:+.2f}" for e in self.evidence)
        verdict = "spoof" if self.is_spoof else "bona fide"
        ground = f"; rests on {', '.join(self.rests_on)}" if self.rests_on else ""
        return f"{verdict}, log-odds {self.score:+.2f}{ground}. Contributions: {parts}.{missing}"
