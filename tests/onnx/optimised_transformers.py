"""Writes small models of the transformers package into a folder, as exported and as onnxruntime's tool optimised them.

For each NAME there are NAME.onnx, NAME.optimised.onnx and NAME.npz: inputs and outputs of the first, computed by
onnxruntime, as `in NAME` and `out NAME`. Needs torch, transformers, onnx and onnxruntime.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers as hf
from onnxruntime.transformers import fusion_options, optimizer

FOLDER = Path(sys.argv[1])
SMALL = {"vocab_size": 50, "attn_implementation": "eager"}
IDS = torch.tensor([[7, 3, 9, 21, 4, 30, 2], [11, 5, 17, 6, 40, 1, 1]])
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])


class Called(torch.nn.Module):
    """A module that is called by a function of it and of its inputs."""

    def __init__(self, module, function):
        super().__init__()
        self.module, self.function = module.eval(), function

    def forward(self, *inputs):
        return self.function(self.module, *inputs)


class Images(torch.nn.Module):
    """Convolutions, groups with and without a sum before them, and a gated layer, as diffusion models have them."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (
            torch.nn.Conv2d(i, o, 3, padding=1) for i, o in ((4, 16), (16, 16), (16, 4))
        )
        self.groups, self.groups_of_sum = torch.nn.GroupNorm(4, 16), torch.nn.GroupNorm(4, 16)
        self.time, self.norm = torch.nn.Linear(6, 16), torch.nn.LayerNorm(16)
        self.gated, self.back = torch.nn.Linear(16, 2 * 1280), torch.nn.Linear(1280, 16)

    def forward(self, x, time):
        h = self.second(torch.nn.functional.silu(self.groups(self.first(x))))
        h = torch.nn.functional.silu(self.groups_of_sum(h + self.time(time)[:, :, None, None]))
        rows = h.flatten(2).transpose(1, 2)
        left, right = self.gated(self.norm(rows)).chunk(2, -1)
        rows = self.back(left * torch.nn.functional.gelu(right)) + rows
        return self.last(rows.transpose(1, 2).reshape(h.shape))


def gpt2(module, ids, mask, positions, *past):
    y, present = module(
        ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=tuple((x[0], x[1]) for x in past),
        use_cache=True,
        return_dict=False,
    )
    return y, *map(torch.stack, present)


def masked(module, ids, mask):
    return module(ids, attention_mask=mask, return_dict=False)[0]


def t5(module, ids, mask, decoder_ids):
    return module(ids, mask, decoder_input_ids=decoder_ids, use_cache=False, return_dict=False)[0]


def bert():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return hf.BertModel(hf.BertConfig(**SMALL, **sizes))


def options():
    """Masks as the ends of rows."""
    options = fusion_options.FusionOptions("bert")
    options.use_raw_attention_mask(False)
    return options


def cases():
    """Yield (name, module, inputs by name, outputs, kind of model, options)."""
    texts = {"input_ids": IDS, "attention_mask": MASK}
    yield "bert", Called(bert(), masked), texts, ["y"], "bert", None
    yield "bert_ends", Called(bert(), masked), texts, ["y"], "bert", options()
    config = hf.GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    inputs = {
        "input_ids": IDS[:, :3],
        "attention_mask": torch.tensor([[1] * 6, [0] + [1] * 5]),
        "position_ids": torch.arange(3, 6).repeat(2, 1),
        "past_0": torch.randn(2, 2, 4, 3, 8),
        "past_1": torch.randn(2, 2, 4, 3, 8),
    }
    yield "gpt2", Called(hf.GPT2Model(config), gpt2), inputs, ["y", "present_0", "present_1"], "gpt2", None
    config = hf.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    yield "t5", Called(hf.T5Model(config), t5), texts | {"decoder_ids": IDS[:, :4]}, ["y"], "t5", None
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    yield "llama", Called(hf.LlamaModel(hf.LlamaConfig(**SMALL, **sizes)), masked), texts, ["y"], "gpt2", None
    inputs = {"x": torch.randn(2, 4, 8, 8), "time": torch.randn(2, 6)}
    yield "images", Images().eval(), inputs, ["y"], "unet", None


def main():
    torch.manual_seed(0)
    for name, module, inputs, outputs, kind, chosen in cases():
        path = str(FOLDER / f"{name}.onnx")
        axes = {n: {i: f"{n} {i}" for i in range(x.ndim)} for n, x in inputs.items() if kind != "unet"}
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
        feed = {n: x.numpy() for n, x in inputs.items()}
        results = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(outputs, feed)
        named = {f"in {n}": x for n, x in feed.items()} | {f"out {n}": y for n, y in zip(outputs, results)}
        np.savez(FOLDER / f"{name}.npz", **named)
        sizes = {"num_heads": 4, "hidden_size": 32} if kind != "unet" else {}
        optimised = optimizer.optimize_model(path, kind, optimization_options=chosen, opt_level=0, **sizes)
        optimised.save_model_to_file(str(FOLDER / f"{name}.optimised.onnx"))


with torch.no_grad():
    main()
