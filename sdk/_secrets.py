"""What looks like a secret is not stored: names and texts of command lines, environment variables and addresses.

Nobody can know every secret. So variables are stored only where their name is on a list, and what a list lets through is
masked where its name or its look says that it is secret. In doubt it is masked: a masked number costs a question, a stored
password costs more.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

MASK = "***"
# Limit: a value beyond it is a list of modules or a whole file; 200 variables of it are under 1 MiB.
VALUE_CHARACTERS_MAX = 4096
VARIABLES_MAX = 500
ARGUMENTS_MAX = 1000

_PREFIXES = (
    "ACCELERATE_", "CUBLAS_", "CUDA_", "CUDNN_", "DEEPSPEED_", "FSDP_", "GLOO_", "GOMP_", "HF_", "HIP_", "HSA_", "JAX_", "KMP_",
    "LSB_JOB", "MASTER_", "MKL_", "MPICH_", "NCCL_", "NUMBA_", "NUMEXPR_", "NVIDIA_", "OMPI_COMM_WORLD_", "OMP_", "OPENBLAS_",
    "PBS_JOB", "PL_", "PYTORCH_", "ROCR_", "SLURM_", "TF_CPP_", "TF_ENABLE_", "TF_FORCE_", "TF_GPU_", "TF_XLA_", "TOKENIZERS_",
    "TORCH", "TPU_", "TRANSFORMERS_", "TRITON_", "UCX_", "XLA_",
)  # fmt: skip
_NAMES = frozenset(
    "CONDA_DEFAULT_ENV CONDA_PREFIX GROUP_RANK HOSTNAME LANG LC_ALL LD_LIBRARY_PATH LD_PRELOAD LOCAL_RANK LOCAL_WORLD_SIZE "
    "MALLOC_CONF PMIX_RANK PMI_RANK PMI_SIZE PYTHONHASHSEED PYTHONOPTIMIZE PYTHONPATH PYTHONUNBUFFERED PYTHONWARNINGS RANK "
    "RAY_JOB_ID ROLE_RANK TF_DETERMINISTIC_OPS TZ VIRTUAL_ENV WORLD_SIZE".split()
)
# In a name anywhere, and as one of the words that a name is made of ("TOKENIZERS" is no token).
_PARTS = ("SECRET", "PASSW", "PASSPHRASE", "CREDENTIAL", "COOKIE", "PRIVATE", "APIKEY", "ACCESSKEY", "BEARER")
_WORDS = frozenset("KEY KEYS TOKEN TOKENS AUTH OAUTH AUTHORIZATION SESSION PASS PWD PAT JWT SIG SIGNATURE".split())


def is_secret_name(name: str) -> bool:
    """Whether a variable, option or parameter of this name holds a secret by the look of it: ``--api-key``, ``hfToken``."""
    return _is_certain(name) or not _WORDS.isdisjoint(_words_of(name))


def _is_certain(name: str) -> bool:
    """Whether a name means nothing else: a ``key`` may be a dictionary's, a ``password`` is one."""
    squashed = name.upper().replace("_", "").replace("-", "")
    return any(part in squashed for part in _PARTS)


def _words_of(name: str) -> list[str]:
    """The words of ``max_tokens``, ``api-key`` and ``hfToken``, in capitals."""
    spaced = "".join(
        f" {c}" if c.isupper() and name[i - 1 : i].islower() else c if c.isalnum() else " " for i, c in enumerate(name)
    )
    return spaced.upper().split()


def _hides(name: str, value: str) -> bool:
    """Whether this value is a secret: ``--key-dim 64``, ``token=None`` and ``private=True`` are none, ``password=1234`` is."""
    if not is_secret_name(name) or value.lower() in ("", "true", "false", "none"):
        return False
    return _is_certain(name) or not (len(value) <= 6 and value.replace(".", "", 1).isdigit())


def _masked(name: str, value: str) -> str:
    """The value of something called `name`: masked, or as `mask_text` has it."""
    return MASK if _hides(name, value) else mask_text(value)


