"""Networks of `transformers` that see, and the routes right for them, as in `transformers_models`."""

from __future__ import annotations

from helpers.routing_proof.transformers_models import BART, DOWN, SIZES, SQUARE, UP, Model, hf

VIT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 10,
}

BACKBONE = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}

PATCHES = {"*.patch_embeddings.projection": "64 × 192 [1,2,3 → 0]"}
VIT_BODY = {
    "*position_embeddings": "adamw",
    "*attention.*q_proj": SQUARE,
    "*attention.*k_proj": SQUARE,
    "*attention.*v_proj": SQUARE,
    "*attention.*o_proj": SQUARE,
    "*.fc1": UP,
    "*.fc2": DOWN,
}
DETR = {key: value for key, value in BART.items() if "layers" not in key} | {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_queries": 10,
    "num_labels": 7,
}
CLIP = {
    "text_config": {**SIZES},
    "vision_config": {name: VIT[name] for name in VIT if name != "num_labels"},
    "projection_dim": 48,
}

MODELS: dict[str, Model] = {
    "ViT": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)),
        PATCHES | VIT_BODY | {"classifier": "adamw"},
    ),
    "DeiT, distilled": (
        lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**VIT)),
        PATCHES | VIT_BODY | {"cls_classifier": "adamw", "distillation_classifier": "adamw"},
    ),
    "DINOv2 with registers": (
        lambda: hf.Dinov2WithRegistersForImageClassification(
            hf.Dinov2WithRegistersConfig(
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=28,
                patch_size=14,
                num_labels=10,
                use_swiglu_ffn=True,
            )
        ),
        {
            "*.position_embeddings": "adamw",
            "*.register_tokens": "adamw",
            "*.patch_embeddings.projection": "64 × 588 [1,2,3 → 0]",
            "*.attention.*": SQUARE,
            "*.gate_proj": "176 × 64 [1 → 0]",
            "*.up_proj": "176 × 64 [1 → 0]",
            "*.down_proj": "64 × 176 [1 → 0]",
            "classifier": "adamw",
        },
    ),
    "MAE": (
        lambda: hf.ViTMAEForPreTraining(
            hf.ViTMAEConfig(
                **{name: VIT[name] for name in VIT if name != "num_labels"},
                decoder_hidden_size=32,
                decoder_num_hidden_layers=2,
                decoder_num_attention_heads=4,
                decoder_intermediate_size=96,
            )
        ),
        {
            "decoder.decoder_pos_embed": "adamw",
            "decoder.decoder_embed": "32 × 64 [1 → 0]",
            "decoder.decoder_layers.*.attention.*": "32 × 32 [1 → 0]",
            "decoder.decoder_layers.*.fc1": "96 × 32 [1 → 0]",
            "decoder.decoder_layers.*.fc2": "32 × 96 [1 → 0]",
            "decoder.decoder_pred": "adamw",
        }
        | PATCHES
        | VIT_BODY,
    ),
    "Swin": (
        lambda: hf.SwinForImageClassification(
            hf.SwinConfig(
                embed_dim=16, depths=[1, 1], num_heads=[2, 2], image_size=32, num_labels=10, window_size=4
            )
        ),
        {
            "*.patch_embeddings.projection": "16 × 48 [1,2,3 → 0]",
            "*.relative_position_bias_table": "adamw",
            "*.layers.0.blocks.*attention*": "16 × 16 [1 → 0]",
            "*.layers.0.blocks.*.fc1": "64 × 16 [1 → 0]",
            "*.layers.0.blocks.*.fc2": "16 × 64 [1 → 0]",
            "*.downsample.reduction": "32 × 64 [1 → 0]",
            "*.layers.1.blocks.*attention*": "32 × 32 [1 → 0]",
            "*.layers.1.blocks.*.fc1": "128 × 32 [1 → 0]",
            "*.layers.1.blocks.*.fc2": "32 × 128 [1 → 0]",
            "classifier": "adamw",
        },
    ),
    "ConvNeXt": (
        lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, num_labels=10)
        ),
        {
            "*.patch_embeddings": "16 × 48 [1,2,3 → 0]",
            "*.dwconv": "adamw",
            "*.downsampling_layer.1": "32 × 64 [1,2,3 → 0]",
            "*.stages.0.*.pwconv1": "64 × 16 [1 → 0]",
            "*.stages.0.*.pwconv2": "16 × 64 [1 → 0]",
            "*.stages.1.*.pwconv1": "128 × 32 [1 → 0]",
            "*.stages.1.*.pwconv2": "32 × 128 [1 → 0]",
            "classifier": "adamw",
        },
    ),
    "ResNet": (
        lambda: hf.ResNetForImageClassification(
            hf.ResNetConfig(**BACKBONE, num_labels=10, layer_type="basic")
        ),
        {
            "*.embedder.convolution": "16 × 147 [1,2,3 → 0]",
            "*.stages.0.*.convolution": "16 × 144 [1,2,3 → 0]",
            "*.shortcut.convolution": "32 × 16 [1,2,3 → 0]",
            "*.stages.1.*.layer.0.convolution": "32 × 144 [1,2,3 → 0]",
            "*.stages.1.*.layer.1.convolution": "32 × 288 [1,2,3 → 0]",
            "classifier.1": "adamw",
        },
    ),
    "MobileNetV2": (
        lambda: hf.MobileNetV2ForImageClassification(
            hf.MobileNetV2Config(num_labels=10, depth_multiplier=0.25)
        ),
        {
            "*.first_conv.convolution": "8 × 27 [1,2,3 → 0]",
            "*.conv_3x3.convolution": "adamw",  # depthwise
            "*.conv_stem.reduce_1x1.convolution": "8 × 8 [1,2,3 → 0]",
            "*.layer.1?.expand_1x1.convolution": "* [1,2,3 → 0]",
            "*.layer.*.expand_1x1.convolution": "* [1,2,3 → 0]",
            "*.layer.*.reduce_1x1.convolution": "* [1,2,3 → 0]",
            "*.conv_1x1.convolution": "1280 × 80 [1,2,3 → 0]",
            "classifier": "adamw",
        },
    ),
    "DETR": (
        lambda: hf.DetrForObjectDetection(
            hf.DetrConfig(backbone_config=hf.ResNetConfig(**BACKBONE, out_features=["stage2"]), **DETR)
        ),
        {
            "model.backbone.*": "* [1,2,3 → 0]",
            "*.query_position_embeddings": "adamw",
            "*.input_projection": "64 × 32 [1,2,3 → 0]",
            "*attn.*_proj": SQUARE,
            "*.fc1": UP,
            "*.fc2": DOWN,
            "class_labels_classifier": "adamw",
            "bbox_predictor.layers.[01]": SQUARE,
            "bbox_predictor.layers.2": "adamw",
        },
    ),
    "Deformable DETR": (
        lambda: hf.DeformableDetrForObjectDetection(
            hf.DeformableDetrConfig(
                backbone_config=hf.ResNetConfig(
                    embedding_size=16,
                    hidden_sizes=[16, 32, 48, 64],
                    depths=[1] * 4,
                    out_features=["stage2", "stage3", "stage4"],
                ),
                with_box_refine=True,
                **DETR,
            )
        ),
        {
            "model.backbone.*": "* [1,2,3 → 0]",
            "model.level_embed": "adamw",
            "*.query_position_embeddings": "adamw",
            "*.input_proj.*.0": "* [1,2,3 → 0]",
            "*.sampling_offsets": "128 × 64 [1 → 0]",
            "*.attention_weights": "64 × 64 [1 → 0]",
            "*attn.*_proj": SQUARE,
            "*.fc1": UP,
            "*.fc2": DOWN,
            "*.bbox_embed.*.layers.[01]": SQUARE,
            "*.bbox_embed.*.layers.2": "adamw",
            "*.reference_points": "adamw",
            "class_embed.*": "adamw",
        },
    ),
    "SegFormer": (
        lambda: hf.SegformerForSemanticSegmentation(
            hf.SegformerConfig(
                hidden_sizes=[16, 32, 40, 64],
                depths=[1] * 4,
                num_attention_heads=[1, 2, 5, 4],
                decoder_hidden_size=48,
                num_labels=7,
            )
        ),
        {
            "*.patch_embeddings.proj": "* [1,2,3 → 0]",
            "*.sequence_reduction.sequence_reduction": "* [1,2,3 → 0]",
            "*.dwconv.dwconv": "adamw",
            "decode_head.linear_projections.0.proj": "48 × 16 [1 → 0]",
            "decode_head.linear_projections.*.proj": "* [1 → 0]",
            "decode_head.linear_fuse": "48 × 192 [1,2,3 → 0]",
            "decode_head.classifier": "adamw",
            "*": "* [1 → 0]",
        },
    ),
    "SAM": (
        lambda: hf.SamModel(
            hf.SamConfig(
                vision_config={
                    "hidden_size": 64,
                    "output_channels": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "image_size": 64,
                    "patch_size": 16,
                    "global_attn_indexes": [1],
                    "window_size": 2,
                    "mlp_dim": 96,
                },
                prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16},
                mask_decoder_config={
                    "hidden_size": 32,
                    "mlp_dim": 48,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "iou_head_hidden_dim": 32,
                },
            )
        ),
        {
            "*.positional_embedding": "adamw",
            "*pos_embed": "adamw",
            "*.rel_pos_[hw]": "adamw",
            "*.patch_embed.projection": "64 × 768 [1,2,3 → 0]",
            "*.attn.qkv": "3 of 64 × 64 [1 → 0]",
            "*.attn.proj": SQUARE,
            "vision_encoder.*.lin1": "96 × 64 [1 → 0]",
            "vision_encoder.*.lin2": "64 × 96 [1 → 0]",
            "*.conv?": "* [1,2,3 → 0]",
            "*.mask_tokens": "adamw",
            "*.upscale_conv1": "8 × 128 [0,2,3 → 1]",
            "*.upscale_conv2": "4 × 32 [0,2,3 → 1]",
            "*.iou_prediction_head.proj_out": "adamw",
            "*": "* [1 → 0]",
        },
    ),
    "CLIP": (
        lambda: hf.CLIPModel(hf.CLIPConfig(**CLIP)),
        {
            "*.token_embedding": "adamw",
            "*.position_embedding": "adamw",
            "*.patch_embedding": "64 × 192 [1,2,3 → 0]",
            "*.self_attn.*_proj": SQUARE,
            "*.fc1": UP,
            "*.fc2": DOWN,
            "visual_projection": "adamw",
            "text_projection": "adamw",
        },
    ),
    "Perceiver": (
        lambda: hf.PerceiverForMaskedLM(
            hf.PerceiverConfig(
                d_model=48,
                d_latents=64,
                num_latents=8,
                num_blocks=1,
                num_self_attends_per_block=2,
                num_self_attention_heads=4,
                num_cross_attention_heads=4,
                qk_channels=32,
                v_channels=64,
                vocab_size=300,
                max_position_embeddings=32,
            )
        ),
        {
            "*.input_preprocessor.*embeddings": "adamw",
            "perceiver.embeddings.latents": "adamw",
            "*.output_position_encodings.position_embeddings": "adamw",
            "*": "* [1 → 0]",
        },
    ),
    "PatchTST": (
        lambda: hf.PatchTSTForPrediction(
            hf.PatchTSTConfig(
                num_input_channels=3,
                d_model=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                ffn_dim=160,
                context_length=32,
                patch_length=8,
                patch_stride=8,
                prediction_length=12,
            )
        ),
        {
            "*.input_embedding": "64 × 8 [1 → 0]",
            "*.position_enc": "adamw",
            "*attn.*_proj": SQUARE,
            "*.ff.0": UP,
            "*.ff.3": DOWN,
            "head.projection": "adamw",
        },
    ),
}
