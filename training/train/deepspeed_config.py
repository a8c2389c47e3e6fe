"""DeepSpeed's own configuration, from ours. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from training.settings import TrainingSettings


def deepspeed_config(settings: TrainingSettings) -> dict[str, Any]:
    """What DeepSpeed is told; the optimizer is ours, also where its work is done in the host's memory."""
    stage = settings.stage
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "reduce_bucket_size": 50_000_000}
    if settings.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": settings.batch_size // settings.processes // settings.gradient_accumulation,
        "train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        # Without ZeRO the loop clips, because DeepSpeed would not tell the norm.
        "gradient_clipping": settings.max_gradient_norm if stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # PyTorch's fused AdamW serves on both sides; DeepSpeed's own would be compiled on first use.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if settings.precision != "fp32":
        config[settings.precision] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}  # small gradients would be lost in a sum of many parts
    return config
