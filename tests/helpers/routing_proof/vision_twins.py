"""Twins of vision networks of timm, torchvision and diffusers, and the routes right for them.

Tables are as in `transformers_models`.
"""

from __future__ import annotations

from torch import nn

from helpers.routing_proof.building import Model, chain, conv, linear, net


def timm_block(width: int = 64) -> nn.Module:
    return net(
        "Block",
        norm1=nn.LayerNorm(width),
        attn=net("Attention", qkv=linear(width, 3 * width), proj=linear(width, width)),
        ls1=net("LayerScale", gamma=(width,)),
        norm2=nn.LayerNorm(width),
        mlp=net("Mlp", fc1=linear(width, 160), fc2=linear(160, width)),
    )


TIMM_BLOCK = {
    "*attn.qkv": "3 of 64 × 64 [1 → 0]",
    "*attn.proj": "64 × 64 [1 → 0]",
    "*mlp.fc1": "160 × 64 [1 → 0]",
    "*mlp.fc2": "64 × 160 [1 → 0]",
}


def timm_vit() -> nn.Module:
    return net(
        "VisionTransformer",
        cls_token=(1, 1, 64),
        reg_token=(1, 4, 64),
        pos_embed=(1, 21, 64),
        patch_embed=net("PatchEmbed", proj=conv(3, 64, 8, stride=8)),
        blocks=nn.Sequential(*[timm_block() for _ in range(2)]),
        norm=nn.LayerNorm(64),
        head=linear(64, 10),
    )


def torchvision_vit() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 160)
    return net(
        "VisionTransformer",
        class_token=(1, 1, 64),
        conv_proj=conv(3, 64, 8, stride=8),
        encoder=net(
            "Encoder",
            pos_embedding=(1, 17, 64),
            layers=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).layers,
        ),
        heads=net(pre_logits=linear(64, 48), head=linear(48, 10)),
    )


def vgg() -> nn.Module:
    features = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 32), nn.ReLU())
    return net("VGG", features=features, classifier=chain(32 * 49, 256, 256, 100))


def convnext() -> nn.Module:
    def block(width: int) -> nn.Module:
        mlp = net("Mlp", fc1=linear(width, 4 * width), fc2=linear(4 * width, width))
        return net("ConvNeXtBlock", conv_dw=conv(width, width, 7, groups=width), mlp=mlp, gamma=(width,))

    head = net(norm=nn.LayerNorm(32), pre_logits=net(fc=linear(32, 48)), fc=linear(48, 10))
    return net(
        "ConvNeXt",
        stem=nn.Sequential(conv(3, 16, 4, stride=4), nn.LayerNorm(16)),
        stages=[
            net("ConvNeXtStage", blocks=[block(16)]),
            net(
                "ConvNeXtStage",
                downsample=nn.Sequential(nn.LayerNorm(16), conv(16, 32, 2)),
                blocks=[block(32)],
            ),
        ],
        head=head,
    )


def efficientnet() -> nn.Module:
    block = net(
        "InvertedResidual",
        conv_pw=conv(16, 96, 1, bias=False),
        conv_dw=conv(96, 96, 3, groups=96, bias=False),
        se=net("SqueezeExcite", conv_reduce=conv(96, 4, 1), conv_expand=conv(4, 96, 1)),
        conv_pwl=conv(96, 24, 1, bias=False),
    )
    return net(
        "EfficientNet",
        conv_stem=conv(3, 16, bias=False),
        blocks=nn.Sequential(nn.Sequential(block)),
        conv_head=conv(24, 128, 1, bias=False),
        classifier=linear(128, 10),
    )


def squeezenet() -> nn.Module:
    fire = net("Fire", squeeze=conv(64, 16, 1), expand1x1=conv(16, 40, 1), expand3x3=conv(16, 40))
    classifier = nn.Sequential(nn.Dropout(), conv(80, 10, 1))
    return net("SqueezeNet", features=nn.Sequential(conv(3, 64), nn.ReLU(), fire), classifier=classifier)


