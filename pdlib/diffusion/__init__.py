"""The papers: noise schedules, mask codecs, each equation once, and the only loop over t."""
