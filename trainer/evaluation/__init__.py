"""What was learnt and what was forgotten: scores, their statistics, the report."""
