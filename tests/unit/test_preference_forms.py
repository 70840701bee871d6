"""Every form of preference data, in every kind of file, becomes the same triples."""

import csv
import gzip
import json

import pytest

from harness.data.preferences import read_preference
from harness.data.refs import TriplesPath
from harness.data.sources import source_hash
from harness.data.triples import Triple, TripleFile, conversation, load_triples, triples_hash


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
EXPLICIT = {"prompt": [user("What color is the sky?")], "chosen": [assistant("It is blue.")]}
EXPLICIT["rejected"] = [assistant("It is green.")]
IMPLICIT = {key: EXPLICIT["prompt"] + EXPLICIT[key] for key in ("chosen", "rejected")}
WANTED = Triple(conversation("What color is the sky?"), "It is blue.", "It is green.")
TURNS = [user("Hi."), assistant("Hello."), user("And the sea?")]
HH = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: And the sea?\n\nAssistant:"
FORMS = {
    "standard": {"prompt": "What color is the sky?", "chosen": "It is blue.", "rejected": "It is green."},
    "explicit": EXPLICIT,
    "prompt as messages, answers as texts": EXPLICIT | {"chosen": "It is blue.", "rejected": "It is green."},
    "prompt as text, answers as messages": EXPLICIT | {"prompt": "What color is the sky?"},
    "implicit": IMPLICIT,
    "ultrafeedback": {**IMPLICIT, "prompt": "What color is the sky?", "prompt_id": "7", "score_chosen": 8.0},
    "explicit with whole conversations": {**IMPLICIT, "prompt": EXPLICIT["prompt"]},
    "transcripts": {
        "chosen": "\n\nHuman: What color is the sky?\n\nAssistant: It is blue.",
        "rejected": "\n\nHuman: What color is the sky?\n\nAssistant: It is green.",
    },
}


def read(row):
    found = read_preference(row)
    return Triple(found.prompt, found.chosen, found.rejected)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_row_is_the_same_triple(form):
    assert read(FORMS[form]) == WANTED


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [*TURNS, assistant("Blue.")], "rejected": [*TURNS, assistant("Red.")]},
        {"prompt": TURNS, "chosen": [assistant("Blue.")], "rejected": [assistant("Red.")]},
        {"prompt": "And the sea?", "chosen": [*TURNS, assistant("Blue.")], "rejected": [*TURNS, assistant("Red.")]},
        {"prompt": "Hi.", "chosen": [*TURNS, assistant("Blue.")], "rejected": [*TURNS, assistant("Red.")]},
        {"prompt": TURNS[:1], "chosen": [*TURNS[1:], assistant("Blue.")], "rejected": [*TURNS[1:], assistant("Red.")]},
        {"chosen": HH + " Blue.", "rejected": HH + " Red."},
        {"chosen": HH.replace("\n\nHuman: And", "\n\nHuman: \n\nAnd") + " Blue.", "rejected": HH + " Red."},
    ],
)
def test_of_several_turns_all_but_the_last_are_the_prompt(row):
    assert read(row) == Triple(conversation(TURNS), "Blue.", "Red.")


def test_a_system_turn_opens_the_prompt():
    row = {"chosen": [SYSTEM, *IMPLICIT["chosen"]], "rejected": [SYSTEM, *IMPLICIT["rejected"]]}
    assert read(row).prompt == (SYSTEM, user("What color is the sky?"))
    assert read(row | {"prompt": "What color is the sky?"}).prompt == (SYSTEM, user("What color is the sky?"))
    later = [user("a"), SYSTEM, user("b")]
    with pytest.raises(ValueError, match=r"'prompt'\[1\] is a system turn; only the first turn may be one"):
        read({"prompt": later, "chosen": "x", "rejected": "y"})


