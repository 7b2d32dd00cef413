"""Device maps and offloading against accelerate itself: its map, and its hooks run on fake tensors of several cards."""

from __future__ import annotations

import re
import weakref
from collections import defaultdict

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
backends = pytest.importorskip("torch.utils.backend_registration")

from accelerate import hooks  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from transformers.cache_utils import DynamicLayer  # noqa: E402
from transformers.integrations.accelerate import _get_device_map, expand_device_map  # noqa: E402

from planner.architecture import read_config  # noqa: E402
from planner.engines.device_map import balanced_shares  # noqa: E402
from planner.footprint import GpuFootprint  # noqa: E402
from planner.gpu import Gpu  # noqa: E402
from planner.predict import predict  # noqa: E402
from planner.scenario import parse_scenario  # noqa: E402

ROOMY = 10**12
BATCH, PROMPT = 2, 300
LLAMA = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 8000, "tie_word_embeddings": False, "max_position_embeddings": 4096,
}  # fmt: skip
TIED = LLAMA | {"tie_word_embeddings": True, "vocab_size": 20_000}
EXPERTS = {
    "model_type": "qwen3_moe", "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 192, "num_experts": 16,
    "num_experts_per_tok": 4, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
    "vocab_size": 4000, "tie_word_embeddings": False, "max_position_embeddings": 4096, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
NARROW_ENDS = LLAMA | {"num_hidden_layers": 23, "vocab_size": 512}
POSITIONS = {"model_type": "gpt2", "n_embd": 256, "n_layer": 7, "n_head": 4, "vocab_size": 5000, "n_positions": 1024}


def model_of(config, device="meta"):
    settings = transformers.AutoConfig.for_model(**config)
    settings._attn_implementation = "eager"
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).eval()


@pytest.mark.parametrize("config", [LLAMA, TIED, EXPERTS, NARROW_ENDS, POSITIONS], ids=lambda config: config["model_type"])
def test_layers_lie_where_accelerate_lays_them(config) -> None:
    """``infer_auto_device_map`` on balanced memory, roomy and scarce; what it lays on the host stays on our last GPU."""
    architecture, model = read_config(config), model_of(config)
    weights = sum(weight.numel() for weight in model.parameters()) * 2
    pattern = re.compile(re.escape(architecture.decoder.name) + r"\.(\d+)\.")
    for gpus in (2, 3, 4, 7):
        for free in (ROOMY, weights // gpus * 11 // 10):
            found = _get_device_map(model, "auto", {**dict.fromkeys(range(gpus), free), "cpu": ROOMY}, None)
            names = [name for name, _ in model.named_parameters()]
            theirs = {
                int(match[1]): device for name, device in expand_device_map(found, names).items() if (match := pattern.match(name))
            }
            ours = {layer: share.index for share in balanced_shares(architecture, 2, None, [free] * gpus) for layer in share.layers}
            assert {layer: gpus - 1 if device == "cpu" else device for layer, device in theirs.items()} == ours


class LiveBytes(TorchDispatchMode):
    """Bytes of live storages by device, each rounded up to 512, and their highest sum since ``begin``."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[str, int] = defaultdict(int)
        self.peak: dict[str, int] = {}
        self._seen: set[int] = set()

    def begin(self) -> None:
        self.peak = dict(self.live)

    def note(self, tensor) -> None:
        storage = tensor.untyped_storage()
        size, device, key = -(-storage.nbytes() // 512) * 512, str(tensor.device), storage._cdata
        if size and key not in self._seen:
            self._seen.add(key)
            self.live[device] += size
            self.peak[device] = max(self.peak.get(device, 0), self.live[device])
            weakref.finalize(storage, self._gone, key, device, size)

    def _gone(self, key: int, device: str, size: int) -> None:
        self._seen.discard(key)
        self.live[device] -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.note(leaf)
        return out


@pytest.fixture(scope="module")
def cards():
    """A kind of device that has operators for fake tensors alone; accelerate's way of placing parameters, made to take them."""
    if not hasattr(backends, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no backends written in Python")
    backends._setup_privateuseone_for_python_backend("card")
    # It stays for the process, and checkpoints under autocast, of whatever device, ask any backend that there is.
    torch.card.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]

    def place(module, name, device, value=None, **_) -> None:
        *path, last = name.split(".")
        for part in path:
            module = getattr(module, part)
        old = module._parameters.get(last, module._buffers.get(last))
        new = (old if value is None else value).detach().to(device)
        if last in module._buffers:
            module._buffers[last] = new
        elif value is not None or old.device != torch.device(device):
            module._parameters[last] = torch.nn.Parameter(new, requires_grad=False)

    def empty_cache(self, keys, values) -> None:
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = (torch.empty(0, dtype=keys.dtype, device=keys.device) for _ in "kv")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks, "set_module_tensor_to_device", place)
        patch.setattr(DynamicLayer, "lazy_initialization", empty_cache)
        yield


