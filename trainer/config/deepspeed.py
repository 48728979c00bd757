"""The DeepSpeed configuration that a plan stands for. Pure, and golden-tested; no deepspeed import."""

from typing import Any

from trainer.config.plan import Plan


def deepspeed_config(plan: Plan) -> dict[str, Any]:
    """Return the dictionary for `deepspeed.initialize`.

    The optimizer is a torch one that the engine makes, so that every layout
    updates by the same formula; the learning rate is set by the loop.
    """
    training = plan.config.training
    main_memory = {"device": "cpu", "pin_memory": plan.device == "cuda"}
    offloaded = {
        "none": {},
        "optimizer": {"offload_optimizer": main_memory},
        "optimizer_and_parameters": {"offload_optimizer": main_memory, "offload_param": main_memory},
    }
    return {
        "train_batch_size": training.examples_per_step,
        "train_micro_batch_size_per_gpu": plan.examples_per_microbatch,
        "gradient_accumulation_steps": plan.microbatches_per_step,
        "gradient_clipping": training.max_gradient_norm,
        "bf16": {"enabled": training.precision == "bf16"},
        "zero_optimization": {
            "stage": plan.zero_stage,
            "overlap_comm": plan.device == "cuda",
            "contiguous_gradients": True,
            **offloaded[plan.config.layout.offload],
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
