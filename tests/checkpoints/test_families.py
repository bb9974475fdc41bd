"""The GPT-2s that people have: distilgpt2, DialoGPT, Cerebras-GPT, CodeParrot, Mistral, uer, CKIP,
rinna and others, as they lie on the hub, in small.

Each has the keys of its own config.json with widths and depths shrunk, its kind of vocabulary with
its file names, and weights that transformers made, in the kind of file that it is published in.
"""

import json
import re
import shutil
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from npgpt2 import GPT2, GPT2Config, load_tokenizer
from npgpt2.base.errors import InputError
from npgpt2.checkpoints.convert import convert
from npgpt2.tokenizer.byte_pair import BytePairTokenizer
from npgpt2.tokenizer.files import FILES

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

TINY = (
    Path(__file__).parents[1] / "data" / "tiny"
)  # byte-level BPE of 512 tokens, <|endoftext|> is 0

TEXTS = [
    "这是很久之前的事情了", "北京 上海 广州", "生命、宇宙、そして万物についての究極の疑問の答えは",
    "昨日私は京都で", "カタカナ ﾊﾝｶｸ ガ ぱ", "全角　空白　ＡＢＣ１２３①", "한글 글자",
    "漢字かなカナ。「引用」", "Hello, World!", "hello world", "THE KING",
    "it's we'll I'VE 'tis don't isn't", "naïve café É ß Ï", "e\u0301 \u0600", "ﬁ Ⅷ ½ x²",
    "1234567890 3.14 1,000", "a", " ", "  a", "a  b   c    ", "\n", "a\nb", "a\n\n  b\tc",
    "\r\nx", "", "👍🏽 a👍b 🇨🇭", "👩\u200d👩\u200d👧\u200d👦", "\u200d\ufeff\u00a0x\u200b",
    "\x00\x7f x", "мир ελλ", "def f(x):\n    return x  # comment\n",
    "https://a.example/b?c=d&e=f", "mr. & mrs. x; (y) [z] {w}", "<|endoftext|>a<|endoftext|>",
    "<|endoftext", "[CLS]你好[SEP]", "[MASK] 好 [UNK][PAD]x", "[cls] [ CLS ]", "<s>昨日</s>",
    "<unk>x<s>", "a <s> b</s> c", "[HL]北京[HL] [EOS]", "ab" * 40, "あ" * 40, "王了" * 40,
]  # fmt: skip

# What nearly every config.json has, its widths and depths shrunk.
COMMON = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "embd_pdrop": 0.1, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_embd": 32, "n_head": 2, "n_layer": 3, "n_positions": 64,
    "resid_pdrop": 0.1,
}  # fmt: skip
SUMMARY = {
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
}  # fmt: skip
SCALES = {
    "reorder_and_upcast_attn": False, "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
}  # fmt: skip
MISTRAL = SCALES | {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True}
END = {"bos_token_id": 0, "eos_token_id": 0}


def samples(length):
    return {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": length}}}


def write_json(folder, **tables):
    for name, table in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(table, ensure_ascii=False), "utf-8")


# ── vocabularies ─────────────────────────────────────────────────────────────────────────────────


def gpt2_vocabulary(*more, **settings):
    """OpenAI's two files and the small ones; `more` names others of tiny's to have."""

    def write(folder):
        for name in ("vocab.json", "merges.txt", *more):
            shutil.copyfile(TINY / name, folder / name)
        ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
        write_json(folder, special_tokens_map=ends)
        if settings:
            write_json(folder, tokenizer_config=settings)

    return write


CHINESE = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
           "mask_token": "[MASK]"}  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789éÉïß"


