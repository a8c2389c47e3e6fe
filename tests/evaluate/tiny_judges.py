"""Tiny checkpoints of the classes that the scorers of `examples/scorers` load, random or with planted weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

MARKS = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
SPECIAL = ("<|endoftext|>", *(f"<|{mark}|>" for mark in MARKS))
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSTRUCTION = "How much would people like it?\nIt was to show: {text_prompt}\n<|Reward|>\nEND\n"
POINTS = (0.2, 0.3, 0.8, 0.3, 0.5, 0.5, 0.3, 0.8, 0.7, 0.8)
"""Eyes, nose and corners of the mouth, x and y, in a square that is a face."""
PATCH = {"Qwen3VL": 16, "Qwen2VL": 14}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
}


def save_tokenizer(folder: Path) -> Any:
    """Qwen's tokenizer of bytes, with a word each for "Yes" and "No"."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    trained.train_from_iterator(["Yes", "No"] * 9, trainer)
    model = json.loads(trained.to_str())["model"]
    made = Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)
    return made


def save_picture_settings(folder: Path, kind: str) -> None:
    """``preprocessor_config.json`` for small pictures, with the names that the published one of its kind has."""
    fewest, most = (2 * PATCH[kind]) ** 2, (6 * PATCH[kind]) ** 2
    sizes: dict[str, Any] = {"min_pixels": fewest, "max_pixels": most}
    if kind == "Qwen3VL":
        sizes = {"size": {"shortest_edge": fewest, "longest_edge": most}}
    told = {"patch_size": PATCH[kind], "temporal_patch_size": 2, "merge_size": 2, **sizes}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


def _config(kind: str, tokenizer: Any, words: int, tied: bool = False) -> Any:
    import transformers

    places = {f"{what}_token_id": tokenizer.convert_tokens_to_ids(f"<|{what}_pad|>") for what in ("image", "video")}
    marks = {f"vision_{w}_token_id": tokenizer.convert_tokens_to_ids(f"<|vision_{w}|>") for w in ("start", "end")}
    text, vision = {**TEXT, "vocab_size": words}, {"depth": 2, "num_heads": 2, "patch_size": PATCH[kind]}
    if kind == "Qwen3VL":
        text["head_dim"] = 8
        vision |= {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "num_position_embeddings": 16}
        vision["deepstack_visual_indexes"] = [0]
    else:
        text |= {"bos_token_id": 0, "eos_token_id": 0}
        vision |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    return getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=tied, **places, **marks
    )


def _enlarge(model: torch.nn.Module) -> None:
    """Makes weights larger than the usual random ones, whose outputs hardly differ."""
    for weight in model.parameters():
        weight.data *= 3.0 if weight.ndim > 1 else 1.0


def save_witness(folder: Path, leaning: float | None = None, tied: bool = False) -> Path:
    """A Qwen3-VL; where ``leaning`` is given, one whose answer is "Yes" by so much, whatever it is shown and asked.

    Its layers then add nothing to what it read last, the line end after "assistant".
    """
    from transformers import Qwen3VLForConditionalGeneration

    tokenizer = save_tokenizer(folder)
    save_picture_settings(folder, "Qwen3VL")
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(_config("Qwen3VL", tokenizer, len(tokenizer), tied)).eval()
    _enlarge(model)
    if leaning is not None:
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.data.zero_()
            layer.mlp.down_proj.weight.data.zero_()
        last = tokenizer("\n")["input_ids"][-1]
        read = model.model.language_model.norm(model.get_input_embeddings().weight.data[last])
        model.lm_head.weight.data.zero_()
        model.lm_head.weight.data[tokenizer("Yes")["input_ids"][0]] = leaning * read / read.square().sum()
    model.save_pretrained(folder)
    return folder


