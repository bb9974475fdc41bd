"""Heads other than the language model's: compared with PyTorch, in ONNX, as a command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cases import HEAD_CASES, IDS, SMALL, config_of, formula_tensors, with_head
from command_line import runner

from npgpt2 import GPT2, GPT2Config, GPT2WithHead
from npgpt2.base.errors import CheckFailed, CheckpointError, ConfigError, InputError
from npgpt2.checkpoints.checkpoint import Checkpoint, save
from npgpt2.checkpoints.convert import convert
from npgpt2.heads import LONGEST
from npgpt2.model.config import HEADS
from npgpt2.model.params import build_tree
from npgpt2_onnx import OnnxModel, OnnxWithHead, export
from npgpt2_onnx.graph import heads
from npgpt2_onnx.graph.ops import to_int
from npgpt2_onnx.run.session import loads

EXPECTED = json.loads((Path(__file__).parent / "data" / "expected.json").read_text())["heads"]


def build(config, dtype="float64"):
    tensors = {name: x.astype(dtype) for name, x in formula_tensors(config).items()}
    return GPT2WithHead(config, build_tree(tensors))


def checkpoint(folder, name, tiny=None, **switches):
    """A folder with one of the cases' models; with `tiny`, its vocabulary."""
    config = config_of(name)
    if tiny is not None:
        switches |= {"vocab_size": 512, "n_positions": 32}
    values = {**SMALL, **HEAD_CASES[name][0], **switches}
    config = GPT2Config(**values)
    folder.mkdir()
    save(folder, config, build(config, "float32").params)
    for file in ("tokenizer.json", "tokenizer_config.json") if tiny is not None else ():
        shutil.copy(tiny / file, folder)
    return folder


@pytest.fixture
def cli(capsys):
    return runner(capsys)