def mlp_mixer() -> nn.Module:
    def block() -> nn.Module:
        tokens = net("Mlp", fc1=linear(16, 24), fc2=linear(24, 16))
        return net(
            "MixerBlock", mlp_tokens=tokens, mlp_channels=net("Mlp", fc1=linear(64, 160), fc2=linear(160, 64))
        )

    stem = net("PatchEmbed", proj=conv(3, 64, 8, stride=8))
    return net("MlpMixer", stem=stem, blocks=[block(), block()], norm=nn.LayerNorm(64), head=linear(64, 10))


def faster_rcnn() -> nn.Module:
    heads = net(
        "RoIHeads",
        box_head=net("TwoMLPHead", fc6=linear(32 * 49, 128), fc7=linear(128, 128)),
        box_predictor=net("FastRCNNPredictor", cls_score=linear(128, 11), bbox_pred=linear(128, 44)),
        mask_head=nn.Sequential(conv(32, 32), nn.ReLU(), conv(32, 32)),
        mask_predictor=net(
            "MaskRCNNPredictor", conv5_mask=nn.ConvTranspose2d(32, 24, 2), mask_fcn_logits=conv(24, 11, 1)
        ),
    )
    rpn = net(
        "RPNHead", conv=nn.Sequential(conv(32, 32)), cls_logits=conv(32, 3, 1), bbox_pred=conv(32, 12, 1)
    )
    body = net(
        "ResNet",
        conv1=conv(3, 16, 7),
        layer1=nn.Sequential(net("BasicBlock", conv1=conv(16, 32), conv2=conv(32, 32))),
    )
    return net("MaskRCNN", backbone=body, rpn=net(head=rpn), roi_heads=heads)


def dit() -> nn.Module:
    def block() -> nn.Module:
        inner = timm_block()
        inner.add_module("adaLN_modulation", nn.Sequential(nn.SiLU(), linear(64, 6 * 64)))
        return inner

    final = net(
        "FinalLayer", linear=linear(64, 32), adaLN_modulation=nn.Sequential(nn.SiLU(), linear(64, 128))
    )
    return net(
        "DiT",
        pos_embed=(1, 16, 64),
        x_embedder=net("PatchEmbed", proj=conv(4, 64, 2, stride=2)),
        t_embedder=net("TimestepEmbedder", mlp=nn.Sequential(linear(256, 64), nn.SiLU(), linear(64, 64))),
        y_embedder=net("LabelEmbedder", embedding_table=nn.Embedding(11, 64)),
        blocks=[block(), block()],
        final_layer=final,
    )


def unet() -> nn.Module:
    def resnet(inputs: int, outputs: int) -> nn.Module:
        projection = linear(128, outputs)
        return net(
            "ResnetBlock2D",
            conv1=conv(inputs, outputs),
            time_emb_proj=projection,
            conv2=conv(outputs, outputs),
        )

    return net(
        "UNet2DModel",
        conv_in=conv(4, 32),
        time_embedding=net("TimestepEmbedding", linear_1=linear(32, 128), linear_2=linear(128, 128)),
        down_blocks=[net("DownBlock2D", resnets=[resnet(32, 64)], downsamplers=[net(conv=conv(64, 64))])],
        up_blocks=[net("UpBlock2D", resnets=[resnet(128, 32)], upsamplers=[net(conv=conv(32, 32))])],
        conv_norm_out=nn.GroupNorm(4, 32),
        conv_out=conv(32, 4),
    )


def vae() -> nn.Module:
    encoder = net("Encoder", conv_in=conv(3, 32), conv_norm_out=nn.GroupNorm(4, 32), conv_out=conv(32, 8))
    decoder = net("Decoder", conv_in=conv(4, 32), conv_norm_out=nn.GroupNorm(4, 32), conv_out=conv(32, 3))
    return net(
        "AutoencoderKL",
        encoder=encoder,
        decoder=decoder,
        quant_conv=conv(8, 8, 1),
        post_quant_conv=conv(4, 4, 1),
    )


