"""From files to batches: sources, templates, tokens, the order over tasks."""
