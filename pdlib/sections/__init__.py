"""The sections of a profile, each a typed, frozen object: networks, trainings, and the design of the study."""
