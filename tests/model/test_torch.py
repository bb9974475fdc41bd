"""Against transformers itself, on random configurations over every switch."""

import numpy as np
import pytest
from cases import SMALL, by_name, formula_tensors, real

from npgpt2 import GPT2, GPT2Config, GPT2WithHead
from npgpt2.checkpoints.convert import convert
from npgpt2.generation import sampling
from npgpt2.model.config import HEADS
from npgpt2.model.ops import ACTIVATIONS
from npgpt2.model.params import build_tree, named_parameters
from npgpt2_onnx import OnnxWithHead, export

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
torch_reference = pytest.importorskip("torch_reference")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def random_case(seed, roomy=False):
    """A configuration and inputs that fit it, everything by the throw of a die.

    `roomy`: at least 32 wide and 16 tokens, so that rounding errors are many and average out.
    """
    r = np.random.default_rng(seed)
    coin = lambda p=0.5: bool(r.random() < p)  # noqa: E731
    n_head, cross = int(r.integers(1, 5)), coin(0.3)
    c = n_head * int(r.integers(*((32, 65) if roomy else (1, 9))))
    config = GPT2Config(
        vocab_size=int(r.integers(20 if roomy else 2, 90)), n_positions=200,
        n_embd=c, n_head=n_head,
        n_layer=int(r.integers(1, 5)), n_inner=int(r.integers(1, 50)) if coin() else None,
        activation_function=str(r.choice(list(ACTIVATIONS))),
        layer_norm_epsilon=float(10.0 ** r.integers(-12, -1)), scale_attn_weights=coin(),
        scale_attn_by_inverse_layer_idx=coin(), add_cross_attention=cross,
        tie_word_embeddings=coin(), bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    least = 16 if roomy else 1
    b, t, e = (int(n) for n in r.integers([1, least, least], [4, 140 if coin(0.3) else 20, 20]))
    v = config.vocab_size
    inputs = {"input_ids": r.integers(0, v, (b, t))}
    if coin(0.2):
        inputs = {"inputs_embeds": r.standard_normal((b, t, c))}
    if coin(0.3):
        inputs["token_type_ids"] = r.integers(0, v, (b, t))
    if coin(0.6):
        pads = r.integers(0, t, b)  # less than t: each row keeps a token
        columns = np.arange(t)[None]
        left = columns >= pads[:, None]
        inputs["attention_mask"] = (left if coin() else left[:, ::-1]).astype(np.int64)
    elif coin(0.4):
        inputs["position_ids"] = r.integers(0, config.n_positions, (b, t))
    if coin(0.2):
        inputs["head_mask"] = r.random((config.n_layer, n_head))
    if coin(0.4) and t > 1:
        labels = np.where(r.random((b, t)) < 0.2, -100, r.integers(0, v, (b, t)))
        real = inputs.get("attention_mask", np.ones((b, t)))
        labels[:, 1:][real[:, :-1] == 0] = -100  # what padding predicts is nobody's business
        if (labels[:, 1:] != -100).any():
            inputs["labels"] = labels
    if cross and coin(0.8):
        inputs["encoder_hidden_states"] = r.standard_normal((b, e, c))
        if coin():
            inputs["encoder_attention_mask"] = np.maximum(
                r.integers(0, 2, (b, e)), np.eye(b, e) > 0
            )
            inputs["encoder_attention_mask"][:, 0] = 1
    return config, inputs


def ours(config, tensors, inputs, dtype):
    model = GPT2(config, build_tree({k: v.astype(dtype) for k, v in tensors.items()}))
    out = model(**inputs, use_cache=False, output_attentions=True, output_hidden_states=True)
    return real(by_name(out), inputs)


def theirs(config, tensors, inputs, dtype):
    return real(torch_reference.run(config, tensors, inputs, dtype), inputs)


@pytest.mark.parametrize("seed", range(150))
def test_float64_is_theirs_to_the_last_digits(seed):
    config, inputs = random_case(seed)
    tensors = formula_tensors(config)
    found = ours(config, tensors, inputs, np.float64)
    expected = theirs(config, tensors, inputs, torch.float64)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        assert np.abs(found[key] - value).max() <= 1e-12 * np.abs(value).max(), key


def float32_errors(config, inputs):
    """For each output: its norm, our distance from float64, and theirs."""
    single = {k: v.astype("f4").astype("f8") for k, v in formula_tensors(config).items()}
    inputs = {
        k: v.astype("f4").astype("f8") if v.dtype.kind == "f" else v for k, v in inputs.items()
    }
    exact = ours(config, single, inputs, np.float64)
    found = ours(config, single, inputs, np.float32)
    peer = theirs(config, single, inputs, torch.float32)
    for key, value in exact.items():
        norm = np.linalg.norm
        yield key, norm(value), norm(found[key] - value), norm(peer[key] - value)


def redrawn(config, inputs, seed):
    """The same kinds of inputs, with other numbers."""
    r = np.random.default_rng(seed)
    again = dict(inputs)
    for name, x in inputs.items():
        if name in ("input_ids", "token_type_ids"):
            again[name] = r.integers(0, config.vocab_size, x.shape)
        elif name in ("inputs_embeds", "encoder_hidden_states"):
            again[name] = r.standard_normal(x.shape)
    return again


@pytest.mark.parametrize("seed", range(150))
def test_float32_is_no_further_from_float64_than_twice_theirs(seed):
    """In the median of five inputs: where two scores all but tie, softmax makes much of one
    rounding, theirs or ours, and which of the two it strikes depends on the BLAS kernel."""
    config, inputs = random_case(seed, roomy=True)
    ratios = {}
    for draw in range(5):
        for key, size, error, theirs_ in float32_errors(
            config, redrawn(config, inputs, [seed, draw])
        ):
            # A loss is one number, which either may hit by luck: two units in the last place.
            luck = 2 * np.finfo("f4").eps * size if key == "loss" else 0
            ratios.setdefault(key, []).append(
                0.0 if error <= luck else error / max(theirs_, 1e-300)
            )
    for key, found in ratios.items():
        assert np.median(found) <= 2, key
        assert max(found) <= 20, key


def test_reorder_and_upcast_changes_no_number():
    """Nothing is computed in less than float32 here, so there is nothing to upcast."""
    config, inputs = random_case(4, roomy=True)
    flagged = GPT2Config.from_dict({**config.to_dict(), "reorder_and_upcast_attn": True})
    tensors = formula_tensors(config)
    plain, found = (ours(c, tensors, inputs, np.float64) for c in (config, flagged))
    for key in plain:
        np.testing.assert_array_equal(found[key], plain[key])
    for key, _, error, theirs_ in float32_errors(flagged, inputs):
        assert error <= 2 * theirs_, key


def test_a_checkpoint_that_transformers_writes(tmp_path, small):
    for switches in ({}, {"tie_word_embeddings": False}, {"add_cross_attention": True}):
        model = small(**switches)
        peer = torch_reference.build(model.config, formula_tensors(model.config), torch.float32)
        peer.save_pretrained(tmp_path, max_shard_size="4KB" if switches else "5GB")
        loaded = GPT2.from_pretrained(tmp_path, dtype="float64")
        np.testing.assert_allclose(
            loaded([[1, 2, 3]]).logits, model([[1, 2, 3]]).logits, rtol=0, atol=1e-5
        )
        for file in tmp_path.iterdir():
            file.unlink()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_that_was_saved_is_theirs_too(tmp_path, tiny, dtype):
    """After surgery, in each dtype that it is saved in; the logits are ours of the same file."""
    model = GPT2.from_pretrained(tiny).resize_token_embeddings(515)
    folder = model.save_pretrained(tmp_path / "saved", dtype=dtype)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    ids = [[84, 258, 514]]
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits.numpy()
    ours = GPT2.from_pretrained(folder)(ids).logits
    assert ours.shape == (1, 3, 515)
    assert np.abs(ours - logits).max() < 1e-5 * np.abs(logits).max()


@pytest.mark.parametrize("seed", range(20))
def test_filters_are_transformers(seed):
    """One after the other in the order of GenerationOptions, on random logits without ties."""
    r = np.random.default_rng(seed)
    logits, seen = r.standard_normal(60) * 3, r.integers(0, 60, 10)
    k, p, m = int(r.integers(1, 60)), float(r.uniform(0.05, 1)), float(r.uniform(0.01, 0.5))
    t, penalty = float(r.uniform(0.2, 2)), float(r.uniform(0.8, 2))
    ids, x = torch.tensor(seen)[None], torch.tensor(logits)[None]
    warpers = [
        transformers.RepetitionPenaltyLogitsProcessor(penalty),
        transformers.TemperatureLogitsWarper(t),
        transformers.TopKLogitsWarper(k),
        transformers.TopPLogitsWarper(p),
        transformers.MinPLogitsWarper(m),
    ]
    filters = [
        lambda z: sampling.repetition_penalty(z, seen, penalty),
        lambda z: sampling.temperature(z, t),
        lambda z: sampling.top_k(z, k),
        lambda z: sampling.top_p(z, p),
        lambda z: sampling.min_p(z, m),
    ]
    found = logits
    for warper, filter_ in zip(warpers, filters, strict=True):
        x, found = warper(ids, x), filter_(found)
        expected = torch.softmax(x[0], -1).numpy()
        np.testing.assert_allclose(sampling.softmax(found), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_beam_search_is_transformers(seed, small):
    """With an end-of-text token in the vocabulary, so that texts end early, and a penalty."""
    r = np.random.default_rng(seed)
    beams, penalty = int(r.integers(2, 6)), float(r.choice([1.0, 1.3]))
    model = small("float32", eos_token_id=int(r.integers(0, 23)), n_positions=40)
    peer = torch_reference.build(model.config, formula_tensors(model.config), torch.float32)
    prompt = r.integers(0, 23, int(r.integers(1, 5))).tolist()
    options = {"num_beams": beams, "max_new_tokens": 20, "repetition_penalty": penalty}
    rows = peer.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False, num_return_sequences=beams, pad_token_id=99, **options,
    )[:, len(prompt) :]  # fmt: skip
    eos = model.config.eos_token_id
    expected = []
    for row in rows.tolist():
        text = [token for token in row if token != 99]
        expected.append(text[:-1] if text and text[-1] == eos else text)
    found = [text.ids for text in model.generate(prompt, num_samples=beams, **options)]
    assert found == expected


def test_perplexity_is_their_guides(small):
    """huggingface.co/docs/transformers/perplexity, each loss weighted by its tokens."""
    model = small("float64", n_positions=16)
    peer = torch_reference.build(model.config, formula_tensors(model.config), torch.float64)
    ids = np.random.default_rng(0).integers(0, 23, 61)
    for stride in (1, 5, 16):
        nats, previous, count = 0.0, 0, 0
        for begin in range(0, 61, stride):
            end = min(begin + 16, 61)
            window = torch.tensor(ids[begin:end])[None]
            labels = window.clone()
            labels[:, : -(end - previous)] = -100
            with torch.no_grad():
                log_p = torch.log_softmax(peer(window).logits, -1)[0, :-1]
            for target, row in zip(labels[0, 1:].tolist(), log_p, strict=True):
                if target != -100:
                    nats, count = nats - row[target].item(), count + 1
            previous = end
            if end == 61:
                break
        score = model.score(ids.tolist(), stride=stride)
        assert score.tokens == count
        assert score.nats == pytest.approx(nats, rel=1e-12)


# ── files that PyTorch writes ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_files_of_torch_save(tmp_path, tiny, zipped, dtype):
    """Written by PyTorch, read without it; converted, loaded by transformers."""
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tiny).to(getattr(torch, dtype)).eval()
    source = tmp_path / "source"
    source.mkdir()
    theirs.config.save_pretrained(source)
    torch.save(
        theirs.state_dict(), source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped
    )
    ours = GPT2.from_pretrained(source, dtype="float64")
    for name, array in named_parameters(ours.params):
        want = theirs.state_dict()[f"transformer.{name}"].to(torch.float64).numpy()
        np.testing.assert_array_equal(array, want)
    convert(source, tmp_path / "out", max_shard_size=300_000)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    assert str(again.dtype) == f"torch.{dtype}"
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_checkpoint_as_nanogpt_writes_it(tmp_path, tiny):
    """Parameters, an optimizer's state, numbers and texts in one pickle."""
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tiny)
    state = {}
    for name, t in theirs.state_dict().items():
        turned = t.T.contiguous() if ".c_" in name and t.ndim == 2 else t
        state[f"_orig_mod.{name}"] = torch.nn.Parameter(turned)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    arguments = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 128, "bias": True,
                 "vocab_size": 512, "dropout": 0.0}  # fmt: skip
    checkpoint = {
        "model": state, "optimizer": optimizer.state_dict(), "model_args": arguments,
        "iter_num": 5, "best_val_loss": torch.tensor(3.5), "config": {"dtype": "bfloat16"},
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    ours = dict(named_parameters(GPT2.from_pretrained(tmp_path).params))
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs.state_dict()[f"transformer.{name}"].numpy())


