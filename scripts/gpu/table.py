"""Ratios from the results of scripts/gpu-check: our passes beside PyTorch's and the card's bandwidth.

Usage: table.py results.jsonl"""

import json
import sys


def main():
    rows = [json.loads(line) for line in open(sys.argv[1]) if line.startswith("{")]
    copy = next((r["GB_per_s"] for r in rows if r["what"] == "copy"), None)
    torch = {r["rows"]: r for r in rows if r["what"] == "torch decode"}
    if copy:
        print(f"the card copies {copy:.0f} GB/s, read and written")
    for row in rows:
        if "setting" in row:
            print(f"{row['what']}, {row['setting']}: {row['mean_ms']:.2f} ms a pass, "
                  f"{row['speedup']:.2f} x reference")
        if "step_ms" not in row:
            continue
        n, step = row["concurrency"], row["step_ms"]
        said = [f"{row['what']}, {n} at once: {step:.3f} ms a pass, {row['tokens_per_s']:.1f} tokens/s, "
                f"{row['tokens_per_forward']:.2f} tokens a forward"]
        if row["what"] == "phi-2 bf16":
            if theirs := torch.get(n):
                for name in ("eager", "graph"):
                    if took := theirs.get(f"{name}_ms"):
                        said.append(f"{took / step:.2f} x PyTorch {name}")
                if copy:
                    # A copy reads one byte and writes one: reading alone gets as many bytes moved.
                    share = theirs["weight_bytes"] / (step * 1e-3) / (copy * 1e9)
                    said.append(f"reads weights at {100 * share:.0f} % of the copy rate")
            said.append(f"{row['ratio']:.2f} x one at once")
        print("; ".join(said))


if __name__ == "__main__":
    main()