@pytest.mark.parametrize("name", HEAD_CASES)
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 2e-5)])
def test_numbers_are_pytorchs(name, dtype, bound):
    found = build(config_of(name), dtype)(**HEAD_CASES[name][1])
    assert found.keys() == EXPECTED[name].keys()
    for key, expected in EXPECTED[name].items():
        x = found[key][..., :2] if found[key].ndim == 4 else found[key]
        assert x.dtype == dtype
        assert x.shape == np.shape(expected)
        assert np.abs(x - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("name", HEAD_CASES)
@pytest.mark.parametrize("opset", [17, 23])
def test_the_graph_computes_the_same(name, opset, tmp_path):
    if not loads(opset):
        pytest.skip(f"the onnxruntime that is installed does not load opset {opset}")
    folder = checkpoint(tmp_path / "model", name)
    out = export(folder, tmp_path / "out", opset=opset)
    assert [p.name for p in sorted((out / "onnx").iterdir())] == ["model.onnx", "model.onnx_data"]
    assert not (out / "genai_config.json").exists()
    found = OnnxWithHead.from_pretrained(out)(**HEAD_CASES[name][1])
    assert found.keys() == EXPECTED[name].keys()
    for key, expected in EXPECTED[name].items():
        x = found[key][..., :2] if found[key].ndim == 4 else found[key]
        assert np.abs(x - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["sequences", "tokens", "answers", "choices, own head"])
def test_every_precision_and_shared_weights(name, tmp_path):
    folder = checkpoint(tmp_path / "model", name)
    out = export(folder, tmp_path / "out", precisions=["fp32", "fp16", "int8", "int4"])  # proved
    assert len(list((out / "onnx").glob("*.onnx"))) == 4
    export(folder, share_weights=True)
    inputs = HEAD_CASES[name][1]
    shared, own = OnnxWithHead.from_pretrained(folder), OnnxWithHead.from_pretrained(out)
    for key, x in own(**inputs).items():
        np.testing.assert_array_equal(shared(**inputs)[key], x)
    half = OnnxWithHead.from_pretrained(out, "fp16")(**inputs)
    assert all(x.dtype == np.float32 for x in half.values())


def mask_alone(g, ids, mask, pad, plain=heads.last_real):
    return plain(g, ids, mask, None)


def before_the_first_pad(g, ids, mask, pad):
    padding = to_int(g, g.op("Equal", ids, g.constant(pad)))
    return g.op("Sub", g.op("ArgMax", padding, axis=1, keepdims=0), g.constant(1))


def columns_first(g, x, rows):
    order = g.op("Gather", rows, g.constant([1, 0]))
    turned = g.op("Concat", order, g.op("Shape", x, start=1), axis=0)
    return g.op("Transpose", g.op("Reshape", x, turned), perm=[1, 0, 2, 3])


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        ("sequences, masked", "last_real", mask_alone),
        ("sequences, masked", "last_real", before_the_first_pad),
        ("choices", "_unfolded", columns_first),
    ],
)
def test_a_graph_that_is_wired_wrong_does_not_appear(tmp_path, monkeypatch, name, part, wrong):
    folder = checkpoint(tmp_path / "model", name)
    monkeypatch.setattr(heads, part, wrong)
    with pytest.raises(CheckFailed, match=r"^model\.onnx: (a row|batch)"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_padding_is_read_from_the_ids_or_else_the_mask():
    inputs = {"input_ids": IDS, "attention_mask": [[1] * 5 + [0] * 2, [1] * 7]}
    by_mask = build(GPT2Config(**SMALL, **with_head("ForSequenceClassification")))
    alone = by_mask(IDS[:1, :5])["logits"][0]
    assert np.abs(by_mask(**inputs)["logits"][0] - alone).max() < 1e-12
    # With an id of padding the mask does not decide: as in transformers.
    by_id = build(GPT2Config(**SMALL, **with_head("ForSequenceClassification", pad_token_id=22)))
    assert 22 not in IDS
    assert np.abs(by_id(**inputs)["logits"][0] - alone).max() > 1e-3


# ── what a person asks ───────────────────────────────────────────────────────────────────────────


def test_labels_with_their_probabilities():
    model = build(config_of("sequences"))
    found = model.classify(IDS[1].tolist())
    logits = model(IDS[1:])["logits"][0]
    probs = dict(zip(("no", "yes", "maybe"), np.exp(logits) / np.exp(logits).sum(), strict=True))
    assert [label for label, _ in found] == sorted(probs, key=lambda label: -probs[label])
    assert dict(found) == pytest.approx(probs)


def test_labels_that_exclude_nothing_and_numbers_that_are_no_probabilities():
    switches = dict(HEAD_CASES["sequences"][0])
    logits = build(config_of("sequences"))(IDS[1:])["logits"][0]
    several = build(GPT2Config(**SMALL, **switches, problem_type="multi_label_classification"))
    chances = dict(zip(("no", "yes", "maybe"), 1 / (1 + np.exp(-logits)), strict=True))
    assert dict(several.classify(IDS[1])) == pytest.approx(chances)
    numbers = build(GPT2Config(**SMALL, **switches, problem_type="regression")).classify(IDS[1])
    assert sorted(score for _, score in numbers) == pytest.approx(sorted(logits))
    [(label, reward)] = build(config_of("a reward")).classify(IDS[0])
    assert (label, reward) == ("reward", pytest.approx(EXPECTED["a reward"]["logits"][0][0]))


def test_outputs_are_attributes_too():
    out = build(config_of("tokens"))(IDS)
    assert out.logits is out["logits"]
    with pytest.raises(AttributeError, match=r"^no output 'loss', expected logits$"):
        _ = out.loss


def test_each_token_has_a_label():
    model = build(config_of("tokens"))
    found = model.classify_tokens(IDS[0])
    logits = np.array(EXPECTED["tokens"]["logits"][0])
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert [t.id for t in found] == IDS[0].tolist()
    assert [("no", "yes", "maybe").index(t.label) for t in found] == probs.argmax(-1).tolist()
    assert [t.score for t in found] == pytest.approx(probs.max(-1).tolist())


def test_an_answer_is_the_most_probable_span_of_the_text():
    model = build(GPT2Config(**SMALL | {"n_positions": 64}, **with_head("ForQuestionAnswering")))
    # Of this text the best span of all is too long.
    question, text = [1, 2, 3], np.random.default_rng(17).integers(0, 23, 40).tolist()
    out = model([question + text])
    begin, end = (out[f"{at}_logits"][0, 3:] for at in ("start", "end"))
    begin, end = (np.exp(x) / np.exp(x).sum() for x in (begin, end))
    best = max(
        (begin[i] * end[j], i, j + 1) for i in range(40) for j in range(i, min(40, i + LONGEST))
    )
    found = model.answer(question, text)
    assert (found.start, found.end) == best[1:]
    assert found.score == pytest.approx(best[0])
    assert 0 < found.end - found.start <= LONGEST


def test_nothing_to_look_at():
    model = build(config_of("answers"))
    with pytest.raises(InputError) as error:
        model.answer([1, 2], [])
    assert str(error.value) == "text: is empty, expected a text that contains the answer"
    assert model.answer([], [1]).end == 1
    with pytest.raises(InputError) as error:
        build(config_of("choices")).choose([])
    assert str(error.value) == "texts: the list is empty, expected at least one"


def test_a_choice_is_what_it_is_alone():
    model = build(config_of("choices, own head"))
    texts = [[1, 2, 3, 4], [5, 6], [7]]
    alone = np.array([model([[text]])["mc_logits"][0, 0] for text in texts])
    assert model.choose(texts) == pytest.approx((np.exp(alone) / np.exp(alone).sum()).tolist())


def test_labels_of_one_name_are_two(cli, tmp_path, tiny):
    names = {"id2label": {0: "same", 1: "same", 2: "\x1b[2J"}}
    folder = checkpoint(tmp_path / "model", "sequences", tiny, **names)
    code, out, _ = cli("classify", "the king", "--model", folder)
    assert code == 0
    assert sorted(line.split()[1] for line in out.splitlines()) == ["\\x1b[2J", "same", "same"]


@pytest.mark.parametrize("name", ["sequences", "tokens", "answers", "choices"])
def test_no_answer_from_nan(name):
    config = config_of(name)
    tensors = {
        n: x * np.nan if n == "wte.weight" else x for n, x in formula_tensors(config).items()
    }
    model = GPT2WithHead(config, build_tree(tensors))
    ask = {
        "score": model.classify,
        "classifier": model.classify_tokens,
        "qa_outputs": lambda ids: model.answer(ids, ids),
        "multiple_choice_head": lambda ids: model.choose([ids]),
    }
    with pytest.raises(CheckpointError, match=r"^logits: NaN or infinity"):
        ask[config.head]([1, 2, 3])


# ── whose is whose ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["sequences", "tokens", "answers", "choices, own head"])
def test_a_checkpoint_keeps_its_head(name, tmp_path):
    config, inputs = config_of(name), HEAD_CASES[name][1]
    folder = checkpoint(tmp_path / "model", name)
    assert Checkpoint.open(folder).config == config
    assert GPT2Config.from_dict(config.to_dict()) == config
    again = convert(folder, tmp_path / "again", "float32", max_shard_size=2000)
    assert again.config == config
    one, two = (GPT2WithHead.from_pretrained(at) for at in (folder, tmp_path / "again"))
    for key, x in one(**inputs).items():
        np.testing.assert_array_equal(two(**inputs)[key], x)


def test_what_chooses_writes_as_well(tmp_path):
    folder = checkpoint(tmp_path / "model", "choices, own head")
    model, chooser = GPT2.from_pretrained(folder), GPT2WithHead.from_pretrained(folder)
    assert model.config.head == "lm_head"
    assert model.params.multiple_choice_head is None
    ids = HEAD_CASES["choices"][1]["input_ids"]
    assert np.abs(model(ids[0]).logits - chooser(ids)["logits"][0]).max() < 1e-5


def test_each_is_told_what_it_is(tmp_path, tiny):
    folder = checkpoint(tmp_path / "model", "sequences")
    with pytest.raises(ConfigError) as error:
        GPT2.from_pretrained(folder)
    assert str(error.value) == (
        f"{folder}: is a GPT2ForSequenceClassification, expected a language model. "
        "'npgpt2 classify' runs it, in Python npgpt2.GPT2WithHead"
    )
    with pytest.raises(ConfigError) as error:
        GPT2WithHead.from_pretrained(tiny)
    assert str(error.value) == (
        f"{tiny}: is a language model, expected one of {', '.join(HEADS)}. "
        "Use 'npgpt2 generate', or npgpt2.GPT2 in Python"
    )
    with pytest.raises(ConfigError) as error:
        GPT2WithHead.from_pretrained(folder).choose([[1]])
    assert str(error.value) == (
        f"{folder}: is a GPT2ForSequenceClassification, expected a GPT2DoubleHeadsModel"
    )
    out = export(folder, tmp_path / "out")
    with pytest.raises(ConfigError) as error:
        OnnxModel.from_pretrained(out)
    assert str(error.value) == (
        f"{out}/onnx/model.onnx: got a GPT2ForSequenceClassification, expected a language "
        "model. 'npgpt2 classify' runs it, in Python OnnxWithHead"
    )
    with pytest.raises(ConfigError, match="got a language model, expected one of GPT2For"):
        OnnxWithHead.from_pretrained(export(tiny, tmp_path / "writes"))


def test_a_head_that_is_not_there(tmp_path):
    folder = checkpoint(tmp_path / "model", "sequences")
    values = json.loads((folder / "config.json").read_text())
    values["architectures"] = ["GPT2ForTokenClassification"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(folder)
    assert str(error.value) == (
        f"{folder}: classifier.weight, classifier.bias missing, 2 of 42; 1 unexpected "
        "(score.weight). Expected the tensors of the GPT-2 in config.json, with architecture "
        "GPT2ForTokenClassification: score is of a GPT2ForSequenceClassification"
    )


SCORE = {"architectures": ["GPT2ForSequenceClassification"]}
CHOICE = {"architectures": ["GPT2DoubleHeadsModel"]}
NAMES = "expected a name for each label number from 0"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (SCORE | {"id2label": {"a": "0"}}, f"id2label: got {{'a': '0'}}, {NAMES}"),
        (SCORE | {"id2label": ["a"]}, f"id2label: got ['a'], {NAMES}"),
        (SCORE | {"id2label": 5}, f"id2label: got 5, {NAMES}"),
        (
            CHOICE | {"summary_type": "mean"},
            "summary_type is 'mean': not implemented here. Expected 'cls_index'",
        ),
        (
            CHOICE | {"summary_use_proj": False},
            "summary_use_proj is False: not implemented here. Expected True",
        ),
        (
            CHOICE | {"summary_proj_to_labels": 0},
            "summary_proj_to_labels is 0: not implemented here. Expected True",
        ),
        (CHOICE | {"summary_activation": "bent"}, "summary_activation: got 'bent', expected null"),
        (CHOICE | {"summary_activation": ["tanh"]}, "summary_activation: got ['tanh'], expected"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_meant(values, text):
    with pytest.raises(ConfigError) as error:
        GPT2Config.from_dict(values, "config.json")
    assert str(error.value).startswith(f"config.json: {text}")


def test_labels_of_old_configs():
    def labels(**values):
        return GPT2Config.from_dict(SCORE | values).labels

    assert labels() == ("LABEL_0", "LABEL_1")
    assert labels(num_labels=3) == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert labels(id2label={"1": "b", "0": "a"}, num_labels=2) == ("a", "b")
    assert labels(id2label={"1": "b", "0": "a"}, num_labels=1) == ("LABEL_0",)  # theirs, too
    assert labels(id2label={"0": 0, "2": "c"}) == ("0", "LABEL_1")
    with pytest.raises(ConfigError, match=r"^architectures: got \('', 5\), expected names"):
        GPT2Config(architectures=("", 5))
    assert GPT2Config(architectures=()).head == "lm_head"
    for name in ("summary_activation", "problem_type"):
        with pytest.raises(ConfigError, match=rf"^{name}: got 5, expected null or one of \w+, "):
            GPT2Config(**{name: 5})
    # Of a model that gives none they are nobody's business.
    assert GPT2Config.from_dict({"id2label": {"x": []}, "summary_type": "attn"}) == GPT2Config()
    framework = GPT2Config.from_dict({"architectures": ["TFGPT2ForSequenceClassification"]})
    assert framework.head == "score"


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"input_ids": IDS}, "input_ids: got shape (2, 7), expected (B, N, T)"),
        (
            {"input_ids": IDS[None], "attention_mask": IDS > 0},
            "attention_mask: got shape (2, 7), expected (1, 2, 7)",
        ),
        (
            {"input_ids": IDS[None], "mc_token_ids": [[7, 0]]},
            "mc_token_ids: got 7 at (0, 0), expected 0 to 6",
        ),
        (
            {"input_ids": IDS[None], "mc_token_ids": [7, 0]},
            "mc_token_ids: got shape (2,), expected (1, 2)",
        ),
    ],
)
def test_choices_that_do_not_fit(inputs, text, tmp_path):
    out = export(checkpoint(tmp_path / "model", "choices"), tmp_path / "out")
    for model in (build(config_of("choices")), OnnxWithHead.from_pretrained(out)):
        with pytest.raises(InputError) as error:
            model(**inputs)
        assert str(error.value) == text


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"input_ids": [[-1, 3]]}, "input_ids: got -1 at (0, 0), expected 0 to 22"),
        ({"input_ids": [[1, 23]]}, "input_ids: got 23 at (0, 1), expected 0 to 22"),
        ({"input_ids": [[1.5, 2]]}, "input_ids: got dtype float64, expected integers"),
        ({"input_ids": [1, 2]}, "input_ids: got shape (2,), expected (B, T)"),
        ({"input_ids": [[]]}, "input_ids: got shape (1, 0), expected (B, T)"),
        (
            {"input_ids": [[1] * 17]},
            "input_ids: are longer than the context: 17 > 16 tokens",
        ),
        (
            {"input_ids": [[1, 2]], "attention_mask": [[2, 1]]},
            "attention_mask: got other values, expected 1 for real tokens, 0 for padding",
        ),
    ],
)
def test_inputs_that_do_not_fit(inputs, text, tmp_path):
    out = export(checkpoint(tmp_path / "model", "sequences"), tmp_path / "out")
    for model in (build(config_of("sequences")), OnnxWithHead.from_pretrained(out)):
        with pytest.raises(InputError) as error:
            model(**inputs)
        assert str(error.value) == text


