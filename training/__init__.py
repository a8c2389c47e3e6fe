"""Feature-supervised fine-tuning of a text-to-image bundle whose backbone is a Multimodal Diffusion Transformer.

The method follows the abstract of arXiv 2605.20640: while the MM-DiT is fine-tuned, its image branch is also
supervised with multi-granularity text features from a SigLIP-style dual encoder, aligned with the picture. Only that
abstract was available: this is an independent implementation, with design choices of its own, and none of that
paper's figures are claimed.

A reader's way through this room:

    settings.py      what can be chosen
    families/        Stable Diffusion 3, FLUX and Qwen-Image behind one small adapter
    teacher.py       the frozen dual encoder; phrases.py splits captions for it; targets.py aligns the two
    structure.py     the frozen vision model, and what patches look like to it
    frozen.py        these frozen models at work, while encoding and while training; pictures.py reads what they see
    encoding.py      everything that is computed once, before training; shelf.py keeps it
    features.py      reads it; features_info.py says what it was made from
    draws.py         data order, noise, timesteps, dropout: keyed by (seed, epoch, sample); buckets.py cuts batches
    supervision.py   tap, projector, losses, schedule
    model.py         backbone and projector as one module, and the loss of one batch; lora.py trains an adapter instead
    loop.py          the training loop under accelerate and DeepSpeed (deepspeed_config.py)
    shards.py        its master weights, optimizer state and moving average, whatever ZeRO shards
    saving.py        what is due between two steps: checkpoints.py, samples.py, stopping.py
    meter.py         its losses, and the watch for a run that goes wrong; probe.py compares two gradients
    fine_tune.py     what each process runs; launch.py starts them (job.py: what they tell each other; processes.py)
    node.py          what each machine of a cluster runs; topology.py: which one it is; transfer.py brings its folders
    export.py        the candidate: a plain bundle of its family
    curves.py        loss curves: JSON lines and a picture; watching.py shows them while they grow
    leakage.py       whether a scorer judges by a network that taught

The package itself imports nothing heavy.
"""