def bert_vocabulary(added=None, **settings):
    """vocab.txt as Google's Chinese BERT has it: single characters, and pieces of words."""

    def write(folder):
        asian = sorted({c for text in TEXTS for c in text if c.isalpha() and c > "\u2e80"})
        pieces = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<S>", *asian]
        pieces += [*LETTERS, *(f"##{c}" for c in LETTERS), *"!\"#$%&'()*+,-./:;=?[]。、「」"]
        pieces += ["hello", "the", "##ld", "##ing"]
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
        write_json(folder, special_tokens_map=CHINESE, tokenizer_config=CHINESE | settings)
        if added:
            write_json(folder, added_tokens={t: len(pieces) + n for t, n in added.items()})

    return write


RINNA = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]", "bos_token": "<s>",
         "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}  # fmt: skip


def rinna_vocabulary(folder):
    """spiece.model by SentencePiece, whose own tokens are <unk>, <s> and </s>: 0, 1 and 2."""
    text = folder / "text"
    text.write_text("\n".join(t.lower() for t in TEXTS if t[:1] not in "\x00[<") * 3, "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=300, minloglevel=2,
        user_defined_symbols=["[PAD]", "[CLS]", "[SEP]", "[MASK]"], hard_vocab_limit=False,
        character_coverage=0.98,
    )  # fmt: skip
    text.unlink()
    (folder / "spiece.vocab").unlink()
    more = {"extra_ids": 0, "additional_special_tokens": [], "sp_model_kwargs": {},
            "do_lower_case": True, "tokenizer_class": "T5Tokenizer"}  # fmt: skip
    write_json(folder, special_tokens_map=RINNA, tokenizer_config=RINNA | more)


# ── families ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Family:
    config: dict  # what its config.json has besides COMMON; vocab_size where it is padded
    vocabulary: object
    prompt: str
    dtype: str = "float32"
    # How the causal masks lie among the weights: their dtype, and whether a -10000 lies there too.
    # None: model.safetensors, which has none.
    masks: tuple | None = ("uint8", True)
    zipped: bool = True  # torch.save before 1.6 wrote a stream
    head: bool = True  # lm_head.weight is there as well
    without: tuple = field(default=())  # keys of COMMON that this config.json does not have