# ── on the command line ──────────────────────────────────────────────────────────────────────────


def both(folder, tmp_path):
    """Arguments for one engine, and for the other."""
    export(folder, tmp_path / "out")
    return ["--model", folder], ["--model", tmp_path / "out", "--engine", "onnx"]


def test_classify_texts(cli, tmp_path, tiny):
    folder = checkpoint(tmp_path / "model", "sequences", tiny)
    model = GPT2WithHead.from_pretrained(folder)
    for engine in both(folder, tmp_path):
        code, out, _ = cli("classify", "the king", "O Romeo", *engine)
        rows = [f"{score:.4f}  {label}" for label, score in model.classify("the king")]
        assert code == 0
        assert out.splitlines()[:4] == ["the king", *rows]
        code, out, _ = cli("classify", "the king", "--json", *engine)
        found = [(one["label"], one["score"]) for one in json.loads(out)["labels"]]
        assert dict(found) == pytest.approx(dict(model.classify("the king")), abs=1e-6)


def test_classify_tokens(cli, tmp_path, tiny):
    folder = checkpoint(tmp_path / "model", "tokens", tiny)
    for engine in both(folder, tmp_path):
        code, out, _ = cli("classify", "O Romeo", *engine)
        assert code == 0
        assert [line.split()[1] for line in out.splitlines()] == ["O", "ĠR", "ome", "o"]
        code, out, _ = cli("classify", "O Romeo", "--json", *engine)
        assert [t["piece"] for t in json.loads(out)["tokens"]] == ["O", "ĠR", "ome", "o"]


