from __future__ import annotations

import time

import pytest

from sdk._secrets import (
    ARGUMENTS_MAX,
    MASK,
    VALUE_CHARACTERS_MAX,
    VARIABLES_MAX,
    chosen_variables,
    is_secret_name,
    mask_arguments,
    mask_code,
    mask_text,
    without_credentials,
)

SECRET = "s3cr3t-Value9"
# Looks like what GitHub, Hugging Face, Amazon and a signed token look like; none was ever valid.
LOOKS = (
    "ghp_" + "a1B2" * 9,
    "hf_" + "aBcD" * 8,
    "AKIA" + "ABCD" * 4,
    "sk-" + "proj-abcdefgh12345678",
    "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--api-key", SECRET],
        ["--api_key", SECRET],
        ["--apiKey", SECRET],
        ["-token", SECRET],
        [f"--token={SECRET}"],
        [f"--hf_token={SECRET}"],
        [f"--DB_PASSWORD={SECRET}"],
        [f"trainer.logger.api_key={SECRET}"],
        [f"+aws.secret_access_key={SECRET}"],
        [f"++a.b/c.token={SECRET}"],
        ["--url", f"https://user:{SECRET}@host/x"],
        [f"--db=postgresql://u:{SECRET}@h@host/db"],
        [f"https://host/x?user=a&access_token={SECRET}&b=1"],
        ["-H", f"Authorization: Bearer {SECRET}"],
        ["--config", f'{{"lr": 0.1, "api_key": "{SECRET}", "x": 1}}'],
        ["-c", f"import sdk; sdk.login(key='{SECRET}')"],
        ["-c", f'password = "{SECRET} with words"'],
        ["--password", "-" + SECRET.replace("s", "1", 1)],
        ["-c", f'import os;os.environ["WANDB_API_KEY"]="{SECRET}"'],
        [f"config[api_key]={SECRET}"],
        [f"++a.b['token']={SECRET}"],
        ["--hf_token", f"-{SECRET}"],
        ["--auth", SECRET],
        ["--cookie", SECRET],
        *[["--x", text] for text in LOOKS],
        *[[f"a,{text},b"] for text in LOOKS],
    ],
)
def test_a_secret_of_a_command_line_is_masked(arguments: list[str]) -> None:
    """Whatever way it is given: as an option, a key, in an address, in a header, in JSON, in code, or by its look alone."""
    masked = mask_arguments(["python", "train.py", *arguments, "--lr", "0.1"])
    text = " ".join(masked)
    assert SECRET not in text and SECRET[2:] not in text
    assert not any(look in text for look in LOOKS)
    assert MASK in text
    assert masked[:2] == ["python", "train.py"] and masked[-2:] == ["--lr", "0.1"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tokenizer", "gpt2"],
        ["--max_tokens=512"],
        ["--num-tokens", "100"],
        ["--key-dim", "64"],
        ["--monkey", "x"],
        ["--tokenizer=meta/llama"],
        ["model.d_key=64"],
        ["--lr=1e-3", "data.path=/a/b:c"],
        ["--secret", "--verbose"],
        ["https://host/x?step=3"],
        ["--path", "s3://bucket/key"],
        ["-"],
        [""],
        ["--patience", "3", "--compass"],
    ],
)
def test_what_is_no_secret_is_kept(arguments: list[str]) -> None:
    """Numbers called tokens, tokenizers, keys of a dimension, plain addresses."""
    assert mask_arguments(arguments) == arguments


def test_variables_are_those_on_the_list_with_secrets_masked() -> None:
    """A variable that nobody named is not stored, one that is named like a secret is masked, one with a password too."""
    environ = {
        "CUDA_VISIBLE_DEVICES": "0,1", "NCCL_DEBUG": "INFO", "SLURM_JOB_ID": "17", "RANK": "0", "TOKENIZERS_PARALLELISM": "true",
        "HF_TOKEN": SECRET, "SLURM_JWT": SECRET, "HF_ENDPOINT": f"https://u:{SECRET}@host", "TORCH_HOME": LOOKS[0],
        "AWS_SECRET_ACCESS_KEY": SECRET, "WANDB_API_KEY": SECRET, "MY_PASSWORD": SECRET, "TF_VAR_db": SECRET, "HOME": "/home/a",
    }  # fmt: skip
    chosen = chosen_variables(environ)
    assert chosen == {
        "CUDA_VISIBLE_DEVICES": "0,1", "NCCL_DEBUG": "INFO", "SLURM_JOB_ID": "17", "RANK": "0", "TOKENIZERS_PARALLELISM": "true",
        "HF_TOKEN": MASK, "SLURM_JWT": MASK, "HF_ENDPOINT": f"https://{MASK}@host", "TORCH_HOME": MASK,
    }  # fmt: skip


def test_everything_is_bounded() -> None:
    """Many variables, many arguments, long values."""
    many = {f"CUDA_{number}": "x" for number in range(VARIABLES_MAX + 5)}
    assert len(chosen_variables(many)) == VARIABLES_MAX
    assert len(mask_arguments(["x"] * (ARGUMENTS_MAX + 5))) == ARGUMENTS_MAX + 1
    assert len(mask_text("x" * (VALUE_CHARACTERS_MAX + 5))) == VALUE_CHARACTERS_MAX


