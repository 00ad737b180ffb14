"""Twins of networks of every other kind, and the right routes; tables as in `transformers_models`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from helpers.routing_proof.building import Model, chain, conv, linear, net


def vocoder() -> nn.Module:
    """Everything under weight normalisation, as in HiFi-GAN."""
    return net(
        "Generator",
        conv_pre=weight_norm(nn.Conv1d(80, 64, 7)),
        ups=[weight_norm(nn.ConvTranspose1d(64, 32, 16)), weight_norm(nn.ConvTranspose1d(32, 16, 16))],
        resblocks=[net("ResBlock", convs1=[weight_norm(nn.Conv1d(16, 16, 3)) for _ in range(3)])],
        conv_post=weight_norm(nn.Conv1d(16, 1, 7)),
    )


def gan() -> nn.Module:
    generator = nn.Sequential(
        nn.Linear(10, 4 * 4 * 32), nn.ConvTranspose2d(32, 16, 4), nn.ConvTranspose2d(16, 3, 4)
    )
    layers = [spectral_norm(conv(3, 16, 4)), nn.ReLU(), spectral_norm(conv(16, 32, 4)), nn.Flatten()]
    discriminator = nn.Sequential(*layers, spectral_norm(nn.Linear(32 * 16, 5)))
    return net("LightningGAN", generator=generator, discriminator=discriminator)


class VocabParallelEmbedding(nn.Module):
    def __init__(self, entries: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(entries, width))


class ColumnParallelLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))


def megatron() -> nn.Module:
    def layer() -> nn.Module:
        attention = net(
            "SelfAttention",
            linear_qkv=ColumnParallelLinear(64, 192),
            linear_proj=ColumnParallelLinear(64, 64),
        )
        mlp = net("MLP", linear_fc1=ColumnParallelLinear(64, 160), linear_fc2=ColumnParallelLinear(160, 64))
        return net("TransformerLayer", self_attention=attention, mlp=mlp)

    embedding = net(
        "LanguageModelEmbedding",
        word_embeddings=VocabParallelEmbedding(300, 64),
        position_embeddings=VocabParallelEmbedding(32, 64),
    )
    return net(
        "GPTModel",
        embedding=embedding,
        decoder=net("TransformerBlock", layers=[layer(), layer()]),
        output_layer=ColumnParallelLinear(64, 300),
    )


def lora(base: nn.Module, rank: int = 4) -> nn.Module:
    """As peft wraps a layer: its weight frozen, and two small matrices beside it."""
    base.requires_grad_(False)
    if isinstance(base, nn.Embedding):
        tables = {
            "lora_embedding_A": (rank, base.num_embeddings),
            "lora_embedding_B": (base.embedding_dim, rank),
        }
        dicts = {name: nn.ParameterDict({"default": torch.zeros(shape)}) for name, shape in tables.items()}
        return net("Embedding", base_layer=base, **dicts)
    assert isinstance(base, nn.Linear)
    first, second = (
        nn.Linear(base.in_features, rank, bias=False),
        nn.Linear(rank, base.out_features, bias=False),
    )
    return net(
        "Linear",
        base_layer=base,
        lora_A=nn.ModuleDict({"default": first}),
        lora_B=nn.ModuleDict({"default": second}),
    )


def peft_model() -> nn.Module:
    layers = [net("DecoderLayer", q_proj=lora(linear(64, 48)), o_proj=linear(48, 64)) for _ in range(2)]
    model = net("LlamaModel", embed_tokens=lora(nn.Embedding(300, 64)), layers=layers)
    return net(
        "PeftModel",
        base_model=net(
            "LoraModel", model=net("LlamaForCausalLM", model=model, lm_head=lora(linear(64, 300)))
        ),
    )


def radiance_field() -> nn.Module:
    return net(
        "NeRF",
        pts_linears=[linear(63, 256), linear(256, 256), linear(319, 256)],
        views_linears=[linear(283, 128)],
        feature_linear=linear(256, 256),
        alpha_linear=linear(256, 1),
        rgb_linear=linear(128, 3),
    )


def actor_critic() -> nn.Module:
    actor = net("Actor", latent_pi=chain(17, 256, 192), mu=linear(192, 6), log_std=linear(192, 6))
    return net(
        "SACPolicy", actor=actor, critic=net("Critic", qf0=chain(23, 256, 192, 1), qf1=chain(23, 256, 192, 1))
    )


def q_network() -> nn.Module:
    features = nn.Sequential(conv(4, 32, 8), nn.ReLU(), conv(32, 64, 4), nn.Flatten())
    return net("DQN", features=features, q=chain(3136, 512, 6))


def quantized_autoencoder() -> nn.Module:
    decoder = nn.Sequential(nn.ConvTranspose2d(16, 32, 4), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4))
    quantizer = net("VectorQuantizer", embedding=nn.Embedding(64, 16))
    return net(
        "VQVAE", encoder=nn.Sequential(conv(3, 32, 4), conv(32, 16, 4)), quantizer=quantizer, decoder=decoder
    )


def recurrent() -> nn.Module:
    """The head is the only `nn.Linear`."""
    return net("RNNModel", embedding=nn.Embedding(50, 24), lstm=nn.LSTM(24, 32, 2), fc=linear(32, 50))


def tagger() -> nn.Module:
    return net("Tagger", emb=nn.Embedding(50, 24), gru=nn.GRU(24, 32, bidirectional=True), out=linear(64, 9))


def reversed_autoencoder() -> nn.Module:
    """The decoder is registered first."""
    return net("AutoEncoder", decoder=chain(4, 16, 60), encoder=chain(60, 16, 4))


def seq2seq() -> nn.Module:
    transformer = nn.Transformer(64, 4, 2, 2, 160, batch_first=True)
    return net(
        "Seq2SeqTransformer",
        transformer=transformer,
        generator=linear(64, 200),
        src_tok_emb=net("TokenEmbedding", embedding=nn.Embedding(300, 64)),
        tgt_tok_emb=net("TokenEmbedding", embedding=nn.Embedding(200, 64)),
    )


def graph_network() -> nn.Module:
    def layer(inputs: int, outputs: int) -> nn.Module:
        return net("GCNConv", bias=(outputs,), lin=nn.Linear(inputs, outputs, bias=False))

    return net("GCN", convs=[layer(30, 64), layer(64, 7)])


def recommender() -> nn.Module:
    tables = [nn.EmbeddingBag(20 + index, 16) for index in range(3)]
    return net("DLRM_Net", emb_l=tables, bot_l=chain(13, 64, 16), top_l=chain(22, 48, 2))


def mixture() -> nn.Module:
    """Experts in a list, as before transformers 5."""

    def expert() -> nn.Module:
        return net("BlockSparseTop2MLP", w1=linear(64, 96), w2=linear(96, 64), w3=linear(64, 96))

    block = net("SparseMoeBlock", gate=nn.Linear(64, 4, bias=False), experts=[expert() for _ in range(4)])
    return net(
        "Model",
        embed_tokens=nn.Embedding(300, 64),
        layers=[net(block_sparse_moe=block)],
        lm_head=linear(64, 300),
    )


def perceiver() -> nn.Module:
    attention = nn.MultiheadAttention(64, 4, kdim=48, vdim=48)
    return net("Perceiver", latents=(8, 64), registers=(4, 64), cross=attention, classifier=linear(64, 10))


MODELS: dict[str, Model] = {
    "vocoder under weight norm": (
        vocoder,
        {
            "conv_pre.*.original1": "64 × 560 [1,2 → 0]",
            "ups.0.*.original1": "32 × 1024 [0,2 → 1]",
            "ups.1.*.original1": "16 × 512 [0,2 → 1]",
            "resblocks.*.original1": "16 × 48 [1,2 → 0]",
            "conv_post.*.original1": "adamw",
        },
    ),
    "GAN, the discriminator under spectral norm": (
        gan,
        {
            "generator.0": "512 × 10 [1 → 0]",
            "generator.1": "16 × 512 [0,2,3 → 1]",
            "generator.2": "adamw",
            "discriminator.0.*": "16 × 48 [1,2,3 → 0]",
            "discriminator.2.*": "32 × 256 [1,2,3 → 0]",
            "discriminator.4.*": "adamw",
        },
    ),
    "Megatron: classes of its own": (
        megatron,
        {
            "embedding.*_embeddings": "adamw",
            "*.linear_qkv": "3 of 64 × 64 [1 → 0]",
            "*.linear_proj": "64 × 64 [1 → 0]",
            "*.linear_fc1": "160 × 64 [1 → 0]",
            "*.linear_fc2": "64 × 160 [1 → 0]",
            "output_layer": "adamw",
        },
    ),
    "peft: LoRA on an embedding, a projection and a head": (
        peft_model,
        {
            "*.embed_tokens.*": "adamw",
            "*.q_proj.base_layer": "48 × 64 [1 → 0]",
            "*.q_proj.lora_A.default": "4 × 64 [1 → 0]",
            "*.q_proj.lora_B.default": "48 × 4 [1 → 0]",
            "*.o_proj": "64 × 48 [1 → 0]",
            "*.lm_head.*": "adamw",
        },
    ),
    "nn.Transformer with a generator": (
        seq2seq,
        {
            "transformer.*.in_proj_weight": "3 of 64 × 64 [1 → 0]",
            "transformer.*.out_proj": "64 × 64 [1 → 0]",
            "transformer.*.linear1": "160 × 64 [1 → 0]",
            "transformer.*.linear2": "64 × 160 [1 → 0]",
            "generator": "adamw",
            "*_tok_emb.embedding": "adamw",
        },
    ),
    "NeRF": (
        radiance_field,
        {
            "pts_linears.0": "256 × 63 [1 → 0]",
            "pts_linears.1": "256 × 256 [1 → 0]",
            "pts_linears.2": "256 × 319 [1 → 0]",
            "views_linears.0": "128 × 283 [1 → 0]",
            "feature_linear": "256 × 256 [1 → 0]",
            "rgb_linear": "adamw",
        },
    ),
    "soft actor-critic": (
        actor_critic,
        {
            "actor.latent_pi.0": "256 × 17 [1 → 0]",
            "actor.latent_pi.2": "192 × 256 [1 → 0]",
            "actor.mu": "adamw",
            "actor.log_std": "adamw",
            "critic.qf?.0": "256 × 23 [1 → 0]",
            "critic.qf?.2": "192 × 256 [1 → 0]",
        },
    ),
    "Q network": (
        q_network,
        {
            "features.0": "32 × 256 [1,2,3 → 0]",
            "features.2": "64 × 512 [1,2,3 → 0]",
            "q.0": "512 × 3136 [1 → 0]",
            "q.2": "adamw",
        },
    ),
    "VQ-VAE": (
        quantized_autoencoder,
        {
            "encoder.0": "32 × 48 [1,2,3 → 0]",
            "encoder.1": "16 × 512 [1,2,3 → 0]",
            "quantizer.embedding": "adamw",
            "decoder.0": "32 × 256 [0,2,3 → 1]",
            "decoder.2": "adamw",
        },
    ),
    "LSTM language model": (
        recurrent,
        {
            "embedding": "adamw",
            "lstm.weight_ih_l0": "4 of 32 × 24 [1 → 0]",
            "lstm.weight_??_l?": "4 of 32 × 32 [1 → 0]",
            "fc": "adamw",
        },
    ),
    "GRU tagger": (
        tagger,
        {
            "emb": "adamw",
            "gru.weight_ih_*": "3 of 32 × 24 [1 → 0]",
            "gru.weight_hh_*": "3 of 32 × 32 [1 → 0]",
            "out": "adamw",
        },
    ),
    "autoencoder, the decoder first": (
        reversed_autoencoder,
        {
            "decoder.0": "16 × 4 [1 → 0]",
            "decoder.2": "adamw",
            "encoder.0": "16 × 60 [1 → 0]",
            "encoder.2": "4 × 16 [1 → 0]",
        },
    ),
    "graph convolutions": (graph_network, {"convs.0.lin": "64 × 30 [1 → 0]", "convs.1.lin": "adamw"}),
    "DLRM": (
        recommender,
        {
            "emb_l.*": "adamw",
            "bot_l.0": "64 × 13 [1 → 0]",
            "bot_l.2": "16 × 64 [1 → 0]",
            "top_l.0": "48 × 22 [1 → 0]",
            "top_l.2": "adamw",
        },
    ),
    "mixture of experts in a list": (
        mixture,
        {
            "embed_tokens": "adamw",
            "*.gate": "adamw",
            "*.w[13]": "96 × 64 [1 → 0]",
            "*.w2": "64 × 96 [1 → 0]",
            "lm_head": "adamw",
        },
    ),
    "Perceiver of one's own": (
        perceiver,
        {
            "latents": "adamw",
            "registers": "adamw",
            "cross.q_proj_weight": "64 × 64 [1 → 0]",
            "cross.[kv]_proj_weight": "64 × 48 [1 → 0]",
            "cross.out_proj": "64 × 64 [1 → 0]",
            "classifier": "adamw",
        },
    ),
}
