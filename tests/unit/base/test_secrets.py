"""What is masked, and what must not be: a mask too many makes a message or a run folder useless."""

import pytest

from fulltune.base.secrets import masked, masked_tree
from fulltune.base.visible import visible

A36 = "aZ3" * 12
SHAPES = [
    f"hf_{A36[:34]}",
    f"sk-proj-{A36}",
    f"sk-ant-api03-{A36}",
    f"ghp_{A36}",
    f"github_pat_{A36}",
    f"glpat-{A36[:20]}",
    "AKIAIOSFODNN7EXAMPLE",
    "xoxb-123456789012-abcdefABCDEF",
    f"AIza{A36[:35]}",
    f"eyJ{A36}.eyJ{A36}.{A36}",
]


@pytest.mark.parametrize("secret", SHAPES, ids=lambda secret: secret[:6])
def test_well_known_shapes_are_masked_wherever_they_stand(secret: str) -> None:
    for text in ("{}", "key={}.", "'{}'", "https://host/{}/x", "(a {} b)", "--token={}"):
        assert secret not in masked(text.format(secret)), text
    assert masked(f"before {secret} after") == "before *** after"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ann:s3cr@t@host/rows.jsonl", "https://***@host/rows.jsonl"),
        ("s3://k:p@b/x and https://q:r@h/y", "s3://***@b/x and https://***@h/y"),
        ("FileNotFoundError: /ann:s3cr3t@host/rows.jsonl", "FileNotFoundError: /ann:***@host/rows.jsonl"),
        ("https://h/r.jsonl?a=1&token=abc&b=2", "https://h/r.jsonl?a=1&token=***&b=2"),
        ("https://h/r?X-Amz-Credential=AK%2Fx&X-Amz-Signature=0f0f", "https://h/r?X-Amz-Credential=***&X-Amz-Signature=***"),
        ("failed: api_key='abcdef123', lr=1", "failed: api_key='***', lr=1"),
        ("{'token': 'abcdef', 'lr': 1}", "{'token': '***', 'lr': 1}"),
        ("Authorization: Bearer abcdef.123456", "Authorization: Bearer ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "***"),
    ],
)  # fmt: skip
def test_addresses_and_settings_in_a_text(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://host/rows.jsonl?keyword=cats&page=2",
        "s3://bucket/data/chat.jsonl",
        "http://localhost:8080?user=ann@example.org",
        '["http://localhost:8080", "ann@example.org"]',
        "hf://datasets/org/name@main",
        "12,345 tokens, 300 of them (2%) taught",
        "max_tokens: 4096, eos_token: '<|endoftext|>'",
        "data.checks.api_key: 'keep' -> 'error'",
        "/models/sk-model-checkpoint-final/hf_transformers_model",
        "the disk-space of task-0123456789012345678901",
        "mail to ann@example.org: hello",
        "sha256 " + "0f" * 32,
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def test_values_of_secret_variables_are_masked_and_others_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("agent")
    for name, value in {
        "DB_PASSWORD": 'p@ss "word"',
        "MY_API_KEY": "plain-value-1",
        "LONGER_TOKEN": "plain-value-1-and-more",
        "SHORT_SECRET": "seven77",
        "TOKENIZERS_PARALLELISM": "disabled",
        "GIT_AUTHOR_NAME": "Ann Other",
        "SSH_AUTH_SOCK": str(place),
        "ORDINARY": "ordinary-value",
    }.items():
        monkeypatch.setenv(name, value)
    said = f"seven77 disabled Ann Other {place} ordinary-value"
    assert masked(said) == said
    assert masked("plain-value-1-and-more, plain-value-1!") == "***, ***!"
    assert masked(r'p@ss "word" p%40ss%20%22word%22 p@ss \"word\"') == "*** *** ***"
    monkeypatch.delenv("MY_API_KEY")
    monkeypatch.delenv("LONGER_TOKEN")
    assert masked("plain-value-1") == "plain-value-1"


def test_trees_are_masked_by_key_and_by_value() -> None:
    values = {
        "options": {"api_key": "abcdefg", "hf_token": "abcdefg", "Password2": "abcdefg", "key": "abcdefg", "lr": 0.1},
        "paths": [f"https://h/x?sig={A36}", ("a", {"client_secret": "abcdefg"})],
        "checks": {"api_key": "error", "private_key": "drop"},
        "max_tokens": "abcdefg",
        "key_column": "question",
        "token": 5,
        "auth": None,
    }
    shown = masked_tree(values)
    assert shown["options"] == {"api_key": "***", "hf_token": "***", "Password2": "***", "key": "***", "lr": 0.1}
    assert shown["paths"] == ["https://h/x?sig=***", ["a", {"client_secret": "***"}]]
    assert {name: shown[name] for name in ("checks", "max_tokens", "key_column", "token", "auth")} == {
        name: values[name] for name in ("checks", "max_tokens", "key_column", "token", "auth")
    }
    ours = {"duplicate_key": "rows.jsonl:12", "note": SHAPES[0]}
    assert masked_tree(ours, keys=False) == {"duplicate_key": "rows.jsonl:12", "note": "***"}


def test_no_terminal_obeys_what_is_visible() -> None:
    assert visible("a\x1b]0;title\x07\x1b[2Jb\x9bc\u202e") == "a␛]0;title␇␛[2Jb<U+009B>c<U+202E>"