FAMILIES = {
    "distilgpt2": Family(
        {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "n_ctx": 64,
         **SUMMARY, **samples(50), **END},
        gpt2_vocabulary("tokenizer.json", model_max_length=1024),
        "O Romeo, ", masks=None, head=False,
    ),
    "distilgpt2 of 2019": Family(
        {"finetuning_task": None, "n_ctx": 64, "num_labels": 1, "output_attentions": False,
         "output_hidden_states": True, "pruned_heads": {}, "torchscript": False,
         "use_bfloat16": False, **SUMMARY},
        gpt2_vocabulary(), "O Romeo, ", masks=("float32", False), zipped=False,
        without=("activation_function", "architectures"),
    ),
    "DialoGPT": Family(
        {"n_ctx": 64, "task_specific_params": {"conversational": {"max_length": 1000}},
         **SUMMARY, **END},
        gpt2_vocabulary(model_max_length=1024, chat_template="{% for m in messages %}"
                        "{{ m.content }}{{ eos_token }}{% endfor %}"),
        "Good morrow, sir.<|endoftext|>", dtype="float16", masks=("float16", False), zipped=False,
    ),
    "Cerebras-GPT": Family(
        {"activation_function": "gelu", "attn_pdrop": 0.0, "embd_pdrop": 0.0, "n_inner": 96,
         "resid_pdrop": 0.0, "torch_dtype": "float32", "transformers_version": "4.27.2",
         "use_cache": True, **SCALES, **SUMMARY, **END},
        gpt2_vocabulary(), "The king ", masks=("bool", False),
    ),
    "CodeParrot": Family(
        {"_name_or_path": "codeparrot", "bos_token_id": 50256, "eos_token_id": 50256, "n_ctx": 64,
         "n_inner": None, "torch_dtype": "float32", "use_cache": True,
         **MISTRAL, **SUMMARY, **samples(50)},
        gpt2_vocabulary("tokenizer.json", unk_token="<|endoftext|>", add_prefix_space=False,
                        tokenizer_class="GPT2Tokenizer", name_or_path="gpt2"),
        "def f(x):\n",
    ),
    "Mistral (CRFM)": Family(
        {"gradient_checkpointing": False, "n_ctx": 64, "n_inner": None, "use_cache": False,
         **MISTRAL, **SUMMARY, **samples(50), **END},
        gpt2_vocabulary(add_prefix_space=False, tokenizer_class="GPT2Tokenizer"),
        "The king ", dtype="float16",
    ),
    "BigScience tr3m": Family(
        {"activation_function": "gelu_fast", "n_ctx": 64, "n_inner": 128, "vocab_size": 640,
         "return_dict": True, "tie_encoder_decoder": False, "max_length": 20, "do_sample": False,
         "bad_words_ids": None, "scale_attn_weights": True, **SUMMARY, **END},
        gpt2_vocabulary(), "The king ", dtype="float16", masks=("uint8", False),
    ),
    "uer": Family(
        {"gradient_checkpointing": False, "n_ctx": 128, "n_inner": None, "output_past": True,
         "tokenizer_class": "BertTokenizer", **samples(320)},
        bert_vocabulary(do_lower_case=False, model_max_length=1024),
        "这是很久之前的事情了", head=False, zipped=False,
    ),
    "uer, lower-cased": Family(
        {"n_ctx": 64, "output_past": True, "tokenizer_class": "BertTokenizer", "id2label":
         {"0": "LABEL_0"}, "bos_token_id": 50256, "eos_token_id": 50256, **SUMMARY},
        bert_vocabulary(), "北京 the king", head=False,
    ),
    "CKIP": Family(
        {"bos_token_id": 3, "eos_token_id": 4, "gradient_checkpointing": False, "n_ctx": 64,
         "n_inner": None, "tokenizer_class": "BertTokenizerFast", "use_cache": True,
         "transformers_version": "4.5.1", **SUMMARY, **samples(50)},
        # A model that was made of CKIP's: its new tokens do not stand in the order of their ids.
        bert_vocabulary({"[HL]": 1, "[EOS]": 0}, do_lower_case=False, strip_accents=None,
                        tokenize_chinese_chars=True),
        "[HL]北京[HL] 是", masks=("uint8", True),
    ),
    "rinna": Family(
        {"bos_token_id": 1, "eos_token_id": 2, "gradient_checkpointing": False, "n_ctx": 48,
         "n_inner": 144, "scale_attn_weights": True, "tokenizer_class": "T5Tokenizer",
         "use_cache": True, **SUMMARY, **samples(50)},
        rinna_vocabulary, "生命、宇宙、そして",
    ),
}  # fmt: skip


def published(family, folder):
    """A checkpoint folder as its makers uploaded it."""
    family.vocabulary(folder)
    values = {k: v for k, v in (COMMON | family.config).items() if k not in family.without}
    values.setdefault("vocab_size", load_tokenizer(folder).size)
    write_json(folder, config=values)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values))
    for weight in model.parameters():  # fresh biases are all zero, and scores too small to differ
        weight.data += 0.3 * torch.randn_like(weight)
    model.to(getattr(torch, family.dtype))
    if family.masks is None:
        model.save_pretrained(folder)
        write_json(folder, config=values)
        (folder / "generation_config.json").unlink()
        return
    state = model.state_dict()
    if not family.head:
        del state["lm_head.weight"]
    kind, value = family.masks
    positions = values["n_positions"]
    for layer in range(values["n_layer"]):
        mask = torch.ones(positions, positions).tril()[None, None].to(getattr(torch, kind))
        state[f"transformer.h.{layer}.attn.bias"] = mask
        if value:
            state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=family.zipped)


