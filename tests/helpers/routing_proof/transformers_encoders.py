"""Encoders, translators and listeners of `transformers`, and the routes right for them.

Tables are as in `transformers_models`.
"""

from __future__ import annotations

from helpers.routing_proof.transformers_models import (
    BART,
    BART_BODY,
    DOWN,
    SIZES,
    SQUARE,
    UP,
    Model,
    hf,
)

SPEECH = {
    **SIZES,
    "vocab_size": 30,
    "conv_dim": [16, 24],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}

BERT_BODY = {
    "*.embeddings.*_embeddings": "adamw",
    "*.attention.self.*": SQUARE,
    "*.attention.output.dense": SQUARE,
    "*.intermediate.dense": UP,
    "*.layer.*.output.dense": DOWN,
}


MODELS: dict[str, Model] = {
    "BERT, pre-training": (
        lambda: hf.BertForPreTraining(hf.BertConfig(**SIZES)),
        {
            "bert.pooler.dense": SQUARE,
            "cls.predictions.transform.dense": SQUARE,
            "cls.seq_relationship": "adamw",
        }
        | BERT_BODY,
    ),
    "BERT, question answering": (
        lambda: hf.BertForQuestionAnswering(hf.BertConfig(**SIZES)),
        BERT_BODY | {"qa_outputs": "adamw"},
    ),
    "RoBERTa, classification": (
        lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**SIZES)),
        BERT_BODY | {"classifier.dense": SQUARE, "classifier.out_proj": "adamw"},
    ),
    "ALBERT": (
        lambda: hf.AlbertForMaskedLM(hf.AlbertConfig(**SIZES, embedding_size=32)),
        {
            "*.embeddings.*_embeddings": "adamw",
            "*.embedding_hidden_mapping_in": "64 × 32 [1 → 0]",
            "*.attention.*": SQUARE,
            "*.ffn": UP,
            "*.ffn_output": DOWN,
            "predictions.dense": "32 × 64 [1 → 0]",
        },
    ),
    "ModernBERT": (
        lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(**SIZES, pad_token_id=0)),
        {
            "*.tok_embeddings": "adamw",
            "*.Wqkv": "3 of 64 × 64 [1 → 0]",
            "*.attn.Wo": SQUARE,
            "*.mlp.Wi": "320 × 64 [1 → 0]",
            "*.mlp.Wo": DOWN,
            "head.dense": SQUARE,  # the tied decoder reads it
        },
    ),
    "DeBERTa V2": (
        lambda: hf.DebertaV2ForMaskedLM(
            hf.DebertaV2Config(
                **SIZES,
                relative_attention=True,
                position_buckets=8,
                max_relative_positions=16,
                pos_att_type=["p2c", "c2p"],
            )
        ),
        {"*.rel_embeddings": "adamw", "*.self.*_proj": SQUARE, "cls.predictions.transform.dense": SQUARE}
        | {name: route for name, route in BERT_BODY.items() if name != "*.attention.self.*"},
    ),
    "XLNet": (
        lambda: hf.XLNetLMHeadModel(
            hf.XLNetConfig(d_model=64, n_layer=2, n_head=4, d_inner=96, vocab_size=300)
        ),
        {
            "transformer.word_embedding": "adamw",
            "*.rel_attn.[qkvr]": "64 × 64 [0 → 1,2]",
            "*.rel_attn.o": "64 × 64 [1,2 → 0]",
            "*_bias": "adamw",
            "*.seg_embed": "adamw",
            "*.ff.layer_1": "96 × 64 [1 → 0]",
            "*.ff.layer_2": "64 × 96 [1 → 0]",
        },
    ),
    "T5, tied": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(d_model=64, d_kv=12, d_ff=160, num_layers=2, num_heads=4, vocab_size=300)
        ),
        {
            "shared": "adamw",
            "*.relative_attention_bias": "adamw",
            "*Attention.[qkv]": "48 × 64 [1 → 0]",
            "*Attention.o": "64 × 48 [1 → 0]",
            "*.wi": UP,
            "*.wo": DOWN,
        },
    ),
    "BART, tied": (
        lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART, vocab_size=300)),
        {"model.shared": "adamw"} | BART_BODY,
    ),
    "Whisper, tied": (
        lambda: hf.WhisperForConditionalGeneration(
            hf.WhisperConfig(
                **BART,
                vocab_size=300,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
            )
        ),
        {
            "*.conv1": "64 × 240 [1,2 → 0]",
            "*.conv2": "64 × 192 [1,2 → 0]",
            "*.embed_tokens": "adamw",
        }
        | BART_BODY,
    ),
    "wav2vec 2.0": (
        lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**SPEECH)),
        {
            "*.conv_layers.0.conv": "16 × 10 [1,2 → 0]",
            "*.conv_layers.1.conv": "24 × 48 [1,2 → 0]",
            "*.feature_projection.projection": "64 × 24 [1 → 0]",
            "*.pos_conv_embed.conv.parametrizations.weight.original1": "4 of 16 × 256 [1,2 → 0]",
            "*.attention.*_proj": SQUARE,
            "*.intermediate_dense": UP,
            "*.output_dense": DOWN,
            "lm_head": "adamw",
        },
    ),
    "Conformer": (
        lambda: hf.Wav2Vec2ConformerForCTC(hf.Wav2Vec2ConformerConfig(**SPEECH)),
        {
            "*.conv_layers.0.conv": "16 × 10 [1,2 → 0]",
            "*.conv_layers.1.conv": "24 × 48 [1,2 → 0]",
            "*.feature_projection.projection": "64 × 24 [1 → 0]",
            "*.pos_conv_embed.conv.parametrizations.weight.original1": "4 of 16 × 256 [1,2 → 0]",
            "*.pos_bias_[uv]": "adamw",
            "*.self_attn.linear_*": SQUARE,
            "*.depthwise_conv": "adamw",
            "*.pointwise_conv1": "128 × 64 [1,2 → 0]",
            "*.pointwise_conv2": "64 × 64 [1,2 → 0]",
            "*.intermediate_dense": UP,
            "*.output_dense": DOWN,
            "lm_head": "adamw",
        },
    ),
}
