"""Gradients and AdamW against PyTorch itself."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from cases import SMALL, formula_tensors
from train_cases import RUNS, ten_steps

from npgpt2 import GPT2Config
from npgpt2.model.ops import ACTIVATIONS
from npgpt2.model.params import build_tree, named_parameters
from npgpt2.train import model
from npgpt2.train.model import Rows, Run

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
torch_reference = pytest.importorskip("torch_reference")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

SCRIPT = Path(__file__).parents[1] / "data" / "make_train_expected.py"


def random_case(seed):
    """A configuration and rows that fit it, everything by the throw of a die.

    At least 4 wide: of two numbers LayerNorm leaves only which is larger, and a gradient of nothing
    but rounding errors.
    """
    r = np.random.default_rng(seed)
    coin = lambda p=0.5: bool(r.random() < p)  # noqa: E731
    n_head = int(r.integers(1, 5))
    c = n_head * int(r.integers(4 if n_head == 1 else 2, 9))
    config = GPT2Config(
        vocab_size=int(r.integers(2, 90)), n_positions=200,
        n_embd=c, n_head=n_head,
        n_layer=int(r.integers(1, 5)), n_inner=int(r.integers(1, 50)) if coin() else None,
        activation_function=str(r.choice(list(ACTIVATIONS))),
        layer_norm_epsilon=float(10.0 ** r.integers(-8, -1)), scale_attn_weights=coin(),
        scale_attn_by_inverse_layer_idx=coin(), add_cross_attention=coin(0.4),
        tie_word_embeddings=coin(), bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    b, t, e = (int(n) for n in r.integers([1, 2, 1], [4, 140 if coin(0.3) else 20, 20]))
    mask = None
    if coin(0.6):
        pads = r.integers(0, t, b)  # less than t: each row keeps a token
        left = np.arange(t)[None] >= pads[:, None]
        mask = (left, left[:, ::-1].copy(), r.random((b, t)) < 0.7)[int(r.integers(3))]
        mask[:, t // 2] = True
    # Nothing is asked of padding: where all is masked, PyTorch attends to everything.
    asked = (r.random((b, t)) < 0.8) & (True if mask is None else mask)
    asked[0, t // 2] = True
    encoder = r.standard_normal((b, e, c)) if config.add_cross_attention and coin(0.8) else None
    encoder_mask = None
    if encoder is not None and coin():
        encoder_mask = r.random((b, e)) < 0.6
        encoder_mask[:, 0] = True
    return config, Rows(
        ids=r.integers(0, config.vocab_size, (b, t)),
        targets=np.where(asked, r.integers(0, config.vocab_size, (b, t)), -100),
        positions=r.integers(0, 200, (b, t)) if coin(0.4) else np.arange(t)[None],
        mask=mask,
        types=r.integers(0, config.vocab_size, (b, t)) if coin(0.3) else None,
        encoder=encoder,
        encoder_mask=encoder_mask,
        d_encoder=None if encoder is None else np.zeros_like(encoder),
    )


def ours(config, tensors, rows, checkpointing):
    params = build_tree(tensors)
    d = build_tree({name: np.zeros_like(x) for name, x in tensors.items()})
    nats, back = model.loss(params, Run(config, rows, checkpointing=checkpointing))
    count = (rows.targets != -100).sum()
    back(1.0 / count, d)
    named = dict(named_parameters(d))
    return nats / count, named if rows.encoder is None else named | {"encoder": rows.d_encoder}


def theirs(config, tensors, rows):
    peer = torch_reference.build(config, tensors, torch.float64)
    t = {name: torch.tensor(x) for name, x in rows._asdict().items() if x is not None}
    states = t.get("encoder")
    if states is not None:
        states.requires_grad_(True)
    logits = peer(
        t["ids"],
        # Without one transformers takes a step back in the positions for packed texts.
        attention_mask=t.get("mask", torch.ones_like(t["ids"])).long(),
        position_ids=t["positions"].expand(t["ids"].shape),
        token_type_ids=t.get("types"),
        encoder_hidden_states=states,
        encoder_attention_mask=t.get("encoder_mask"),
        use_cache=False,
    ).logits
    # Their own loss casts to float32.
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), t["targets"].flatten())
    loss.backward()
    named = {name.removeprefix("transformer."): p.grad for name, p in peer.named_parameters()}
    if states is not None:
        named["encoder"] = states.grad
    return loss.item(), {
        name: np.zeros_like(tensors[name]) if grad is None else grad.numpy()
        for name, grad in named.items()
    }


@pytest.mark.parametrize("seed", range(120))
def test_gradients_are_theirs_to_the_last_digits(seed):
    config, rows = random_case(seed)
    tensors = formula_tensors(config)
    loss, found = ours(config, tensors, rows, checkpointing=bool(seed % 2))
    peer_loss, expected = theirs(config, tensors, rows)
    assert loss == pytest.approx(peer_loss, rel=1e-13)
    assert found.keys() == expected.keys()
    # Where theirs vanishes, as of queries with but one key, ours is a rounding error or two.
    nothing = 1e-5 * max(np.abs(x).max() for x in expected.values())
    for key, x in expected.items():
        bound = 1e-10 * max(np.abs(x).max(), nothing)
        assert np.abs(found[key] - x).max() <= bound, key


def test_gradients_vanish_where_theirs_do():
    """Adding one number to all scores of a query changes no probability: the key's bias."""
    config = GPT2Config(**SMALL)
    tensors, width = formula_tensors(config), config.n_embd
    r = np.random.default_rng(0)
    rows = Rows(r.integers(0, 23, (3, 9)), r.integers(0, 23, (3, 9)), np.arange(9)[None])
    (_, found), (_, expected) = ours(config, tensors, rows, False), theirs(config, tensors, rows)
    for layer in range(config.n_layer):
        name = f"h.{layer}.attn.c_attn.bias"
        for gradient in (found[name], expected[name]):
            q, k, v = np.abs(gradient.reshape(3, width)).max(1)
            assert k <= 1e-12 * min(q, v)


@pytest.fixture(scope="module")
def their_steps():
    return runpy.run_path(str(SCRIPT))["ten_steps"]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("float64", 1e-12)])
def test_ten_losses_are_theirs(name, dtype, bound, their_steps):
    """And both are the literals that stand in the tests without PyTorch."""
    losses, norms = ten_steps(name, dtype)
    expected, their_norms = their_steps(name, getattr(torch, dtype))
    np.testing.assert_allclose(losses, expected, rtol=0, atol=bound)
    np.testing.assert_allclose(norms, their_norms, rtol=10 * bound)
