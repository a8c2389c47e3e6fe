"""Feature-supervised fine-tuning of a Stable Diffusion 3 bundle.

The method follows the abstract of arXiv 2605.20640: while a Multimodal Diffusion Transformer is fine-tuned, its
image branch is also supervised with multi-granularity text features from a SigLIP-style dual encoder, aligned
with the picture. Only that abstract was available: this is an independent implementation, with design choices
of its own, and none of that paper's figures are claimed.

A reader's way through this room:

    settings.py      what can be chosen
    bundle.py        the SD3 bundle as a folder
    encoders.py      its frozen parts: latents, and the conditioning its pipeline would compute
    teacher.py       the frozen dual encoder; phrases.py splits captions for it; targets.py aligns the two
    encoding.py      everything that is computed once, before training
    features.py      reads it; features_info.py says what it was made from
    draws.py         data order, noise, timesteps, dropout: keyed by (seed, epoch, sample)
    supervision.py   tap, projector, losses, schedule
    model.py         backbone and projector as one module, and the loss of one batch
    loop.py          the training loop under accelerate and DeepSpeed (deepspeed_config.py)
    shards.py        its master weights, optimizer state and moving average, whatever ZeRO shards
    saving.py        what is due between two steps: checkpoints.py, samples.py, stopping.py
    meter.py         its losses, and the watch for a run that goes wrong; probe.py compares two gradients
    fine_tune.py     what each process runs; launch.py starts them (job.py: what they tell each other; processes.py)
    export.py        the candidate: a plain SD3 bundle
    curves.py        loss curves: JSON lines and a picture; watching.py shows them while they grow

The package itself imports nothing heavy.
"""
