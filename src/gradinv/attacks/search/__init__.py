"""The parts of a search: spaces, the cost and its terms, optimisers and schedules."""