# Each is compiled when a text may hold it: compiling takes longer than all else `init` does here, and most texts are plain.
# Limit: what stands before each keeps a long word from being tried from every letter on.
_ADDRESS = r"(?<![a-zA-Z0-9+.-])([a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@'\"]*(?:@[^/\s@'\"]*)*@"
_LOOK = (
    r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|AKIA|ASIA|AIza|eyJ)[A-Za-z0-9_.-]{12,}"
    r"|-----BEGIN[^-]*PRIVATE KEY-----(?s:.*?)(?:-----END[^-]*-----|\Z)|\b(?:[Bb]earer|[Bb]asic)\s+[^\s'\"]{6,}"
)
_LOOKS = ("hf_", "sk-", "gh", "glpat-", "xox", "AKIA", "ASIA", "AIza", "eyJ", "-----BEGIN", "earer ", "asic ")

# A name, and what is tried behind each that is_secret_name; names are found one after the other, so that the value of a harmless
# one is looked at too: ``x = login(key="…")``.
# Limit: what stands between name and value is bounded and a value is passed once, so that a text takes time as it is long.
_NAME = r"(%(?:set_)?env[ \t]+)?([\w.-]+)"
# A string as Python writes it; one that does not end goes on to the end of its line, one of three quotes to the end of all.
_STRING = (
    r"[rbfuRBFU]{0,2}(?:\"\"\"(?s:.*?)(?:\"\"\"|\Z)|'''(?s:.*?)(?:'''|\Z)"
    r"|\"[^\"\\\n]*(?:\\(?s:.)[^\"\\\n]*)*\"?|'[^'\\\n]*(?:\\(?s:.)[^'\\\n]*)*'?)"
)
_STRINGS = rf"{_STRING}(?:[\s+\\]{{0,80}}{_STRING})*"
# What ends the place of the name: a["name"], get("name").
_CLOSED = r"\\?['\"]?[ \t]{0,20}[\])]?[ \t]{0,20}"
_ANNOTATION = (
    r":[ \t]{0,20}(?:\w{1,20}\.)?(?:str|bytes|Any|Final|Optional|Union|Annotated|ClassVar|SecretStr)\b"
    r"(?:\[[^=\n]{0,60}\])?(?:[ \t]{0,9}\|[ \t]{0,9}\w{1,20}){0,3}[ \t]{0,20}="
)
# name = "…", name: str = ("…"), a["name"] = f"…", get("name") or "…", setdefault("name", "…"), set_name("…"); --name "…"
_QUOTED = (
    rf"((?:{_CLOSED}(?:{_ANNOTATION}|[:!=]?=|:|=>|or\b)|\\?['\"]\s{{0,40}},[\w\s=.,]{{0,60}}?|(?=\()|(?<=\w)(?=[ \t]))"
    rf"[\s\\(]{{0,60}})({_STRINGS})"
)
# A list, dictionary or tuple, of which nothing is kept.
_BRACKETS = rf"({_CLOSED}(?:{_ANNOTATION}|:?=|:)\s{{0,40}}[\[({{])((?:{_STRING}|[^\])}}'\"]+)*)"
# name=…, "name": …, a[name]=…; of what a call makes its texts too. A type, a function and a list of texts are no secret.
_BARE = (
    rf"({_CLOSED}(?::=|[:=])(?!=)[ \t]{{0,40}})(?!//|[\[{{(]+(?:['\"\s]|$)|(?:str|bytes|int|float|bool|lambda)(?:[ ,)=\n]|$))"
    rf"([^\s'\",;&)}}\]]+(?:(?<=\(){_STRINGS}(?:[)\], \t\w=]{{0,20}}{_STRINGS})*)?)"
)
# --name … and -name …, whose value may stand on the next line of a command.
_OPTION = rf"([ \t]{{1,40}}(?:\\\n[# \t]{{0,40}})?(?!--|-[A-Za-z]{{1,7}}(?:\s|$))|=)({_STRINGS}|[^\s'\"\\]+)"
# %env name …
_LINE = r"([ \t=]{1,40})([^\n]+)"
_compiled = functools.lru_cache(12)(re.compile)


def mask_text(text: str) -> str:
    """The text without what looks like a secret in it: a password in an address, a token, ``api_key="…"`` in code."""
    return mask_code(text[:VALUE_CHARACTERS_MAX])


