"""A tiny Wan whose tokens are split over processes, as a host for several GPUs splits them."""
import dataclasses
import os

import comfy.ldm.wan.model
import comfy.sample
import comfy.sd
import torch
import torch.distributed
from comfy.ldm.modules.attention import attention_pytorch

import tiny
from small_world.tiny_models import TinyWan
from standin_core.attention import over_ranks
from standin_core.errors import UserError
from standin_core.host_attention import OVERRIDE
from standin_core.report import ReportSink
from standin_core.stand_in.apply import split_over_ranks
from standin_core.stand_in.variant import Variant
from standin_core.stand_in.wrappers import installed

WAN = TinyWan(text_dim=tiny.WAN.text_dim, heads=4)
EVEN, ODD = (1, 16, 3, 8, 12), (1, 16, 3, 6, 10)  # 72 tokens, and 45, which neither 2 nor 4 divides
LEFT = torch.zeros(1, 8, 12).index_fill(2, torch.arange(5), 1.0)


def cases():
    """Name -> (latent's shape, model with its identities)."""
    def read(model, seed=1, photos=1, **controls):
        return tiny.apply_identity_branch(model, tiny.adapter(), tiny.random(photos, 16, 1, 8, 16, seed=seed),
                                          **controls)

    model = comfy.sd.load_diffusion_model_state_dict(
        WAN.weights(), model_options={"dtype": torch.float32}, metadata=WAN.metadata())
    two = read(read(model, region=LEFT, strength=0.7), seed=4, photos=2, region=1 - LEFT)
    return {
        "the base model": (EVEN, model),
        "strength": (EVEN, read(model, strength=0.6)),
        "keys appended": (EVEN, read(model, attention="concatenate")),
        "a region": (ODD, read(model, region=LEFT)),
        "two people, one of two photos": (EVEN, two),
        "some blocks, half of the steps": (ODD, read(model, first_block=1, last_block=2, end_percent=0.5)),
        "the positive pass": (EVEN, read(model, guidance="positive pass")),
    }


def sample(model, shape):
    """-> latent, and the mass of its attention map, [P, L, t, h, w], where it merges an identity."""
    model, sink = model.clone(), ReportSink()
    sink.maps_attention = installed(model).settings.attention != "concatenate"
    sink.listen(model)
    latent = torch.zeros(shape)
    samples = comfy.sample.sample(model, comfy.sample.prepare_noise(latent, 7), tiny.STEPS, 4.0, "euler", "simple",
                                  tiny.prompt(), tiny.prompt(seed=3), latent, disable_pbar=True, seed=7)
    return samples, [each.mass for each in sink.maps]


def split(model, group):
    """Split the tokens of a Wan as raylight does: before the blocks, with a self-attention of its own in each, and
    together again before the head.
    """
    ranks, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
    wan, whole = model.model.diffusion_model, {}

    def part(x):
        x = torch.nn.functional.pad(x, (0, 0) * (x.ndim - 2) + (0, -x.shape[1] % ranks))
        return x.chunk(ranks, dim=1)[rank].contiguous()

    def before_block(block, arguments, keywords):
        if block is wan.blocks[0]:
            whole["tokens"] = arguments[0].shape[1]
            arguments = (part(arguments[0]), *arguments[1:])
        return arguments, {**keywords, "freqs": part(keywords["freqs"])}

    def before_head(head, arguments):
        parts = [torch.empty_like(arguments[0]) for _ in range(ranks)]
        torch.distributed.all_gather(parts, arguments[0].contiguous(), group=group)
        return (torch.cat(parts, dim=1)[:, :whole["tokens"]], *arguments[1:])

    def foreign(attn):
        def forward(x, freqs, transformer_options=None):
            attend = over_ranks(plain, group, whole["tokens"])
            options = {OVERRIDE: lambda func, q, k, v, heads, **_: attend(func, q, k, v, [], heads)}
            return comfy.ldm.wan.model.WanSelfAttention.forward(attn, x, freqs, options)
        return forward

    for block in wan.blocks:
        block.register_forward_pre_hook(before_block, with_kwargs=True)
        block.self_attn.forward = foreign(block.self_attn)
    wan.head.register_forward_pre_hook(before_head)


def plain(host, q, k, v, identities, heads, **_):
    """As a function from ``restricted_attention``, without identities."""
    return attention_pytorch(q, k, v, heads)


def refusal(function, *arguments, **keywords):
    """What the UserError says."""
    try:
        function(*arguments, **keywords)
    except UserError as error:
        return str(error)


def sample_split(rank, ranks, folder):
    """What one of the processes does; the first writes "found.pt" into the folder: case -> latent, attention maps, and
    whether all have that latent; and what is refused.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=ranks)
    group, found = torch.distributed.group.WORLD, {}
    with torch.inference_mode():
        everything = cases()
        split(everything["the base model"][1], group)
        for name, (shape, model) in everything.items():
            latent, maps = sample(split_over_ranks(model, group), shape)
            parts = [torch.empty_like(latent) for _ in range(ranks)]
            torch.distributed.all_gather(parts, latent)
            found[name] = latent, maps, all(torch.equal(each, latent) for each in parts)
        ordinary = dataclasses.replace(tiny.adapter(), variant=Variant(self_attention="ordinary"))
        ordinary = tiny.apply_identity_branch(everything["the base model"][1], ordinary, tiny.random(1, 16, 1, 8, 16))
        some = tiny.random(1, 10, 32 * ranks + 32)
        found["refusals"] = [
            refusal(sample, everything["strength"][1], EVEN),
            refusal(sample, split_over_ranks(ordinary, group), EVEN),
            refusal(over_ranks(plain, group, 10 * ranks), None, some, some, some, [], heads=ranks + 1),
            refusal(over_ranks(plain, group, 10 * ranks + 1), None, some, some, some, [], heads=ranks)]
    if rank == 0:
        torch.save(found, folder / "found.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