# ── other heads ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_that_transformers_saved(kind, tmp_path):
    torch.manual_seed(0)
    labels = {"id2label": {0: "no", 1: "yes", 2: "maybe"}, "summary_activation": "tanh"}
    config = transformers.GPT2Config(**SMALL, **labels, bos_token_id=0, eos_token_id=0,
                                     pad_token_id=3, initializer_range=0.3)  # fmt: skip
    peer = getattr(transformers, kind)(config).double().eval()
    peer.save_pretrained(tmp_path / "model")
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    ids = np.where(mask, np.random.default_rng(0).integers(4, 23, mask.shape), 3)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if kind == "GPT2DoubleHeadsModel":
        inputs = {name: x[None] for name, x in inputs.items()}
        inputs["mc_token_ids"] = np.array([[3, 2]])
    with torch.no_grad():
        given = {name: torch.tensor(x) for name, x in inputs.items()}
        if kind == "GPT2DoubleHeadsModel":  # its mask has no axis for choices
            del given["attention_mask"]
        expected = peer(**given)
    model = GPT2WithHead.from_pretrained(tmp_path / "model", "float64")
    found = model(**inputs)
    assert found.keys() == {name for name in expected if name.endswith("logits")}
    real = inputs["attention_mask"] == 1
    for key, x in found.items():
        y = expected[key].numpy()
        assert x.shape == y.shape
        rows = real if x.shape[: real.ndim] == real.shape else slice(None)
        assert np.abs(x - y)[rows].max() <= 1e-12 * np.abs(y).max()
    out = export(tmp_path / "model", tmp_path / "out")
    for key, x in OnnxWithHead.from_pretrained(out)(**inputs).items():
        rows = real if x.shape[: real.ndim] == real.shape else slice(None)
        assert np.abs(x - found[key])[rows].max() <= 1e-5 * np.abs(found[key]).max()
    assert set(model.config.labels) <= {"no", "yes", "maybe"}