@dataclass(frozen=True)
class Case:
    name: str
    family: Family
    folder: Path
    tokenizer: object  # transformers', of the same folder


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    folder, family = tmp_path_factory.mktemp("family"), FAMILIES[request.param]
    published(family, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return Case(request.param, family, folder, tokenizer)


def theirs(folder, **switches):
    settings = {"dtype": torch.float32, "attn_implementation": "eager"} | switches
    return transformers.GPT2LMHeadModel.from_pretrained(folder, **settings).eval()


# ── the model ────────────────────────────────────────────────────────────────────────────────────


def test_logits(case):
    vocab_size = GPT2Config.from_file(case.folder / "config.json").vocab_size
    ids = np.random.default_rng(1).integers(0, vocab_size, (2, 40))
    with torch.no_grad():
        # Their upcast is to float32, from whatever: it is left out where float64 is compared.
        exact = theirs(case.folder, dtype=torch.float64, reorder_and_upcast_attn=False)
        exact = exact(torch.tensor(ids)).logits.numpy()
        single = theirs(case.folder)(torch.tensor(ids)).logits.numpy()
    largest = np.abs(exact).max()
    assert largest > 1
    for dtype, bound in (("float64", 1e-12), ("float32", 2e-6)):
        found = GPT2.from_pretrained(case.folder, dtype=dtype)(ids).logits
        assert np.abs(found - exact).max() <= bound * largest
    assert np.abs(single - exact).max() <= 2e-6 * largest


def test_greedy_text(case):
    """Ids and text; theirs keeps the end-of-text token, ours says it as the reason to stop."""
    model, peer = GPT2.from_pretrained(case.folder), theirs(case.folder)
    prompt = case.tokenizer.encode(case.family.prompt, add_special_tokens=False)
    row = peer.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False, max_new_tokens=20, pad_token_id=0, return_dict_in_generate=False,
    )[0, len(prompt) :].tolist()  # fmt: skip
    found = model.generate(case.family.prompt, max_new_tokens=20, temperature=0)[0]
    ended = found.finish_reason != "length"
    assert ended == (row[-1] == peer.config.eos_token_id)
    assert found.ids == row[: len(row) - ended]
    assert len(found.ids) > 2
    assert found.text == case.tokenizer.decode(found.ids)
    pieces = model.stream(case.family.prompt, max_new_tokens=20, temperature=0)
    assert "".join(pieces) == found.text


def test_converted(case, tmp_path):
    """A folder that transformers loads: the same tensors, the same vocabulary."""
    convert(case.folder, tmp_path / "out")
    before, after = (theirs(folder, dtype="auto") for folder in (case.folder, tmp_path / "out"))
    assert str(after.dtype) == f"torch.{case.family.dtype}"
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), name
    carried = [name for name in FILES if (case.folder / name).exists()]
    assert len(carried) > 1
    for name in carried:
        assert (tmp_path / "out" / name).read_bytes() == (case.folder / name).read_bytes()
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert again.encode(text) == case.tokenizer.encode(text)


def test_exported(case, tmp_path):
    """Every graph is held against NumPy on the way; then the text that the folder writes."""
    onnx = pytest.importorskip("npgpt2_onnx")
    folder = onnx.export(case.folder, tmp_path / "out")
    options = {"max_new_tokens": 8, "temperature": 0}
    want = GPT2.from_pretrained(case.folder).generate(case.family.prompt, **options)[0]
    found = onnx.OnnxModel.from_pretrained(folder).generate(case.family.prompt, **options)[0]
    assert (found.ids, found.text) == (want.ids, want.text)


def test_saved_again_by_transformers(case, tmp_path):
    """As transformers 5 writes it: every key of config.json, safetensors, tokenizer.json."""
    theirs(case.folder).save_pretrained(tmp_path)
    case.tokenizer.save_pretrained(tmp_path)
    ids = [[5, 6, 7]]
    np.testing.assert_array_equal(
        GPT2.from_pretrained(tmp_path)(ids).logits, GPT2.from_pretrained(case.folder)(ids).logits
    )
    ours = load_tokenizer(tmp_path)
    for text in TEXTS:
        want = case.tokenizer.encode(text, add_special_tokens=False)
        assert ours.encode(text) == want, text
        assert ours.decode(want) == case.tokenizer.decode(want), text