def test_classify_answers(cli, tmp_path, tiny):
    folder = checkpoint(tmp_path / "model", "answers", tiny)
    text = "the king of the night"
    found = GPT2WithHead.from_pretrained(folder).answer("Who?", text)
    assert found.text in text
    for engine in both(folder, tmp_path):
        code, out, _ = cli("classify", "Who?", text, *engine)
        assert (code, out) == (0, f"{found.score:.4f}  {found.text}\n")
        code, out, _ = cli("classify", "Who?", text, "--json", *engine)
        assert json.loads(out)["answer"] == found.text
    code, out, err = cli("classify", "Who?", "--model", folder)
    assert (code, out) == (2, "")
    assert err == (
        "npgpt2: error: TEXT: got 1, expected two: a question and a text with its answer\n"
    )


def test_classify_choices(cli, tmp_path, tiny):
    folder = checkpoint(tmp_path / "model", "choices, own head", tiny)
    texts = ["the king", "O Romeo, Romeo", "a"]
    scores = GPT2WithHead.from_pretrained(folder).choose(texts)
    ordered = sorted(zip(scores, texts, strict=True), reverse=True)
    for engine in both(folder, tmp_path):
        code, out, _ = cli("classify", *texts, *engine)
        assert (code, out) == (0, "".join(f"{s:.4f}  {text}\n" for s, text in ordered))
    assert cli("generate", "a", "--model", folder, "--max-new-tokens", "2")[0] == 0


def test_verify_and_inspect_and_check(cli, tmp_path, tiny):
    folder = checkpoint(tmp_path / "model", "answers", tiny)
    out = export(folder, tmp_path / "out")
    code, text, _ = cli("verify", out, "--against", folder)
    assert code == 0
    assert "42 of 42 parameters match the checkpoint" in text
    assert "batch padded left" in text
    code, _, err = cli("verify", out, "--text", tiny / "config.json")
    assert (code, err) == (
        2, "npgpt2: error: --text: got a GPT2ForQuestionAnswering, expected a language model\n"
    )  # fmt: skip
    assert cli("inspect", "--model", folder)[1].endswith("; the head is qa_outputs\n")
    assert cli("inspect", "qa_outputs.weight[0, 0]", "--model", folder)[0] == 0
    assert cli("check", folder)[0] == 0
    for option in (["--graph", "gqa"], ["--attentions"]):
        code, _, err = cli("export", folder, "-o", tmp_path / "no", *option)
        assert code == 2
        assert err.startswith(f"npgpt2: error: {option[0]}: ")
    assert not (tmp_path / "no").exists()
