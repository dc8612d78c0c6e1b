"""Writes a Phi-2 or LLaDA checkpoint folder as a GGUF file in bf16: to_gguf.py FOLDER FILE

llama.cpp's own converter imports PyTorch and refuses tokenisers that it does not know. This one copies
the weights, and takes the tokens as they are: text may be split otherwise than by the original, which
no time depends on.
"""

import json
import pathlib
import re
import sys

import gguf
import numpy as np

BF16, F32 = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F32


def tensors(folder):
    """Name, description and bytes of every tensor, still on disk."""
    for file in sorted(folder.glob("*.safetensors")):
        data = np.memmap(file, mode="r")
        begin = 8 + int(data[:8].view("<u8")[0])
        for name, info in json.loads(data[8:begin].tobytes()).items():
            if name != "__metadata__":
                first, last = info["data_offsets"]
                yield name, info, data[begin + first : begin + last]


def values(info, raw, heads):
    """A matrix as the bytes of bf16, a vector as f32; what is bf16 already stays as it is."""
    shape = info["shape"]
    is_matrix = len(shape) > 1
    if info["dtype"] == "BF16":
        bits = raw.view("<u2").reshape(shape)
        array = bits if is_matrix else (bits.astype("<u4") << 16).view("<f4")
    else:
        array = raw.view({"F16": "<f2", "F32": "<f4"}[info["dtype"]]).reshape(shape).astype("<f4")
        array = gguf.quants.quantize(array, BF16).view("<u2") if is_matrix else array
    if heads:
        # llama.cpp rotates neighbours, the checkpoint the halves of a head.
        array = array.reshape(heads, 2, -1, shape[-1]).swapaxes(1, 2).reshape(shape)
    return np.ascontiguousarray(array)


def phi2(config, writer):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(int(config["partial_rotary_factor"] * (hidden // heads)))
    return config["num_hidden_layers"], {}


def llada(config, writer):
    hidden, heads = config["d_model"], config["n_heads"]
    kv_heads = config.get("n_kv_heads") or heads
    writer.add_context_length(config["max_sequence_length"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["mlp_hidden_size"])
    writer.add_block_count(config["n_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_causal_attention(False)
    writer.add_diffusion_shift_logits(False)
    writer.add_mask_token_id(config["mask_token_id"])
    return config["n_layers"], {"attn_q": heads, "attn_k": kv_heads}


FAMILIES = {
    "phi": (gguf.MODEL_ARCH.PHI2, phi2),
    "llada": (gguf.MODEL_ARCH.LLADA, llada),
}


def add_tokens(folder, vocab, writer):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    # A checkpoint has more rows than its tokeniser has tokens.
    tokens = [f"[PAD{i}]" for i in range(vocab)]
    types = [gguf.TokenType.UNUSED] * vocab
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])


def main():
    folder, file = map(pathlib.Path, sys.argv[1:])
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] not in FAMILIES:
        sys.exit(f"model_type {config['model_type']}, expected {' or '.join(FAMILIES)}")
    arch, describe = FAMILIES[config["model_type"]]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    layers, heads = describe(config, writer)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    add_tokens(folder, config["vocab_size"], writer)

    names = gguf.get_tensor_name_map(arch, layers)
    found = {}
    for name, info, raw in tensors(folder):
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            sys.exit(f"{name}: not a tensor of {config['model_type']}")
        kind = re.sub(r"blk\.\d+\.|\.weight|\.bias", "", known)
        found[known] = (info, raw, heads.get(kind))
    if "output.weight" not in found:
        # The quantised formats leave the embedding table alone, which would then be the head too.
        sys.exit("no head among the tensors; one that is the embedding table is not supported")
    for name, (info, raw, _) in found.items():
        kind, width = (BF16, 2) if len(info["shape"]) > 1 else (F32, 4)
        size = width * int(np.prod(info["shape"]))
        writer.add_tensor_info(name, info["shape"], np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # One by one, so that no more than a tensor is in memory.
    for entry in found.values():
        writer.write_tensor_data(values(*entry))
    writer.close()


main()
