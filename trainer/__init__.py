"""What every rank executes: data, engines, the loop, checkpoints, evaluation."""
