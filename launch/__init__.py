"""What runs on a login node: it decides and starts, and never imports torch."""