def traced(config, device_map) -> dict[str, dict[str, int]]:
    """Peaks of load, prefill and the first decode step by device."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, live = model_of(config, "cpu"), LiveBytes()
        with live, torch.no_grad():
            accelerate.dispatch_model(
                model, device_map, main_device="card:0", skip_keys=model._skip_keys_device_placement, force_hooks=True
            )
            for tensor in (*model.parameters(), *model.buffers()):
                live.note(tensor)
            peaks = {"load": dict(live.live)}
            cache, tokens = None, PROMPT
            for phase in ("prefill", "decode"):
                live.begin()
                ids = torch.zeros(BATCH, tokens, dtype=torch.long, device="card:0")
                out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                last = out.logits[:, -1, :].to(copy=True, dtype=torch.float32, device=ids.device)
                peaks[phase], cache, tokens = dict(live.peak), out.past_key_values, 1
                del out, last
    return peaks


def predicted(config, gpus: int, offload: float) -> tuple[GpuFootprint, ...]:
    card = Gpu("card", "none", "none", "cuda", ROOMY)
    document = {
        "version": 1, "model": {"config": config}, "task": "inference", "weights": "bf16",
        "inference": {"batch": BATCH, "prompt_tokens": PROMPT, "new_tokens": 1, "attention": "eager"},
        "hardware": {"gpu": "card", "gpus": gpus}, "offload": {"weights": offload},
    }  # fmt: skip
    return predict(parse_scenario(document), read_config(config), card, device="cpu").gpus


def map_of(config, gpus: int, offload: float) -> dict[str, str]:
    """The map of a prediction in accelerate's words."""
    from planner.engines.device_map import kept_share, modules_of
    from planner.engines.shares import share_of

    architecture = read_config(config)
    if offload:
        total = sum(module.size_bytes for module in modules_of(architecture, 2))
        shares = (kept_share(architecture, 2, total - share_of(total, offload)),)
    else:
        shares = balanced_shares(architecture, 2, None, [ROOMY] * gpus)
    names: dict[str, str] = {}
    for share in shares:
        held = {"model.embed_tokens": share.embeddings, "model.norm": share.norm, "lm_head": share.head}
        here = [name for name, is_here in (held | {"model.rotary_emb": share.rotary}).items() if is_here]
        names |= dict.fromkeys([*here, *(f"model.layers.{layer}" for layer in share.layers)], f"card:{share.index}")
    ends = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    whole = dict.fromkeys((*ends, *(f"model.layers.{layer}" for layer in range(config["num_hidden_layers"]))), "cpu") | names
    if config["tie_word_embeddings"]:
        whole["lm_head"] = whole["model.embed_tokens"]
    return whole


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
@pytest.mark.parametrize("config", [LLAMA, TIED, EXPERTS], ids=["llama", "tied", "experts"])
@pytest.mark.parametrize(("gpus", "offload"), [(2, 0.0), (3, 0.0), (1, 0.5), (1, 1.0)])
def test_every_gpu_holds_what_a_trace_shows(cards, config, gpus, offload) -> None:
    """Weights, caches and the peak of every phase on every card, to a few tokens' ids and norms' weights."""
    peaks = traced(config, map_of(config, gpus, offload))
    for card in predicted(config, gpus, offload):
        for phase in card.phases:
            seen = peaks[phase.name].get(f"card:{card.index}", 0)
            assert phase.allocated == pytest.approx(seen, rel=1e-3, abs=20_000), (card.index, phase.name)
