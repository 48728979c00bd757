"""The values that travel between stages: RunConfig, Plan, and the run folder's layout. No torch."""
