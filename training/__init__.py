"""Feature-supervised fine-tuning of a text-to-image bundle whose backbone is a Multimodal Diffusion Transformer.

The method follows the abstract of arXiv 2605.20640: while the MM-DiT is fine-tuned, its image branch is also
supervised with multi-granularity text features from a SigLIP-style dual encoder, aligned with the picture. Only that
abstract was available: this is an independent implementation, with design choices of its own, and none of that
paper's figures are claimed.

A reader's way through this room:

    settings.py   what can be chosen
    families/     Stable Diffusion 3, FLUX and Qwen-Image behind one small adapter, and how a picture is drawn
    teach/        teacher.py, the frozen dual encoder; phrases.py splits captions for it; targets.py aligns the two;
                  structure.py, the frozen vision model; supervision.py: tap, projector, losses, schedule; probe.py
                  compares two gradients; leakage.py: whether a scorer judges by a network that taught
    encode/       encoders.py, the frozen models at work; encoding.py, everything that is computed once; store.py keeps
                  it by row; info.py says what it was made from; features.py reads it while training
    train/        process.py, what each process runs; loop.py under accelerate and DeepSpeed; model.py, the model and
                  the loss of one batch; draws.py, what chance decides; masters.py, fp32 weights and
                  their average; checkpoints.py, what is due between two steps; meter.py watches the losses;
                  samples.py draws; lora.py; export.py writes the candidate; curves.py
    launch/       launch.py starts the processes on one machine, node.py on each of a cluster; transfer.py brings
                  folders there; watching.py shows the curves while they grow
    portrait.py   the registered model, as MLflow loads it

Each room imports from those above it only (`families` from `settings` alone); import-linter holds them to it. The
package itself imports nothing heavy.
"""
