"""``check_policy``: proves a policy of one's own as those of the zoo are proven."""

from swaa.testing.findings import CheckReport, Failure, Outcome
from swaa.testing.kit import check_policy

__all__ = ["CheckReport", "Failure", "Outcome", "check_policy"]