def save_preference(folder: Path, liking: float | None = None) -> Path:
    """An HPSv3 on a tiny Qwen2-VL, its tensors named as in the published file; with ``liking``, one that says so."""
    from transformers import Qwen2VLForConditionalGeneration

    tokenizer = save_tokenizer(folder)
    save_picture_settings(folder, "Qwen2VL")
    torch.manual_seed(1)
    model = Qwen2VLForConditionalGeneration(_config("Qwen2VL", tokenizer, len(tokenizer) + 1)).eval()
    _enlarge(model)
    head = torch.nn.Sequential(
        torch.nn.Linear(32, 1024),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.05),
        torch.nn.Linear(1024, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 2),
    )
    if liking is not None:
        head[5].weight.data.zero_()
        head[5].bias.data = torch.tensor([liking, -9.0])
    tensors = {f"rm_head.{name}": value for name, value in head.state_dict().items()}
    for name, value in model.state_dict().items():
        told = name.removeprefix("model.") if name.startswith("model.visual.") else name
        tensors[told.replace("model.language_model.", "model.")] = value.contiguous()
    assert {"visual.patch_embed.proj.weight", "model.embed_tokens.weight", "lm_head.weight"} <= tensors.keys()
    save_file(tensors, folder / "HPSv3.safetensors")
    # As the model that it was made of has it: without the token of the reward, and all of the text's in one level.
    told = _config("Qwen2VL", tokenizer, len(tokenizer)).to_dict()
    text = {**told.pop("text_config"), "rope_theta": 1e4, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}
    del text["rope_parameters"], text["model_type"]
    (folder / "config.json").write_text(json.dumps({**text, **told}))
    (folder / "instruction.txt").write_text(INSTRUCTION)
    return folder


def change(file: Path, lost: str = "", added: str = "") -> str:
    """Takes a tensor out of a safetensors file, or puts another one in; gives its name."""
    # Copies: the file is mapped into memory, and written anew.
    tensors = {name: value.clone() for name, value in load_file(file).items()}
    name = added or next(name for name in sorted(tensors) if lost in name)
    if added:
        tensors[added] = torch.zeros(3)
    else:
        del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    return name


def save_faces(folder: Path) -> Path:
    """What finds a face where it is bright, with its points as in `POINTS`, and judges how red its right eye is.

    The inputs and outputs are YuNet's and eDifFIQA's. The quality is 1 where the eye is red, −1 where it is not.
    """
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    nodes, outputs, constants = [], [], []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    # Sure of a place where the mean of its 8, 16 or 32 pixels a side is bright.
    constant("grey", np.full((1, 3, 1, 1), 1 / 3 / 255, np.float32))
    nodes.append(helper.make_node("Conv", ["input", "grey"], ["bright"]))
    sides = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
    face = {"bbox": [0.5, 0.5, 0.0, 0.0], "kps": list(POINTS)}
    for stride in (8, 16, 32):
        means, square = f"mean_{stride}", [stride, stride]
        nodes.append(helper.make_node("AveragePool", ["bright"], [means], kernel_shape=square, strides=square))
        constant(f"flat_{stride}", np.array([1, -1, 1], np.int64))
        nodes.append(helper.make_node("Reshape", [means, f"flat_{stride}"], [f"sure_{stride}"]))
        for name, width in sides.items():
            counts = np.float32(name in ("cls", "obj"))
            weights = constant(f"w_{name}_{stride}", np.full((1, width), counts))
            offsets = constant(f"b_{name}_{stride}", np.array([face.get(name, [0.0])], np.float32))
            nodes.append(helper.make_node("MatMul", [f"sure_{stride}", weights], [f"m_{name}_{stride}"]))
            nodes.append(helper.make_node("Add", [f"m_{name}_{stride}", offsets], [f"{name}_{stride}"]))
            outputs.append(helper.make_tensor_value_info(f"{name}_{stride}", TensorProto.FLOAT, [1, None, width]))
    seen = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    order = [f"{name}_{stride}" for name in sides for stride in (8, 16, 32)]
    outputs.sort(key=lambda output: order.index(output.name))
    graph = helper.make_graph(nodes, "finder", [seen], outputs, constants)
    _save(graph, folder / "face_detection_yunet_2023mar.onnx")

    constants = []
    constant("red", np.array([[1.0], [0.0], [0.0]], np.float32))
    for name, value in (("first", [50, 36]), ("last", [54, 40]), ("axes", [2, 3])):
        constant(name, np.array(value, np.int64))
    nodes = [
        helper.make_node("Slice", ["face", "first", "last", "axes"], ["eye"]),
        helper.make_node("GlobalAveragePool", ["eye"], ["colours"]),
        helper.make_node("Flatten", ["colours"], ["flat"]),
        helper.make_node("MatMul", ["flat", "red"], ["quality"]),
    ]
    seen = helper.make_tensor_value_info("face", TensorProto.FLOAT, [1, 3, 112, 112])
    told = helper.make_tensor_value_info("quality", TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph(nodes, "judge", [seen], [told], constants)
    _save(graph, folder / "ediffiqa_tiny_jun2024.onnx")
    return folder


def _save(graph: Any, file: Path) -> None:
    import onnx

    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, file)
