"""Claims: who says what about which thing. Where two disagree, something was changed.

    index.add(Claim("evidence/README.md of version 2 of portraits", "sha256:…", LEDGER, "version"))
    index.add(Claim("evidence/README.md of version 2 of portraits", "sha256:…", STORE, "version"))

What claims say of one subject is compared; what a digest names is looked up among the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lineage.audit.report import Finding, Part
from lineage.entries import Registered

LEDGER, STORE = "the ledger", "the artifact store"


class Claim(NamedTuple):
    """``by`` says that ``subject`` has ``value``, mostly a digest."""

    subject: str
    value: str
    by: str
    part: Part
    kind: str = ""
    """What an answer about ``value`` calls it: weights, record, evidence, ...; empty: nobody asks about it."""
    how: str = ""
    """What the version or run below has to do with it."""
    version: Registered | None = None
    run: str = ""


class Index:
    """Claims by what they are about, and by what they say."""

    def __init__(self) -> None:
        self.subjects: dict[str, list[Claim]] = {}
        self.values: dict[str, list[Claim]] = {}

    def add(self, *claims: Claim) -> None:
        """Keep claims."""
        for claim in claims:
            self.subjects.setdefault(claim.subject, []).append(claim)
            if claim.kind:
                self.values.setdefault(claim.value, []).append(claim)

    def agree(self, subject: str) -> bool:
        """Whether two or more say something about a subject, and all the same."""
        claims = self.subjects.get(subject, [])
        return len({claim.by for claim in claims}) > 1 and len({claim.value for claim in claims}) == 1

    def findings(self) -> Iterator[Finding]:
        """What comparing all claims about each subject shows."""
        for subject, claims in self.subjects.items():
            said: dict[str, list[str]] = {}
            for claim in claims:
                said.setdefault(claim.value, []).append(claim.by)
            if len(said) > 1:
                reason = "; ".join(f"{_names(by)} {value or 'nothing'}" for value, by in said.items())
                yield Finding(part=claims[0].part, standing="does not hold", subject=subject, reason=reason)
            elif self.agree(subject):
                reason = f"{_names(by for by in said[claims[0].value])} the same"
                yield Finding(part=claims[0].part, standing="holds", subject=subject, reason=reason)


def _names(by: Iterable[str]) -> str:
    """``A and B say``, each one once."""
    found = list(dict.fromkeys(by))
    return f"{' and '.join(found)} {'say' if len(found) > 1 else 'says'}"