def flux() -> nn.Module:
    def block() -> nn.Module:
        layers = {name: linear(64, 64) for name in ("to_q", "to_k", "to_v", "add_q_proj")}
        attention = net("FluxAttention", **layers, to_out=[linear(64, 64), nn.Dropout()])
        forward = net("FeedForward", net=[net("GELU", proj=linear(64, 256)), nn.Dropout(), linear(256, 64)])
        return net("FluxTransformerBlock", norm1=net(linear=linear(64, 384)), attn=attention, ff=forward)

    times = net("TimestepEmbedding", linear_1=linear(32, 64), linear_2=linear(64, 64))
    return net(
        "FluxTransformer2DModel",
        x_embedder=linear(16, 64),
        context_embedder=linear(40, 64),
        time_text_embed=net(timestep_embedder=times),
        transformer_blocks=[block()],
        norm_out=net("AdaLayerNormContinuous", linear=linear(64, 128)),
        proj_out=linear(64, 16),
    )


def inception() -> nn.Module:
    def layer(inputs: int, outputs: int, window: int = 1) -> nn.Module:
        return net("BasicConv2d", conv=conv(inputs, outputs, window), bn=nn.BatchNorm2d(outputs))

    branches = {"branch1": layer(16, 12), "branch2": nn.Sequential(layer(16, 20), layer(20, 28, 3))}
    return net(
        "GoogLeNet", conv1=layer(3, 16, 7), inception3a=net("Inception", **branches), fc=linear(40, 10)
    )


HEADS_OF_DETECTION = {
    "backbone.conv1": "16 × 147 [1,2,3 → 0]",
    "backbone.layer1.0.conv1": "32 × 144 [1,2,3 → 0]",
    "backbone.layer1.0.conv2": "32 × 288 [1,2,3 → 0]",
    "rpn.head.conv.0": "32 × 288 [1,2,3 → 0]",
    "rpn.head.cls_logits": "adamw",
    "rpn.head.bbox_pred": "adamw",
    "roi_heads.box_head.fc6": "128 × 1568 [1 → 0]",
    "roi_heads.box_head.fc7": "128 × 128 [1 → 0]",
    "roi_heads.box_predictor.*": "adamw",
    "roi_heads.mask_head.*": "32 × 288 [1,2,3 → 0]",
    "roi_heads.mask_predictor.conv5_mask": "24 × 128 [0,2,3 → 1]",
    "roi_heads.mask_predictor.mask_fcn_logits": "adamw",
}