@pytest.mark.parametrize(
    "code",
    [
        f'client = OpenAI(api_key="{SECRET}")',
        f'run = wandb.login(key="{SECRET}")',
        f"x = dict(password = '{SECRET}')",
        f'os.environ["WANDB_API_KEY"] = "{SECRET}"',
        f'config["a"]["api_key"] = (\n    "{SECRET}"\n)',
        f'os.environ.setdefault("API_KEY", "{SECRET}")',
        f'os.environ.get("API_KEY") or "{SECRET}"',
        f'key = os.getenv("KEY") or "{SECRET}"',
        f'parser.add_argument("--api_key", type=str, default="{SECRET}")',
        f'subprocess.run(["x", "--token", "{SECRET}"])',
        f'API_KEY: str = "{SECRET}"',
        f'API_KEY: Optional[str] = "{SECRET}"',
        f'token = f"{SECRET}"',
        f"token = b'{SECRET}'",
        f'token = ("{SECRET}")',
        f'token = r"""a\n{SECRET}"""',
        f'f(token:="{SECRET}")',
        f'token = "a" \\\n    "{SECRET}"',
        f"token = 'it\\'s {SECRET}'",
        f'token = "{SECRET}',
        f'api_key = SecretStr("{SECRET}")',
        f'passwords = ["a)b", "{SECRET}"]',
        f'x = {{\n    "token":\n        "{SECRET}"}}',
        f'{{\\"token\\": \\"{SECRET}\\"}}',
        f"%env WANDB_API_KEY a {SECRET}",
        f"!cmd --password {SECRET}",
        f"!cmd --password 'a {SECRET}'",
        f"!cmd -token {SECRET}",
        f"!cmd --password \\\n# {SECRET}",
        f'key = "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC\n\n{SECRET}\n{SECRET}\n-----END RSA PRIVATE KEY-----"',
    ],
)
def test_a_secret_in_code_is_masked(code: str) -> None:
    """Whatever stands between its name and it; what comes on the next line is kept."""
    masked = mask_code(f"{code}\nafter = 1")
    assert SECRET not in masked and MASK in masked
    assert masked.endswith("\nafter = 1")


@pytest.mark.parametrize(
    "code",
    [
        "token_count = 5",
        'keys = ["a", "b"]',
        'monkey = "x"',
        "lr=0.1 key_size=128",
        'for key, value in d.items():\n    print(f"{key}: {value}")',
        'for key in keys:\n    print(key, "x")',
        'def f(token: str, name: str = "abc") -> str:',
        "sorted(d, key=lambda a: a[0])",
        'token = None\nx = "abc"',
        'tokenizer = load("gpt2")',
        'batch["key"][0] = 5',
        "!cmd --token --verbose",
    ],
)
def test_code_without_secrets_is_kept(code: str) -> None:
    """Counts, sizes, lists of keys, loops over keys and types are readable."""
    assert mask_code(code) == code


PIECES = [
    "a", "a:", "=", "@", "://", "a://", "a://@", "token=", "'", "eyJ", "-----BEGIN PRIVATE KEY-----", "bearer ", "token '",
    'token="', "token=[", "password=['", 'password=["a', "token ", "token: str", "token: str[", 'token", a', "key\\", 'key="\\',
    "key=f('", "key=''+", "key='''", "--token \\\n#", "%env ", "key\n", 'key="1"', "key,", "[key]", "password={(", "key or ",
]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_a_hostile_text_costs_no_more_than_a_plain_one(piece: str) -> None:
    """Texts made to let a pattern try again from every letter are done within a moment, and a whole cell of them in seconds.

    128 KiB take some 0.1 s; if the time grew with the square of the length, it would be minutes.
    """
    begun = time.process_time()
    mask_text((piece * VALUE_CHARACTERS_MAX)[:VALUE_CHARACTERS_MAX] + "token=://@")
    assert time.process_time() - begun < 0.5
    begun = time.process_time()
    mask_code((piece * (1 << 17))[: 1 << 17] + "token=://@")
    assert time.process_time() - begun < 10


@pytest.mark.parametrize(
    ("address", "bare"),
    [
        (f"https://user:{SECRET}@github.com/a/b.git", "https://github.com/a/b.git"),
        (f"https://{SECRET}@github.com/a/b.git", "https://github.com/a/b.git"),
        (f"https://u:{SECRET}@x@github.com/a", "https://github.com/a"),
        (f"ssh://git:{SECRET}@host:22/a", "ssh://host:22/a"),
        ("ssh://git@host/a", "ssh://git@host/a"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        (f"https://host/a?token={SECRET}", f"https://host/a?token={MASK}"),
        ("/srv/git/a.git", "/srv/git/a.git"),
        ("", ""),
    ],
)
def test_an_address_loses_its_credentials(address: str, bare: str) -> None:
    """User and password of a remote go; the user of ssh stays, whom everybody has."""
    assert without_credentials(address) == bare


def test_names_are_looked_at_word_by_word() -> None:
    """A token is one, a tokenizer is none."""
    assert all(map(is_secret_name, ["TOKEN", "hf-token", "hfToken", "myPassword", "api.key", "x_auth", "privateData"]))
    assert not any(map(is_secret_name, ["tokenizer", "monkey", "path", "author", "passes", "keyboard", "compass", ""]))
