"""The recipe of a meta-training run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from celo2.config import RuleConfig
from celo2.meta.config import MetaConfig
from celo2.meta.run.folder import RunFiles

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


def test_recipe_survives_json() -> None:
    config = MetaConfig(variant="celo2-base", datasets=("mnist",), scale_range=(0.1, 10.0), seed=7)
    assert MetaConfig.from_json(config.to_json()) == config


def test_variant_decides_orthogonalization() -> None:
    assert MetaConfig(variant="celo2").rule.orthogonalize
    assert not MetaConfig(variant="celo2-base").rule.orthogonalize


def test_rule_options_reach_the_rule_and_json() -> None:
    options = (
        "ff_hidden_size=16",
        "normalize_input=false",
        "initial_rms_decays=[0.999]",
        "mlp_activation=tanh",
    )
    config = MetaConfig(variant="celo2-base", rule_options=options)
    assert config.rule == RuleConfig(
        orthogonalize=False,
        ff_hidden_size=16,
        normalize_input=False,
        initial_rms_decays=(0.999,),
        mlp_activation="tanh",
    )
    assert MetaConfig.from_json(config.to_json()) == config


def test_frozen_names_are_those_of_the_chosen_rule() -> None:
    assert "w3" in MetaConfig(rule_options=("ff_hidden_layers=3",), frozen=("w3",)).frozen_names


@pytest.mark.parametrize(
    "path", sorted([*RECIPES.glob("*.json"), *RECIPES.glob("tried/*-pes.json")]), ids=lambda path: path.stem
)
def test_shipped_recipes_are_whole_and_readable(path: Path) -> None:
    recipe = MetaConfig.load(path)
    assert recipe.to_json() == path.read_text()
    assert recipe.pairs_by_family
    assert (recipe.max_unroll, recipe.estimator, recipe.level, recipe.num_pairs) == (
        2000,
        "pes",
        "global",
        32,
    )


def test_published_setting_has_32_pairs() -> None:
    assert MetaConfig().num_pairs == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "celo3"}, "celo3"),
        ({"level": "layer"}, "layer"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"tasks_per_set": 0}, "tasks_per_set must be at least 1"),
        ({"truncation_length": 200}, "truncation_length"),
        ({"min_unroll": 3000}, "3000"),
        ({"estimator": "full-es", "min_unroll": 3000}, "min_unroll must be at most max_unroll"),
        ({"scale_range": (2.0, 1.0)}, "scale_range"),
        ({"datasets": ()}, "at least one image set"),
        ({"rate_spread": 0.5}, "rate_spread is a factor of at least 1"),
        ({"rate_units": "pixels"}, "pixels"),
        ({"estimator": "es"}, "truncated-es"),
        ({"loss_difference": "rank"}, "rank"),
        ({"loss_scale": "root"}, "root"),
        ({"unroll_law": "normal"}, "normal"),
        ({"inner_clip": -1.0}, "inner_clip must be finite in float32 and not negative"),
        ({"reverse_steps": -1}, "reverse_steps must be finite in float32 and not negative"),
        ({"reverse_steps": 1}, "a loss is measured before its step"),
        ({"reverse_steps": 5, "variant": "celo"}, "is for Celo2 and Celo2-base"),
        ({"reverse_steps": 51}, "reverse_steps=51 is more than truncation_length=50"),
        ({"reverse_steps": 5, "estimator": "full-es"}, "needs truncations"),
        ({"reverse_steps": 5, "loss_difference": "sign"}, 'loss_difference="value"'),
        ({"reverse_steps": 5, "meta_loss": "final"}, "sees the end of a run in few truncations"),
        ({"reverse_steps": 5, "datasets": ("digits",), "tasks_per_set": 1}, "needs two pairs or more"),
        ({"estimator": "full-reverse", "variant": "velo"}, "full-reverse is for Celo2 and Celo2-base"),
        ({"estimator": "full-reverse", "loss_difference": "sign"}, 'choose loss_difference="value"'),
        ({"estimator": "full-reverse", "resume_probability": 0.5}, "full-reverse trains whole runs"),
        ({"estimator": "full-reverse", "reverse_steps": 5}, "needs truncations"),
        ({"family_rates": ("conv:2",)}, "family_rates: unknown name 'conv'"),
        ({"family_rates": ("mlp:0",)}, "family_rates: expected NAME"),
        ({"expert": "muon"}, "expert and expert_weight belong together.*got 'muon' and 0.0"),
        ({"expert_weight": 0.1}, "expert and expert_weight belong together.*got '' and 0.1"),
        ({"expert": "muon", "expert_weight": -1.0}, "expert_weight must be finite in float32 and not neg"),
        ({"expert": "muom", "expert_weight": 0.1}, "unknown optimizer 'muom'; did you mean 'muon'"),
        ({"expert": "celo2", "expert_weight": 0.1}, "'celo2' is a learned optimizer.*such as muon"),
        ({"expert": "schedule-free-adamw", "expert_weight": 0.1}, "averages itself.*such as muon"),
        ({"variant": "velo", "expert": "muon", "expert_weight": 0.1}, "not of 'velo'; leave it and"),
        ({"frozen": ("w0__*", "w9")}, "no weight array is named 'w9'"),
        ({"frozen": ("w*", "b?")}, "leave nothing to train"),
        ({"mixture": ("global", "layer")}, "mixture: expected LEVEL or LEVEL:LOW:HIGH"),
        ({"mixture": ("global:1",)}, "got 'global:1'"),
        ({"mixture": ("global:2:1",)}, "got 'global:2:1'"),
        ({"mixture": ("none:2:3",)}, "'none' has no range"),
        ({"mixture": ("global:a:b",)}, "got 'global:a:b'"),
        ({"outer_optimizer": "adamm"}, "adamm"),
        ({"outer_optimizer": "sgd", "outer_weight_decay": 0.1}, "outer_weight_decay belongs to"),
        ({"outer_clip": -1.0}, "outer_clip must be finite in float32 and not negative"),
        ({"outer_warmup": 10, "outer_decay_steps": 10}, "must be above outer_warmup"),
        ({"meta_loss": "test"}, "held-out"),
        ({"sign_scale": 0.0}, "sign_scale must be positive"),
        ({"variant": "celo", "rule_options": ("ff_hidden_size=4",)}, "rule_options are Celo2's"),
        ({"rule_options": ("ff_hidden_size",)}, "rule_options: expected NAME=VALUE"),
        ({"rule_options": ("hidden_size=4",)}, "did you mean 'ff_hidden_size'"),
        ({"rule_options": ("orthogonalize=false",)}, "what the variant says"),
        ({"rule_options": ("ff_hidden_size=4", "ff_hidden_size=8")}, "given twice"),
        ({"rule_options": ("ff_hidden_size=0",)}, "ff_hidden_size must be from 1 to 1024"),
        ({"rule_options": ("ff_hidden_size=wide",)}, "rule_options: ff_hidden_size must be"),
        ({"rule_options": ("normalize_input=no",)}, "rule_options: normalize_input must be"),
        ({"rule_options": ("initial_rms_decays=[1.5]",)}, "initial_rms_decays must be"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_refuses_what_cannot_work(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaConfig(**options)


def test_frozen_patterns_name_arrays() -> None:
    assert MetaConfig(frozen=("w?", "b0")).frozen_names == {"w1", "w2", "b0"}
    assert len(MetaConfig(frozen=("w0__*",)).frozen_names) == 14


def test_unknown_name_in_a_file_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'sigma'"):
        MetaConfig.from_json('{"sigme": 0.1}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "JSON object, found [1]"),
        ("{", "Expecting property name"),
        ('{"sigma": "0.1"}', 'sigma must be a number, got "0.1"'),
        ('{"seed": 1.5}', "seed must be a whole number, got 1.5"),
        ('{"seed": true}', "seed must be a whole number, got true"),
        ('{"start": null}', "start must be a string, got null"),
        ('{"datasets": "mnist"}', "datasets must be a list of strings"),
        ('{"scale_range": ["a", "b"]}', "scale_range must be a list of numbers"),
        ('{"scale_range": [1.0]}', "scale_range must be two rising positive numbers"),
    ],
)
def test_damaged_file_is_refused_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        MetaConfig.load(path)


def test_a_run_from_before_an_option_existed_can_be_resumed(tmp_path) -> None:
    config = MetaConfig(seed=3)
    recipe = json.loads(config.to_json())
    del recipe["inner_schedule"]
    (tmp_path / "config.json").write_text(json.dumps(recipe))
    with RunFiles(tmp_path) as files:
        files.start(config, resume=True)
    with pytest.raises(ValueError, match="another recipe"), RunFiles(tmp_path) as files:
        files.start(MetaConfig(seed=3, inner_schedule="cosine"), resume=True)