MODELS: dict[str, Model] = {
    "timm: ViT with registers": (
        timm_vit,
        {
            "reg_token": "adamw",
            "pos_embed": "adamw",
            "patch_embed.proj": "64 × 192 [1,2,3 → 0]",
            "head": "adamw",
        }
        | TIMM_BLOCK,
    ),
    "torchvision: ViT with pre-logits": (
        torchvision_vit,
        {
            "conv_proj": "64 × 192 [1,2,3 → 0]",
            "encoder.pos_embedding": "adamw",
            "*.in_proj_weight": "3 of 64 × 64 [1 → 0]",
            "*.out_proj": "64 × 64 [1 → 0]",
            "*.linear1": "160 × 64 [1 → 0]",
            "*.linear2": "64 × 160 [1 → 0]",
            "heads.pre_logits": "48 × 64 [1 → 0]",
            "heads.head": "adamw",
        },
    ),
    "torchvision: VGG": (
        vgg,
        {
            "features.0": "16 × 27 [1,2,3 → 0]",
            "features.2": "32 × 144 [1,2,3 → 0]",
            "classifier.0": "256 × 1568 [1 → 0]",
            "classifier.2": "256 × 256 [1 → 0]",
            "classifier.4": "adamw",
        },
    ),
    "timm: ConvNeXt with pre-logits": (
        convnext,
        {
            "stem.0": "16 × 48 [1,2,3 → 0]",
            "*.conv_dw": "adamw",
            "stages.1.downsample.1": "32 × 64 [1,2,3 → 0]",
            "stages.0.*.fc1": "64 × 16 [1 → 0]",
            "stages.0.*.fc2": "16 × 64 [1 → 0]",
            "stages.1.*.fc1": "128 × 32 [1 → 0]",
            "stages.1.*.fc2": "32 × 128 [1 → 0]",
            "head.pre_logits.fc": "48 × 32 [1 → 0]",
            "head.fc": "adamw",
        },
    ),
    "timm: EfficientNet": (
        efficientnet,
        {
            "conv_stem": "16 × 27 [1,2,3 → 0]",
            "*.conv_pw": "96 × 16 [1,2,3 → 0]",
            "*.conv_dw": "adamw",
            "*.conv_reduce": "4 × 96 [1,2,3 → 0]",
            "*.conv_expand": "96 × 4 [1,2,3 → 0]",
            "*.conv_pwl": "24 × 96 [1,2,3 → 0]",
            "conv_head": "128 × 24 [1,2,3 → 0]",
            "classifier": "adamw",
        },
    ),
    "torchvision: SqueezeNet": (
        squeezenet,
        {
            "features.0": "64 × 27 [1,2,3 → 0]",
            "features.2.squeeze": "16 × 64 [1,2,3 → 0]",
            "features.2.expand1x1": "40 × 16 [1,2,3 → 0]",
            "features.2.expand3x3": "40 × 144 [1,2,3 → 0]",
            "classifier.1": "adamw",
        },
    ),
    "timm: MLP-Mixer": (
        mlp_mixer,
        {
            "stem.proj": "64 × 192 [1,2,3 → 0]",
            "*.mlp_tokens.fc1": "24 × 16 [1 → 0]",
            "*.mlp_tokens.fc2": "16 × 24 [1 → 0]",
            "*.mlp_channels.fc1": "160 × 64 [1 → 0]",
            "*.mlp_channels.fc2": "64 × 160 [1 → 0]",
            "head": "adamw",
        },
    ),
    "torchvision: Mask R-CNN": (faster_rcnn, HEADS_OF_DETECTION),
    "DiT": (
        dit,
        {
            "pos_embed": "adamw",
            "x_embedder.proj": "64 × 16 [1,2,3 → 0]",
            "t_embedder.mlp.0": "64 × 256 [1 → 0]",
            "t_embedder.mlp.2": "64 × 64 [1 → 0]",
            "y_embedder.embedding_table": "adamw",
            "blocks.*.adaLN_modulation.1": "384 × 64 [1 → 0]",
            "final_layer.linear": "adamw",
            "final_layer.adaLN_modulation.1": "128 × 64 [1 → 0]",
        }
        | TIMM_BLOCK,
    ),
    "diffusers: U-Net": (
        unet,
        {
            "conv_in": "32 × 36 [1,2,3 → 0]",
            "time_embedding.linear_1": "128 × 32 [1 → 0]",
            "time_embedding.linear_2": "128 × 128 [1 → 0]",
            "*.time_emb_proj": "* [1 → 0]",
            "conv_out": "adamw",
            "*": "* [1,2,3 → 0]",
        },
    ),
    "diffusers: variational autoencoder": (
        vae,
        {
            "encoder.conv_in": "32 × 27 [1,2,3 → 0]",
            "encoder.conv_out": "8 × 288 [1,2,3 → 0]",
            "decoder.conv_in": "32 × 36 [1,2,3 → 0]",
            "decoder.conv_out": "adamw",
            "quant_conv": "8 × 8 [1,2,3 → 0]",
            "post_quant_conv": "4 × 4 [1,2,3 → 0]",
        },
    ),
    "diffusers: Flux": (
        flux,
        {
            "x_embedder": "64 × 16 [1 → 0]",
            "context_embedder": "64 × 40 [1 → 0]",
            "*.linear_1": "64 × 32 [1 → 0]",
            "*.linear_2": "64 × 64 [1 → 0]",
            "*.norm1.linear": "384 × 64 [1 → 0]",
            "*.attn.*": "64 × 64 [1 → 0]",
            "*.ff.net.0.proj": "256 × 64 [1 → 0]",
            "*.ff.net.2": "64 × 256 [1 → 0]",
            "norm_out.linear": "128 × 64 [1 → 0]",
            "proj_out": "adamw",
        },
    ),
    "torchvision: GoogLeNet": (
        inception,
        {
            "conv1.conv": "16 × 147 [1,2,3 → 0]",
            "*.branch1.conv": "12 × 16 [1,2,3 → 0]",
            "*.branch2.0.conv": "20 × 16 [1,2,3 → 0]",
            "*.branch2.1.conv": "28 × 180 [1,2,3 → 0]",
            "fc": "adamw",
        },
    ),
}
