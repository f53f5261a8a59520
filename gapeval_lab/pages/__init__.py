"""HTML pages that stand alone: one file, no network. Reads Outcomes, never a live model."""