# ── text and ids ─────────────────────────────────────────────────────────────────────────────────

WHOLE = re.compile(r"(<unk>|</?s>|\[(?:PAD|CLS|SEP|MASK)\])")


def lowered(encode):
    """With rinna's do_lower_case, which transformers 5 does not mind. The card asks to set it."""
    return lambda text: encode(
        "".join(part if WHOLE.fullmatch(part) else part.lower() for part in WHOLE.split(text))
    )


def peers(case):
    """Text → ids by transformers' tokenizers of the folder: the fast one, and the slow."""

    def plain(tokenizer):
        return lambda text: tokenizer.encode(text, add_special_tokens=False)

    if (case.folder / "vocab.txt").exists():
        settings = json.loads((case.folder / "tokenizer_config.json").read_text("utf-8"))
        slow = transformers.BertTokenizerLegacy.from_pretrained(case.folder, **settings)
        return {"fast": plain(case.tokenizer), "slow": plain(slow)}
    if (case.folder / "spiece.model").exists():
        slow = transformers.BertGenerationTokenizer.from_pretrained(case.folder)

        def fast(text):
            """Theirs takes 2 for what is unknown, whatever the model says: here that is </s>."""
            ids = plain(case.tokenizer)(text)
            return ids if "</s>" in text else [0 if token == 2 else token for token in ids]

        return {"fast": lowered(fast), "slow": lowered(plain(slow))}
    return {"fast": plain(case.tokenizer)}


def test_ids(case):
    ours = load_tokenizer(case.folder)
    for kind, encode in peers(case).items():
        for text in TEXTS:
            if kind == "slow" and not unicodedata.is_normalized("NFC", text):
                continue  # BERT's slow one composes characters, the fast one does not
            assert ours.encode(text) == encode(text), (kind, text)


def test_text_of_ids(case):
    """Of what was encoded, and of any ids; all at once, and one by one."""
    ours = load_tokenizer(case.folder)
    r = np.random.default_rng(0)
    rows = [ours.encode(text) for text in TEXTS]
    rows += [r.integers(0, ours.size, 12).tolist() for _ in range(40)]
    for ids in rows:
        text = ours.decode(ids)
        assert text == case.tokenizer.decode(ids), ids
        decoder = ours.decoder()
        assert "".join([*map(decoder.push, ids), decoder.finish()]) == text


def test_nothing_is_put_around_a_text(case):
    """Their BertTokenizer and T5Tokenizer put [CLS], [SEP] or </s> there, unless told not to."""
    ours, text = load_tokenizer(case.folder), "北京"
    around = case.tokenizer.encode(text)
    bare = case.tokenizer.encode(text, add_special_tokens=False)
    assert ours.encode(text) == bare
    assert (around == bare) == isinstance(ours, BytePairTokenizer)


def test_special_tokens_as_text(case):
    """`npgpt2 tokenize --plain`: no text is one token for its name alone."""
    ours = load_tokenizer(case.folder)
    name = "<|endoftext|>" if isinstance(ours, BytePairTokenizer) else "[SEP]"
    if (case.folder / "spiece.model").exists():
        name = "</s>"
    assert len(ours.encode(name)) == 1
    plain = ours.encode(name, special=False)
    assert ours.encode(name)[0] not in plain
    assert len(plain) > 1


FIRST = {"uer": "", "uer, lower-cased": "", "CKIP": "[CLS]", "rinna": "<s>"}


def test_an_empty_prompt_names_the_token_to_begin_with(case):
    """Where config.json or OpenAI's habit tells one that the vocabulary has."""
    first = FIRST.get(case.name, "<|endoftext|>")
    hint = f". For a text without a prompt give {first!r}" if first else ""
    with pytest.raises(InputError) as caught:
        GPT2.from_pretrained(case.folder).generate("")
    assert str(caught.value) == f"prompt: is empty, expected at least one token{hint}"
