"""PyTorch on the same Phi checkpoint: what eager kernels and CUDA graphs take for a token, and how fast
the card copies memory. The network is written out here in PyTorch's own operations, with a cache of
fixed size, because that is what CUDA graphs need. On the built-in Phi its greedy tokens are those of
this server: `greedy` may be compared with what it answers to `prompt`.

Usage: torch_phi.py CHECKPOINT [--device cuda|cpu] [--batch N,N] [--prompt N] [--steps N]
Prints one JSON object a line."""

import argparse
import json
import pathlib
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


class Phi:
    """Decoding of `rows` sequences that have the same length."""

    def __init__(self, folder, device, rows, room):
        folder = pathlib.Path(folder)
        config = json.loads((folder / "config.json").read_text())
        self.weights = {}
        for file in sorted(folder.glob("*.safetensors")):
            self.weights.update(load_file(file, device=device))
        self.layers = config["num_hidden_layers"]
        self.heads = config["num_attention_heads"]
        self.eps = config["layer_norm_eps"]
        hidden = config["hidden_size"]
        self.dim = hidden // self.heads
        self.rotary = int(config["partial_rotary_factor"] * self.dim) // 2 * 2
        dtype = self.weights["lm_head.weight"].dtype
        self.bytes = sum(w.numel() * w.element_size() for w in self.weights.values())
        self.bytes -= self.weights["model.embed_tokens.weight"].numel() * dtype.itemsize
        cache = (self.layers, 2, rows, self.heads, room, self.dim)
        self.cache = torch.zeros(cache, device=device, dtype=dtype)
        frequencies = config["rope_theta"] ** (
            -torch.arange(0, self.rotary, 2, device=device) / self.rotary)
        angles = torch.arange(room, device=device)[:, None] * frequencies
        angles = torch.cat([angles, angles], 1)
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)
        self.room = torch.arange(room, device=device)

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"],
                            self.weights[f"{name}.bias"], self.eps)

    def turn(self, x, at):
        turned, rest = x[..., :self.rotary], x[..., self.rotary:]
        first, second = turned.chunk(2, -1)
        turned = turned * self.cos[at] + torch.cat([-second, first], -1) * self.sin[at]
        return torch.cat([turned, rest], -1)

    def forward(self, tokens, at):
        """Tokens `[rows, n]` at positions `at [n]` to the last row's next tokens `[rows]`."""
        x = F.embedding(tokens, self.weights["model.embed_tokens.weight"])
        seen = self.room[None, :] <= at[:, None]
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            normal = self.norm(x, f"{layer}.input_layernorm")
            split = lambda name: self.linear(normal, f"{layer}.self_attn.{name}_proj").unflatten(
                -1, (self.heads, self.dim)).transpose(1, 2)
            query, key, value = self.turn(split("q"), at), self.turn(split("k"), at), split("v")
            keys, values = self.cache[i]
            keys.index_copy_(2, at, key)
            values.index_copy_(2, at, value)
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
            mixed = self.linear(mixed.transpose(1, 2).flatten(2), f"{layer}.self_attn.dense")
            inner = F.gelu(self.linear(normal, f"{layer}.mlp.fc1"), approximate="tanh")
            x = x + mixed + self.linear(inner, f"{layer}.mlp.fc2")
        x = self.norm(x[:, -1], "model.final_layernorm")
        return self.linear(x, "lm_head").argmax(-1)


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(run, device, times):
    """Milliseconds of one of `times`, the median of five rounds."""
    rounds = []
    for _ in range(5):
        wait(device)
        begun = time.perf_counter()
        for _ in range(times):
            run()
        wait(device)
        rounds.append((time.perf_counter() - begun) / times * 1e3)
    return sorted(rounds)[2]


def copy_rate(device):
    """GB/s read and written by a copy."""
    size = 1 << (32 if device == "cuda" else 26)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / timed(lambda: target.copy_(source), device, 5) / 1e6


@torch.inference_mode()
def decode(args, rows):
    model = Phi(args.checkpoint, args.device, rows, args.prompt + args.steps + 8)
    prompt = [3 + i * 7 % 200 for i in range(args.prompt)]
    tokens = torch.tensor([prompt] * rows, device=args.device)
    next_token = model.forward(tokens, torch.arange(args.prompt, device=args.device))
    token, at = next_token[:, None].clone(), torch.tensor([args.prompt], device=args.device)
    greedy = [int(token[0])]

    def step():
        token.copy_(model.forward(token, at)[:, None])
        at.add_(1)

    # The first steps also set things up; the rest are timed, each with the token that a reader gets.
    took = []
    for _ in range(args.steps - 1):
        begun = time.perf_counter()
        step()
        greedy.append(int(token[0]))
        took.append(time.perf_counter() - begun)
    eager = sorted(took[min(8, len(took) // 2):])[(len(took) - min(8, len(took) // 2)) // 2] * 1e3
    row = {"what": "torch decode", "rows": rows, "context": args.prompt + args.steps,
           "eager_ms": eager, "weight_bytes": model.bytes, "prompt": prompt, "greedy": greedy}
    if args.device == "cuda":
        graph = torch.cuda.CUDAGraph()
        stay = lambda: token.copy_(model.forward(token, at)[:, None])
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                stay()
        wait(args.device)
        with torch.cuda.graph(graph):
            stay()
        row["graph_ms"] = timed(graph.replay, args.device, 20)
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", default="1,16")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--steps", type=int, default=64)
    args = parser.parse_args()
    print(json.dumps({"what": "copy", "GB_per_s": copy_rate(args.device)}), flush=True)
    for rows in map(int, args.batch.split(",")):
        print(json.dumps(decode(args, rows)), flush=True)


if __name__ == "__main__":
    main()
