"""How many times faster this project's networks are than a published-style one: forward, in training, in a whole run.

OMP_NUM_THREADS=1 python benchmarks/network_speed.py --networks tiny,C10 --rounds 5
GUIDED_DIFFUSION_KERNELS=avx2 OMP_NUM_THREADS=1 python benchmarks/network_speed.py

The published style, over the same weights: attention by two einsums and a softmax, normalisations by way of float32,
scale, shift and SiLU one by one, channels first, and attention blocks that recompute their activations. Both run in
this process, in turn, and a ratio is of processor time within one round. `again` is the published style once more, so
its spread is the noise. GUIDED_DIFFUSION_KERNELS (avx512, avx2, none) chooses the kernels. A run is STEPS steps of
DDIM, by this project's loop with either network.
"""

import argparse
import copy
import itertools
import math
import statistics
import subprocess
import sys

import timing
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from guided_diffusion import networks
from guided_diffusion.nn import GroupNorm32, checkpoint
from guided_diffusion.script_util import create_gaussian_diffusion
from guided_diffusion.solvers import SOLVERS
from guided_diffusion.unet import AttentionBlock, QKVAttentionLegacy, ResBlock, UNetModel

ADM = dict(in_channels=3, out_channels=6, use_scale_shift_norm=True)
# name: (the UNetModel's arguments beyond ADM, batch)
NETWORKS = {
    "tiny": (
        dict(image_size=32, model_channels=32, num_res_blocks=2, attention_resolutions=(2, 4), channel_mult=(1, 2, 2))
        | dict(num_head_channels=32, resblock_updown=True),
        64,
    ),
    "digits16": (
        dict(image_size=16, model_channels=32, num_res_blocks=2, attention_resolutions=(2, 4), channel_mult=(1, 2, 2))
        | dict(num_head_channels=32, num_classes=10),
        64,
    ),
    "C10": (
        dict(image_size=32, model_channels=128, num_res_blocks=3, attention_resolutions=(2, 4))
        | dict(channel_mult=(1, 2, 2, 2), num_head_channels=32, use_new_attention_order=True, resblock_updown=True),
        8,
    ),
    "LSUN-64": (
        dict(image_size=64, model_channels=192, num_res_blocks=3, attention_resolutions=(2, 4, 8))
        | dict(channel_mult=(1, 2, 3, 4), num_head_channels=64, use_new_attention_order=True, resblock_updown=True),
        2,
    ),
}
TRAINED = ("tiny", "digits16", "C10")
STEPS = 20


class PlainNorm(GroupNorm32):
    def forward(self, x):
        return nn.GroupNorm.forward(self, x.float()).type(x.dtype)


class PlainResBlock(ResBlock):
    def _forward(self, x, emb):
        x, h = self._first_half(x)
        scale, shift = self.emb_layers(emb).type(h.dtype)[:, :, None, None].chunk(2, dim=1)
        return self.skip_connection(x) + self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)


class PlainAttention(AttentionBlock):
    """Weights of attention are made whole, [N, heads, T, T], and its 1x1 convolutions are convolutions."""

    def forward(self, x):
        return checkpoint(self._forward, (x,), self.parameters(), True)

    def _forward(self, x):
        n, heads, flat = len(x), self.num_heads, x.flatten(2)
        qkv = F.conv1d(self.norm(flat), self.qkv.weight, self.qkv.bias)
        if isinstance(self.attention, QKVAttentionLegacy):
            q, k, v = qkv.reshape(n * heads, -1, flat.shape[-1]).chunk(3, dim=1)
        else:
            q, k, v = (part.reshape(n * heads, -1, flat.shape[-1]) for part in qkv.chunk(3, dim=1))
        factor = 1 / math.sqrt(math.sqrt(q.shape[1]))
        weight = torch.einsum("ncq,nck->nqk", q * factor, k * factor).float().softmax(-1).type(q.dtype)
        mixed = torch.einsum("nqk,nck->ncq", weight, v).reshape(flat.shape)
        return (flat + F.conv1d(mixed, self.proj_out.weight, self.proj_out.bias)).reshape(x.shape)


