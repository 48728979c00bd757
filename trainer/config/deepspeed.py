"""The DeepSpeed configuration that a plan stands for. Pure, and golden-tested; no deepspeed import."""

from typing import Any

from trainer.config.plan import Plan

BUCKET_ELEMENTS = 50_000_000
"""At most so many gradients reduced, or weights gathered, in one communication; the memory estimate counts them."""

MAX_LIVE_PARAMETERS = 500_000_000
"""Weights that ZeRO-3 keeps whole at one time on a rank."""


def deepspeed_config(plan: Plan) -> dict[str, Any]:
    """Return the dictionary for `deepspeed.initialize`.

    The optimizer is a torch one that the engine makes, so that every layout
    updates by the same formula; the engine sets learning rate and loss scale.
    """
    training = plan.config.training
    accumulation = plan.microbatches_per_step or 1
    bucket = min(BUCKET_ELEMENTS, plan.memory.num_trainable_parameters)  # DeepSpeed allocates it whole
    main_memory = {"device": "cpu", "pin_memory": plan.device == "cuda"}
    offloaded = {
        "none": {},
        "optimizer": {"offload_optimizer": main_memory},
        "optimizer_and_parameters": {"offload_optimizer": main_memory, "offload_param": main_memory},
    }
    return {
        # Only the product is checked: what is accumulated is told to the engine at every micro-batch.
        "train_batch_size": plan.examples_per_microbatch * accumulation * plan.world_size,
        "train_micro_batch_size_per_gpu": plan.examples_per_microbatch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": training.max_gradient_norm,
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {"enabled": training.precision == "fp16", "loss_scale": 1.0},  # not 0, its dynamic one: see scaling.py
        "zero_optimization": {
            "stage": plan.zero_stage,
            "overlap_comm": plan.device == "cuda",
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            "stage3_max_live_parameters": MAX_LIVE_PARAMETERS,
            "stage3_max_reuse_distance": MAX_LIVE_PARAMETERS,
            **offloaded[plan.config.layout.offload],
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
