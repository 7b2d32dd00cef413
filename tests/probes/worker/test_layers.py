"""A model with fewer layers, cut by its config alone."""

from __future__ import annotations

import subprocess
import sys

from probes.worker.layers import keep_layers


def test_fewer_layers_cut_every_list_that_has_one_entry_a_layer():
    config = {"num_hidden_layers": 4, "layer_types": ["a", "b", "a", "b"], "vocab_size": 4, "text": {"x": 1}}
    kept = keep_layers(config, 2)
    assert kept == {"num_hidden_layers": 2, "layer_types": ["a", "b"], "vocab_size": 4, "text": {"x": 1}}
    assert config["num_hidden_layers"] == 4
    assert keep_layers(config, 9) == config


def test_a_text_config_inside_is_cut_and_a_vision_tower_is_not():
    config = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4, "patch_size": 14}}
    kept = keep_layers(config, 1)
    assert kept["text_config"]["num_hidden_layers"] == 1
    assert kept["vision_config"]["num_hidden_layers"] == 4


def test_of_layers_that_share_caches_only_those_that_are_left_do():
    """Of 6 layers the last 2 share; the first 5 keep 1 of them, the first 3 none."""
    config = {"num_hidden_layers": 6, "num_kv_shared_layers": 2}
    assert keep_layers(config, 5)["num_kv_shared_layers"] == 1
    assert keep_layers(config, 3)["num_kv_shared_layers"] == 0


def test_cutting_needs_no_torch():
    code = "import sys, probes.request; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