def mask_code(text: str) -> str:
    """As `mask_text`, of any length."""
    if "@" in text and "://" in text:
        text = _compiled(_ADDRESS).sub(rf"\1{MASK}@", text)
    return _without_tokens(text)


def _without_tokens(text: str) -> str:
    if any(mark in text for mark in _LOOKS):
        text = _compiled(_LOOK).sub(MASK, text)
    upper = text.upper()
    if any(word in upper for word in (*_PARTS, *_WORDS, "API_", "ACCESS_")):
        text = _without_named(text)
    return text


def _without_named(text: str) -> str:
    """The text without the values of what is named like a secret."""
    pieces: list[str] = []
    done = 0
    for found in _compiled(_NAME).finditer(text):
        name = found[2].rpartition(".")[2]
        if found.start() < done or not is_secret_name(name):
            continue
        value = _value_behind(text, found, name)
        if value is None or not _hides(name, value[2].strip("'\"")):
            continue
        quotes = re.match(r"([rbfuRBFU]{0,2})(\"\"\"|'''|\"|'|)", value[2])
        prefix, quote = (quotes[1], quotes[2]) if quotes and quotes[2] else ("", "")
        pieces += (text[done : value.end(1)], prefix, quote, MASK, quote)
        done = value.end()
    return "".join(pieces) + text[done:]


def _value_behind(text: str, found: re.Match[str], name: str) -> re.Match[str] | None:
    """What stands between a name and its value, and the value; None if nothing does."""
    if found[1]:
        return _compiled(_LINE).match(text, found.end())
    is_option = found[2].startswith("-")
    patterns = (*((_BRACKETS,) if _is_certain(name) else ()), _QUOTED, *((_OPTION,) if is_option else ()), _BARE)
    for pattern in patterns:
        value = _compiled(pattern).match(text, found.end())
        if value:
            return value
    return None


def without_credentials(address: str) -> str:
    """An address without user and password: ``https://user:token@host/x`` as ``https://host/x``; of ``git@host:x`` the
    user, which everybody has, stays. What else looks like a secret in it is masked.
    """
    scheme, found, rest = address.partition("://")
    if found:
        # Why the last @ before the path: a password may hold one.
        host, slash, path = rest.partition("/")
        user, at, bare = host.rpartition("@")
        is_plain = scheme in ("ssh", "git+ssh") and at and ":" not in user
        address = f"{scheme}://{host if is_plain else bare}{slash}{path}"
    return _without_tokens(address[:VALUE_CHARACTERS_MAX])


_PATH_MARKS = str.maketrans("", "", "-+~._/[]'\"")


def _is_option(argument: str) -> bool:
    """Whether what begins with a dash is an option, where a secret may stand: ``-v`` is, ``-5`` and ``-aB3dE6gH9`` are not."""
    return argument.startswith("--") or (argument[1:2].isalpha() and len(argument) <= 8)


def mask_arguments(arguments: Iterable[str]) -> list[str]:
    """A command line whose secrets are masked: ``--token=x``, ``--token x``, ``trainer.token=x``, and `mask_text` of each."""
    masked: list[str] = []
    expects = ""
    for argument in arguments:
        if len(masked) == ARGUMENTS_MAX:
            masked.append("…")
            break
        option = argument.startswith("-") and argument != "-"
        name, equals, value = argument.partition("=")
        if expects and not (option and _is_option(argument)):
            masked.append(_masked(expects, argument))
            expects = ""
            continue
        expects = ""
        if equals and name.translate(_PATH_MARKS).isalnum():
            masked.append(f"{name}={_masked(name.rpartition('.')[2], value)}")
        else:
            masked.append(mask_text(argument))
            # An option without a value: what comes next is its value.
            expects = argument.lstrip("-") if option and is_secret_name(argument.lstrip("-")) else ""
    return masked


def chosen_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that say something about a training, by name, secrets masked: at most `VARIABLES_MAX`."""
    names = [name for name in environ if name in _NAMES or name.startswith(_PREFIXES)]
    return {name: _masked(name, environ[name]) for name in sorted(names)[:VARIABLES_MAX]}
