"""The synthetic drive: seeded, procedural driving scenes with dense labels and anomaly masks."""