PLAIN = {GroupNorm32: PlainNorm, ResBlock: PlainResBlock, AttentionBlock: PlainAttention}


def published_style(model):
    """The same network over the same weights, computed as the published code does."""
    made = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for module in made.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return made


def build(name, device):
    """(the network, its inputs, what its output is compared with in training)."""
    torch.manual_seed(0)
    arguments, batch = NETWORKS[name]
    model = UNetModel(**ADM, **arguments)
    for p in model.parameters():  # layers that begin as zero would hide everything before them
        if p.ndim > 1 and not p.any():
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
    side = model.image_size
    told = (torch.randint(10, (batch,)),) if model.num_classes else ()
    inputs = (torch.randn(batch, 3, side, side), torch.full((batch,), 500.0), *told)
    target = torch.randn(batch, 6, side, side)
    return model.to(device), [x.to(device) for x in inputs], target.to(device)


def matmul_peak(device, dtype, rounds=5):
    """GFLOP a second of the fastest of some products of two [side, side], and that side."""
    side = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    return max(2 * side**3 / timing.seconds(lambda: a @ b, device) / 1e9 for _ in range(rounds)), side


def print_flops(names, device, dtype):
    """A line for each network: its multiplications and additions, as defined, and the rate at which they come."""
    peak, side = matmul_peak(device, dtype)
    print(f"a product of two {side} x {side} in {dtype}: {peak:.0f} GFLOP/s\n")
    print("| network | batch | GFLOP an image | s an image | GFLOP/s | of that product |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        model, inputs, _ = build(name, device)
        batch = len(inputs[0])
        with torch.no_grad():
            with FlopCounterMode(display=False) as counter:
                published_style(model)(*inputs)
            flops = counter.get_total_flops() / 1e9 / batch
            made = networks.for_inference(as_dtype(model.eval(), dtype))
            made(*inputs)
            calls = [timing.seconds(lambda made=made, inputs=inputs: made(*inputs), device) for _ in range(3)]
            took = statistics.median(calls) / batch
        print(f"| {name} | {batch} | {flops:.2f} | {took:.4f} | {flops / took:.0f} | {flops / took / peak:.0%} |")


def difference(found, expected, relative):
    """The largest, or the share that the length of the error has."""
    error = found - expected
    return f"{error.norm() / expected.norm():.1e} of it" if relative else f"{error.abs().max():.1e}"


def drawn(net, x, labels=()):
    """Images [N, C, H, W] by STEPS steps of DDIM, from noise x and labels [N], if there are any."""
    diffusion = create_gaussian_diffusion(timestep_respacing=str(STEPS), learn_sigma=True)
    denoise = diffusion.denoiser(net, dict(zip("y", labels)))
    *_, last = diffusion.sample_records(SOLVERS["ddim"](diffusion.schedule), denoise, x)
    return last.x


def as_dtype(model, dtype):
    """A copy of a network whose torso computes in a dtype; the network itself in float32."""
    if dtype is torch.float32:
        return model
    made = copy.deepcopy(model)
    made.convert_to(dtype)
    return made


def compiled(model, mode):
    """A network by --compile."""
    networks.ConvFlags(compile=mode).apply()
    made = networks.compiled(model)
    networks.ConvFlags().apply()
    return made


# how a network is computed; 16 bit in training is that of training_step.py
WAYS = {
    "project": lambda model, make: model,
    "--conv direct": lambda model, make: make(model, "direct"),
    "--conv auto": lambda model, make: make(model, "auto"),
    "bf16": lambda model, make: make(as_dtype(model, torch.bfloat16)),
    "fp16": lambda model, make: make(as_dtype(model, torch.float16)),
    "--compile default": lambda model, make: compiled(model, "default"),
    "bf16 --compile default": lambda model, make: compiled(as_dtype(model, torch.bfloat16), "default"),
    "bf16 --compile max-autotune": lambda model, make: compiled(as_dtype(model, torch.bfloat16), "max-autotune"),
}
# on a GPU the kernels of --conv are not in use
USUAL = {
    "cpu": ("project", "--conv direct", "--conv auto", "bf16"),
    "cuda": ("project", "bf16", "fp16", "--compile default", "bf16 --compile default", "bf16 --compile max-autotune"),
}


def measure(name, what, args):
    """Print a line for each way to compute a network."""
    model, inputs, target = build(name, args.device)
    plain, training = published_style(as_dtype(model, args.published)), what == "training"
    make = networks.for_training if training else networks.for_inference
    ways = [way for way in args.ways if not training or not way.startswith(("bf16", "fp16"))]
    half = {way for way in ways if way.startswith(("bf16", "fp16")) or args.published is not torch.float32}
    model.train(training)
    nets = {"again": plain} | {way: WAYS[way](model, make) for way in ways}

    def step(net):
        if training:
            model.zero_grad()
            (net(*inputs) - target).square().mean().backward()
            return None
        with torch.no_grad():
            return drawn(net, inputs[0], inputs[2:]) if what == "run" else net(*inputs)

    def outcome(net):
        """What is compared: the output, or all gradients."""
        found = step(net)
        return torch.cat([p.grad.flatten() for p in model.parameters()]) if training else found.float()

    plain.train(training)
    expected = outcome(plain)
    errors = {label: difference(outcome(net), expected, training or label in half) for label, net in nets.items()}
    calls = {label: lambda net=net: step(net) for label, net in {"": plain, **nets}.items()}
    taken = timing.in_turn(calls, args.rounds, args.device)
    for label in nets:
        median, *spread = timing.ratio(taken[""], taken[label])
        row = (name, len(inputs[0]), what, label, f"{median:.2f}", "[{:.2f}, {:.2f}]".format(*spread), errors[label])
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def print_peaks(names, args):
    """A line for each network: how far a forward pass of each way lifts the peak of a process of its own, in MB."""
    ways = ["published style", *args.ways]
    print("| network | batch | " + " | ".join(ways) + " |\n|" + " --- |" * (len(ways) + 2))
    for name in names:
        command = [sys.executable, __file__, "--networks", name, "--device", str(args.device), "--peak_of"]
        peaks = [subprocess.run([*command, way], capture_output=True, text=True, check=True).stdout for way in ways]
        row = (name, NETWORKS[name][1], *(f"{float(peak):.0f}" for peak in peaks))
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def print_peak(name, way, device):
    """What `print_peaks` asks a process for."""
    model, inputs, _ = build(name, device)
    before = timing.high_water(device)
    made = WAYS[way](model.eval(), networks.for_inference) if way in WAYS else published_style(model.eval())
    with torch.no_grad():
        made(*inputs)
        made(*inputs)
    print(timing.high_water(device) - before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=timing.some_of(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=timing.at_least(1), default=5)
    parser.add_argument("--what", choices=("forward", "training", "both", "run", "flops", "memory"), default="both")
    parser.add_argument("--device", type=timing.device, default=timing.CPU)
    parser.add_argument("--published", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--ways", type=timing.some_of(WAYS), help=f"of {', '.join(WAYS)}")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        print_peak(args.networks[0], args.peak_of, args.device)
        return
    args.published = getattr(torch, args.published)
    args.ways = args.ways or USUAL[args.device.type]
    if args.what == "training" and (odd := [name for name in args.networks if name not in TRAINED]):
        parser.error(f"--networks {odd[0]} is not measured in training; expected some of {', '.join(TRAINED)}")
    if args.what in ("training", "both") and args.published is not torch.float32:
        parser.error("--published in 16 bit does not train as published; expected --what forward, run or flops")
    print(timing.described(args.device))
    if args.device.type == "cpu":
        print(networks.described(networks.computing_by()))
    print()
    if args.what == "flops":
        print_flops(args.networks, args.device, args.published)
        return
    if args.what == "memory":
        print_peaks(args.networks, args)
        return
    print("| network | batch | what | way | published / ours | spread | largest difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    asked = ("forward", "training") if args.what == "both" else (args.what,)
    for name, what in itertools.product(args.networks, asked):
        if what != "training" or name in TRAINED:
            measure(name, what, args)


if __name__ == "__main__":
    main()
