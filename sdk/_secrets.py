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
    upper = name.upper()
    if any(part in upper.replace("_", "").replace("-", "") for part in _PARTS):
        return True
    return not _WORDS.isdisjoint(_words_of(name))


def _words_of(name: str) -> list[str]:
    """The words of ``max_tokens``, ``api-key`` and ``hfToken``, in capitals."""
    spaced = "".join(
        f" {c}" if c.isupper() and name[i - 1 : i].islower() else c if c.isalnum() else " " for i, c in enumerate(name)
    )
    return spaced.upper().split()


def _is_harmless(value: str) -> bool:
    """A small number, a truth value or nothing: ``--key-dim 64`` hides no key."""
    return len(value) <= 6 and (value.replace(".", "", 1).isdigit() or value.lower() in ("", "true", "false", "none"))


def _masked(name: str, value: str) -> str:
    """The value of something called `name`: masked, or as `mask_text` has it."""
    if is_secret_name(name) and not (_is_harmless(value) and not any(part in name.upper() for part in _PARTS)):
        return MASK
    return mask_text(value)


# Each is compiled when a text may hold it: compiling takes longer than all else `init` does here, and most texts are plain.
# Limit: what stands before each keeps a long word from being tried from every letter on.
_ADDRESS = r"(?<![a-zA-Z0-9+.-])([a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@'\"]*(?:@[^/\s@'\"]*)*@"
_LOOK = (
    r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|AKIA|ASIA|AIza|eyJ)[A-Za-z0-9_.-]{12,}"
    r"|-----BEGIN[^-]*PRIVATE KEY-----[^-]*(?:-----END[^-]*-----)?|\b(?:[Bb]earer|[Bb]asic)\s+[^\s'\"]{6,}"
)
_LOOKS = ("hf_", "sk-", "gh", "glpat-", "xox", "AKIA", "ASIA", "AIza", "eyJ", "-----BEGIN", "earer ", "asic ")
_PAIR = r"(?<![\w.-])([A-Za-z_][\w.-]*)(['\"]?\s*[=:]\s*)(?!//)('[^']*'|\"[^\"]*\"|[^\s'\",;&)}\]]+)"
_compiled = functools.lru_cache(4)(re.compile)


def mask_text(text: str) -> str:
    """The text without what looks like a secret in it: a password in an address, a token, ``api_key="…"`` in code."""
    text = text[:VALUE_CHARACTERS_MAX]
    if "@" in text and "://" in text:
        text = _compiled(_ADDRESS).sub(rf"\1{MASK}@", text)
    return _without_tokens(text)


def _without_tokens(text: str) -> str:
    if any(mark in text for mark in _LOOKS):
        text = _compiled(_LOOK).sub(MASK, text)
    upper = text.upper()
    if ("=" in text or ":" in text) and any(word in upper for word in (*_PARTS, *_WORDS, "API_", "ACCESS_")):
        text = _compiled(_PAIR).sub(_mask_pair, text)
    return text


def _mask_pair(found: re.Match[str]) -> str:
    name, between, value = found[1], found[2], found[3]
    bare = value.strip("'\"")
    if not is_secret_name(name.rpartition(".")[2]) or _is_harmless(bare):
        return found[0]
    quote = value[0] if value[0] in "'\"" else ""
    return f"{name}{between}{quote}{MASK}{quote}"


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
        if expects and not (option and len(argument) > 1 and argument[1:2].isalpha() | (argument[1:2] == "-")):
            masked.append(_masked(expects, argument))
            expects = ""
            continue
        expects = ""
        if equals and name.lstrip("-+~").replace(".", "").replace("_", "").replace("-", "").replace("/", "").isalnum():
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
