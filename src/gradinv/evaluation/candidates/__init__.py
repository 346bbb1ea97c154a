"""Candidate search: which of some known images does an update come from?

The server holds a list for each place of the batch, recomputes what a client would have sent, and
compares. No optimisation of pixels and no prior is needed, so a leak that a reconstruction misses
is found here; whoever reads an audit learns whether the information is there.
"""

from gradinv.evaluation.candidates.fit import Fit
from gradinv.evaluation.candidates.lists import CandidateLists, candidate_lists
from gradinv.evaluation.candidates.scores import (
    CandidateResult,
    affordable,
    affordable_note,
    candidate_result,
    search_bytes,
)
from gradinv.evaluation.candidates.search import (
    CandidateScore,
    CandidateSearch,
    search_candidates,
)
from gradinv.evaluation.candidates.trials import Trials, trials_for

__all__ = [
    "CandidateLists",
    "CandidateResult",
    "CandidateScore",
    "CandidateSearch",
    "Fit",
    "Trials",
    "affordable",
    "affordable_note",
    "candidate_lists",
    "candidate_result",
    "search_bytes",
    "search_candidates",
    "trials_for",
]
