"""Modules that are treated apart, as transformers names them: for the plan that counts and the ranks that load."""

TOKEN_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings")
"""Modules of token embeddings, whose weights an output head may share."""

LABEL_HEADS = ("score", "classifier", "pre_classifier")
"""Modules of a classification head: trained in full beside adapters, whether they are fresh or not."""

HEADS = ("lm_head", *LABEL_HEADS, "pooler")
"""Modules that stay in fp32 over a quantised base; a pre-trained model may lack those after the first."""