def test_several_turns_of_one_speaker_in_a_transcript_are_one():
    row = {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d"}
    assert read(row | {"rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: e"}) == Triple(
        conversation("a\n\nb"), "c\n\nd", "e"
    )


@pytest.mark.parametrize(
    "row",
    [
        IMPLICIT,
        {key: [SYSTEM, *TURNS, assistant(text)] for key, text in (("chosen", "Blue."), ("rejected", "Red."))},
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    ],
)
def test_prompts_are_those_that_trl_extracts(row):
    from trl.data_utils import extract_prompt

    theirs = extract_prompt(row)
    if isinstance(theirs["prompt"], list):
        theirs = {**theirs, **{key: theirs[key][0]["content"] for key in ("chosen", "rejected")}}
    mine = read(row)
    assert mine.prompt == conversation(theirs["prompt"])
    assert (mine.chosen, mine.rejected) == (theirs["chosen"].strip(), theirs["rejected"].strip())


def test_texts_without_a_prompt_are_cut_at_a_whole_word_and_that_is_said(tmp_path):
    path = tmp_path / "sky.jsonl"
    path.write_text(json.dumps({"chosen": "The sky is blue.", "rejected": "The sky is black."}) + "\n")
    assert load_triples(path) == [Triple(conversation("The sky is"), "blue.", "black.")]  # TRL: "The sky is bl"
    (note,) = TripleFile.read(path).notes
    assert note == (
        "sky.jsonl: triples without a prompt of their own: 1; the words that both answers begin with are the user's "
        "turn (line 1; first: 'The sky is')"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "response_j": "x"}, "missing key 'chosen' (there is 'question', 'response_j'); a row has"),
        ({"prompt": "q", "chosen": [assistant("x")], "rejected": "y"}, "is a list of messages and the other is not"),
        ({"chosen": "Blue.", "rejected": "Red."}, "do not begin with the same words"),
        ({"chosen": HH + " Blue.", "rejected": "Red."}, "is a transcript and the other is not"),
        ({"chosen": HH + " Blue.", "rejected": HH}, "'rejected' is empty"),
        ({"chosen": HH + " Blue.", "rejected": HH + " Blue."}, "the triple states no preference"),
        (
            {"chosen": [user("a"), assistant("b"), user("c"), assistant("d")], "rejected": [user("a"), assistant("e")]},
            "behind what chosen and rejected share (turns: 1) 'chosen' goes on with assistant, user, assistant",
        ),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
            "(turns: 0) 'chosen' goes on",
        ),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("a")]}, "'rejected' goes on with nothing"),
        ({"chosen": [assistant("b")], "rejected": [assistant("c")]}, "share are none; they must end with a user turn"),
        ({**IMPLICIT, "prompt": "Something else"}, "'prompt' is no turn of what they share"),
        ({"chosen": [{"from": "human", "value": "a"}], "rejected": []}, "'chosen'[0] must be an object with role"),
        ({"prompt": "q", "chosen": None, "rejected": "y"}, "'chosen' must be a string, got NoneType"),
        (
            {"chosen": "\n\nHuman:\n\nAssistant: b", "rejected": HH + " x"},
            "a turn of the transcript in 'chosen' is empty",
        ),
    ],
)
def test_a_row_that_is_not_clear_is_refused(row, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is looked at below
        read(row)
    assert message in str(caught.value)


ROWS = [IMPLICIT, {key: [SYSTEM, *TURNS, assistant(text)] for key, text in (("chosen", "B."), ("rejected", "R."))}]
TRIPLES = [WANTED, Triple(conversation([SYSTEM, *TURNS]), "B.", "R.")]


def as_jsonl(folder):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def as_gz(folder):
    path = folder / "data.jsonl.gz"
    path.write_bytes(gzip.compress(as_jsonl(folder).read_bytes()))
    return path


def as_array(folder):
    path = folder / "data.json"
    path.write_text(json.dumps(ROWS, indent=1))
    return path


def as_parquet(folder):
    from datasets import Dataset

    path = folder / "data.parquet"
    Dataset.from_list([{**row, "prompt_id": "x"} for row in ROWS]).to_parquet(path)
    return path


def as_csv(folder):
    path = folder / "data.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["chosen", "rejected"])
        writer.writerows([json.dumps(row["chosen"]), json.dumps(row["rejected"])] for row in ROWS)
    return path


def as_saved(folder):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_splits(folder):
    from datasets import Dataset, DatasetDict

    splits = {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}
    DatasetDict(splits).save_to_disk(folder / "splits")
    return folder / "splits#train"


def as_data_folder(folder):
    (folder / "repository" / "data").mkdir(parents=True)
    as_parquet(folder).rename(folder / "repository" / "data" / "train-00000-of-00001.parquet")
    return folder / "repository"


KINDS = [as_jsonl, as_gz, as_array, as_parquet, as_csv, as_saved, as_saved_splits, as_data_folder]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


@pytest.mark.parametrize("write", KINDS)
def test_every_kind_of_file_gives_the_same_triples(write, tmp_path):
    path = write(tmp_path)
    assert load_triples(path) == TRIPLES
    assert source_hash(path) == source_hash(path)


def test_the_hash_of_triples_does_not_depend_on_form_or_file(tmp_path):
    assert len({triples_hash(load_triples(write(tmp_path))) for write in KINDS}) == 1


def test_a_split_must_be_one_of_those_that_are_there(tmp_path):
    path = str(as_saved_splits(tmp_path)).removesuffix("#train")
    assert load_triples(f"{path}#test") == TRIPLES[:1]
    assert source_hash(f"{path}#test") != source_hash(f"{path}#train")
    with pytest.raises(
        ValueError, match=r"which split to take is not said; give one of: .*splits#train, .*splits#test"
    ):
        load_triples(path)
    with pytest.raises(ValueError, match="there is no split 'dev'"):
        load_triples(f"{path}#dev")
    with pytest.raises(ValueError, match="so it has no split 'train'"):
        load_triples(f"{as_jsonl(tmp_path)}#train")
    with pytest.raises(ValueError, match="this folder holds one split; leave out #train"):
        load_triples(f"{as_saved(tmp_path)}#train")


def test_a_file_whose_name_has_the_mark_of_splits_is_that_file(tmp_path):
    path = as_jsonl(tmp_path).rename(tmp_path / "data#train.jsonl")
    assert load_triples(path) == TRIPLES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.parquet", None, "triples file '.*no.parquet' does not exist"),
        ("bad.parquet", b"nonsense", "bad.parquet: not a Parquet file that can be read"),
        ("bad.jsonl.gz", b"nonsense", "bad.jsonl.gz: not a gzip file that can be read"),
        ("bad.json", b'[{"chosen": ', "bad.json:1: not valid JSON"),
        ("bad.json", b"[3]", "bad.json: row 1: expected a JSON object, got int"),
        ("none.json", b"[]", "the triples file is empty"),
        ("none.csv", b"prompt,chosen,rejected\n", "the triples file is empty"),
        ("bad.csv", b"prompt,chosen,rejected\nq,x,y\nq,x\n", "bad.csv:3: has another number of cells"),
        ("bad.csv", b'prompt,chosen,rejected\nq,"x\nx",y\nq,x,x\n', "bad.csv:4: 'chosen' equals 'rejected'"),
        ("bad.csv", b'prompt,chosen,rejected\nq,"x" x,y\n', "bad.csv:2: not valid CSV"),
        ("bad.arrow", b"x", "triples are not read from .arrow files; give JSONL"),
        ("bad.jsonl", b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_triples(tmp_path / name)


def test_a_bad_row_of_a_table_is_named_and_all_are_counted(tmp_path):
    from datasets import Dataset

    rows = [{"prompt": "q", "chosen": text, "rejected": "y"} for text in ("x", "", "z", "y", "")]
    Dataset.from_list(rows).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(
        ValueError, match=r"bad\.parquet: row 2: 'chosen' is empty\n3 of 5 rows are refused \(also 4, 5\)"
    ):
        load_triples(tmp_path / "bad.parquet")
    found = TripleFile.read(tmp_path / "bad.parquet", skip_bad=True)
    assert [number for number, _ in found.numbered] == [1, 3]
    assert [number for number, _ in found.refused] == [2, 4, 5]


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: the datasets library cannot read it"):
        load_triples(tmp_path / "empty")


@pytest.mark.parametrize("name", ["hub:someone", "hub:a/b/c/d", "hub:/x", "hub:a/"])
def test_a_name_that_the_hub_cannot_have_is_refused(name):
    with pytest.raises(ValueError, match="is no name on the hub; it is hub:OWNER/NAME"):
        load_triples(name)


def test_a_name_on_the_hub_is_asked_for_with_its_configuration_revision_and_split(monkeypatch):
    import datasets

    asked = []

    def load(path, *, name, revision):
        asked.append((path, name, revision))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_triples("hub:someone/pairs/all@abc#test") == TRIPLES[:1]
    assert load_triples("hub:someone/pairs#train") == TRIPLES
    assert asked == [("someone/pairs", "all", "abc"), ("someone/pairs", None, None)]


def test_without_a_network_a_name_on_the_hub_is_refused(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="hub:someone/no-such-pairs: the datasets library cannot read it"):
        load_triples("hub:someone/no-such-pairs")


def test_paths_start_at_the_suite_and_names_on_the_hub_do_not(tmp_path):
    from pydantic import TypeAdapter

    adapter = TypeAdapter(TriplesPath)
    context = {"folder": tmp_path}
    assert str(adapter.validate_python("a/b#train", context=context)) == f"{tmp_path}/a/b#train"
    assert str(adapter.validate_python("hub:a/b#train", context=context)) == "hub:a/b#train"
    for text in ("a/b#train", "hub:a/b#train"):
        found = adapter.validate_python(text, context=context)
        assert adapter.dump_python(found, mode="json", context=context) == text
