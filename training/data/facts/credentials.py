"""API keys, tokens and passwords, and private keys, in running text: by the form that their issuers give them."""

import math
import re
from bisect import bisect_left as bisect
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

# ---------------------------------------------------------------------------------------------- API keys

# (what RE2 screens for, what it is), where the form alone is proof.
_FORMS = (
    ("(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Z0-9])"),  # AWS access key id
    ("gh[pousr]_", r"gh[pousr]_[A-Za-z0-9]{36,255}"),  # GitHub
    ("github_pat_", r"github_pat_[A-Za-z0-9_]{22,255}"),
    ("gl[a-z]{2,5}-", r"gl(?:pat|dt|rt|rtr|cbt|ptt|ft|agent|oas|soat|imt|ffct|wt)-[A-Za-z0-9_.\-]{20,}"),  # GitLab
    ("xox[a-z]", r"xox[abceoprs](?:\.xox[bp])?-[A-Za-z0-9\-]{10,}"),  # Slack
    ("xapp-", r"xapp-\d-[A-Za-z0-9\-]{20,}"),
    (r"hooks\.slack\.com", r"(?:https?://)?hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9_/\-]{16,}"),
    ("api/webhooks/", r"(?:https?://)?(?:\w+\.)?discord(?:app)?\.com/api/webhooks/\d{15,}/[\w\-]{40,}"),
    (r"\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{4}", r"[MNO][A-Za-z0-9_\-]{23,27}\.[\w\-]{6}\.[\w\-]{27,40}"),  # Discord bot
    ("AIza", r"AIza[0-9A-Za-z_\-]{35}"),  # Google
    ("GOCSPX-", r"GOCSPX-[\w\-]{20,}"),
    (r"ya29\.", r"ya29\.[\w\-]{20,}"),
    ("1//0", r"1//0[\w\-]{30,}"),
    (r"\.apps\.googleuser", r"\d{6,20}-[a-z0-9]{20,40}\.apps\.googleusercontent\.com"),
    ("(?:sk|rk|pk)_(?:live|test)_", r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,}"),  # Stripe
    ("whsec_", r"whsec_[A-Za-z0-9+/]{24,}"),
    ("hf_", r"hf_[A-Za-z0-9]{30,}"),  # Hugging Face
    ("api_org_", r"api_org_[A-Za-z0-9]{30,}"),
    (r"SG\.", r"SG\.[\w\-]{16,32}\.[\w\-]{16,64}"),  # SendGrid
    ("(?:SK|AC)[0-9a-fA-F]{8}", r"(?:SK|AC)[0-9a-fA-F]{32}(?![0-9a-zA-Z])"),  # Twilio
    ("npm_", r"npm_[A-Za-z0-9]{36}"),
    ("pypi-", r"pypi-[\w\-]{50,}"),
    ("(?:Account|SharedAccess)Key", r"(?:Account|SharedAccess)Key\s?=\s?[A-Za-z0-9+/]{40,}={0,2}"),  # Azure
    ("sig=", r"(?<=[?&])sig=[A-Za-z0-9%+/]{30,}={0,2}"),
    ("Q~", r"[A-Za-z0-9_~.]{3}\dQ~[A-Za-z0-9_~.\-]{31,34}"),
    ("[0-9]{8}:[A-Za-z0-9_-]{8}", r"\d{8,10}:[A-Za-z0-9_\-]{35}(?![\w\-])"),  # Telegram bot
    ("eyJ", r"eyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]*"),  # JSON web token
    ("sq0|shp|do[opr]_v1", r"sq0[a-z]{3}-[\w\-]{22,}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|do[opr]_v1_[a-f0-9]{64}"),
    ("key-[0-9a-z]{8}|-us[0-9]|dapi", r"key-[0-9a-f]{32}|[0-9a-f]{32}-us\d{1,2}|dapi[0-9a-f]{32}"),
    ("lin_api|ntn_|secret_[A-Z|a-z|0-9]", r"lin_api_\w{32,}|ntn_[A-Za-z0-9]{40,}|secret_[A-Za-z0-9]{43}"),
    (r"PMAK-|glsa_|hvs\.", r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}|glsa_\w{32,}|hvs\.[\w\-]{24,}"),
    ("r8_|gsk_|pplx-|xai-", r"r8_[A-Za-z0-9]{37,40}|gsk_[A-Za-z0-9]{40,}|pplx-[A-Za-z0-9]{40,}|xai-[A-Za-z0-9]{60,}"),
    ("dckr_|figd_|NRAK-|sntrys_", r"dckr_pat_[\w\-]{20,}|figd_[\w\-]{30,}|NRAK-[A-Z0-9]{27}|sntrys_[\w+/=]{40,}"),
    (
        r"atlasv1|dp\.|sbp_|EAA",
        r"\w{14}\.atlasv1\.[\w\-]{60,}|dp\.[a-z]+\.[A-Za-z0-9]{40,}|sbp_[a-f0-9]{40}|EAA[A-Za-z0-9]{80,}",
    ),
)
_KEYWORD = (
    r"passw(?:or)?d|passwort|passphrase|pass[_-]?code|pwd|secret|token|api[ _-]?key|access[ _-]?key|auth[ _-]?key|"
    r"account[ _-]?key|private[ _-]?key|signing[ _-]?key|encryption[ _-]?key|credentials?|contraseña|mot de passe|senha|"
    r"пароль|密码|密碼|パスワード"
)
API_KEY_SCREEN = "|".join(
    [
        *(screen for screen, _ in _FORMS),
        "(?:^|[^A-Za-z0-9])sk-[A-Za-z0-9_-]{6}",
        r"://[^/@\s]*:[^/@\s]+@",
        f"(?i:authorization|{_KEYWORD})",
    ]
)
# By itself: a run of forty together with the rest would have RE2 keep too many states.
LONG_KEY_SCREEN = "[A-Za-z0-9+/]{40}"
_FORM = re.compile("(?<![A-Za-z0-9])(?:" + "|".join(form for _, form in _FORMS) + ")", re.ASCII)
_SK = re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_\-]{20,}")
_URL = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.\-]{1,15}://[^\s:/@'\"<>]{0,64}:([^\s/@'\"<>]{3,128})@(?=[\w.\[\-])"
)
_HEADER = re.compile(
    r"(?i)authorization[\"'`]?\s{0,3}[:=]\s{0,3}[\"'`]?(?:bearer|basic|token)\s+([A-Za-z0-9._~+/\-]{16,}=*)"
)
_ASSIGNED = re.compile(
    rf"""(?ix) (?:{_KEYWORD}) [\w.\-\]]{{0,20}} (?:\\?["'`*]){{0,3}} \s{{0,3}}
    (?: :=|=>|->|[=:\uff1a]|\bis\s*:?|\bist\b|\bes\b|\best\b|是 ) \s{{0,3}} (?:[*_]{{0,2}}) [bru]?
    (?: \\?"(?P<double>[^"\\\n]{{6,200}})\\?" | '(?P<single>[^'\n]{{6,200}})' | `(?P<tick>[^`\n]{{6,200}})`
      | (?P<bare>[^\s"'`<>,;]{{6,200}}) )"""
)
_AWS = re.compile(r"(?<![A-Za-z0-9+/=_\-])[A-Za-z0-9+/]{40}(?![A-Za-z0-9+/=_\-])")
_AZURE = re.compile(r"(?<![A-Za-z0-9+/=\-])[A-Za-z0-9+/]{86}==(?![A-Za-z0-9+/=])")
_PLACEHOLDER = re.compile(
    r"""(?ix) (?: (?:your|my|the|example|change|replace|insert|enter|placeholder|dummy|some)[_\- .]
    | (?:null|none|true|false|undefined|string|required|optional)\b
    | process\.env|os\.environ|env\.|https?:|\$\{|\$\(|\{\{?|%\(|<|\*{3}|x{4}|\.{3}|\#{3} )"""
)
_CALL = re.compile(r"([A-Za-z_][\w.]*)[(\[]")
_HEX = re.compile(r"(?=(?:[a-f]*\d){4})[0-9a-f]{24,}|(?=(?:[A-F]*\d){4})[0-9A-F]{24,}")
_NAME = re.compile(r"[A-Za-z_]\w*(?:[.\-/:]\w+)*")


def api_keys(text: str) -> Iterator[tuple[int, int]]:
    """The places of API keys, tokens, and passwords: those of a known form, in a URL, or assigned to a telling name."""
    found = [match.span() for match in _FORM.finditer(text)]
    found += [match.span() for match in _SK.finditer(text) if _mixed(match[0][3:])]
    found += [match.span(1) for match in _HEADER.finditer(text) if _mixed(match[1])]
    found += [match.span() for match in _URL.finditer(text) if not _PLACEHOLDER.match(match[1])]
    found += [match.span() for match in _AWS.finditer(text) if _random(match[0], 4.2)]
    found += [match.span() for match in _AZURE.finditer(text) if _random(match[0], 4.8)]
    for match in _ASSIGNED.finditer(text):
        kind = match.lastgroup or "bare"
        if _secret(match[kind], quoted=kind != "bare"):
            found.append(match.span(kind))
    yield from sorted(found)


def _mixed(value: str) -> bool:
    """Whether a value that has the form of a key is not made of words alone."""
    digits, upper = any(map(str.isdigit, value)), any(map(str.isupper, value))
    return (digits and (upper or _bits(value) > 3)) or _bits(value) > 4


def _random(value: str, least: float) -> bool:
    """Whether lower and upper case and digits stand mixed as chance mixes them."""
    counts = [sum(map(test, value)) for test in (str.islower, str.isupper, str.isdigit)]
    return min(counts[:2]) >= 5 and counts[2] >= 1 and _bits(value) >= least and _jumbled(value)


def _secret(value: str, quoted: bool) -> bool:
    """Whether a value given to a password or key is one, and no word, placeholder, name or call of a program."""
    if not quoted:
        value = value.rstrip(".,;:?)]}*") if len(value.rstrip(".,;:?)]}*")) >= 6 else value
    if len(value) < 6 or " " in value or _PLACEHOLDER.match(value):
        return False
    inner = value.lstrip("([{")
    call = _CALL.match(inner)
    if call and not any(map(_jumbled, re.split(r"\W", inner))) and not re.search(r"[!@#$%^&]", value):
        return False
    if re.fullmatch(r"[(\[].*[)\]][+*]?", value):
        return False
    if (
        quoted
        and len(value) >= 16
        and all(re.search(part, value) for part in ("[a-z]", "[A-Z]", "[a-zA-Z][0-9]+[a-zA-Z]"))
    ):
        return True
    if _NAME.fullmatch(value := inner):
        return any(_jumbled(part) or _HEX.fullmatch(part) for part in re.split(r"[.\-/:]", value))
    kinds = sum(any(map(test, value)) for test in (str.islower, str.isupper, str.isdigit))
    special = any(not c.isalnum() for c in value)
    if len(value) >= 20 and any(map(str.isdigit, value)):
        return _bits(value) >= 3
    return kinds + special >= 3 and len(value) >= 8 - quoted and _bits(value) >= 2.5


def _jumbled(word: str) -> bool:
    """Whether lower case, upper case and digits change places too often for a name, even for one likeThis2.

    A word with fewer changes is jumbled where it lacks the vowels of a language. Underscores don't count.
    """
    word = word.replace("_", "")
    kinds = ["l" if c.islower() else "u" if c.isupper() else "d" if c.isdigit() else "" for c in word]
    if len(word) < (8 if "d" in kinds else 12):
        return False
    changes = sum(one != other for one, other in pairwise(kinds)) / (len(word) - 1)
    vowels = sum(c in "aeiouyAEIOUY" for c in word) / max(1, sum(map(str.isalpha, word)))
    return (
        changes >= 0.5 or (changes >= 0.36 and vowels < 0.36) or (len(word) >= 12 and changes >= 0.25 and vowels < 0.3)
    )


def _bits(value: str) -> float:
    """Shannon entropy in bits a character."""
    size = len(value)
    return -sum(count / size * math.log2(count / size) for count in Counter(value).values()) if size else 0.0


# ---------------------------------------------------------------------------------------------- private keys

PRIVATE_KEY_SCREEN = r"PRIVATE KEY|PuTTY-User-Key-File|AGE-SECRET-KEY-1|(?i:privatekey\s*=)|\"kty\""
_BEGIN = re.compile(r"-{4,5} ?BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_END = re.compile(r"-{4,5} ?END (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_BODY = re.compile(r"[A-Za-z0-9+/=_\-]{16,}")
_REST = re.compile(
    r"""(?x) (?: [A-Za-z0-9+/=\-]{16,} | [\ \t\r\n"',>|\#*] | \\[nrt]
    | (?:Proc-Type|DEK-Info|Version|Comment|Hash)\b[^\n\\]* | =[A-Za-z0-9+/]{4} | [A-Za-z0-9+/]{1,76}={1,2} )+"""
)
_PUTTY = re.compile(r"PuTTY-User-Key-File-\d+:(?:(?:[^\\]|\\.){0,20000}?Private-MAC: ?[0-9a-f]+|(?:[^\n]|\n(?!\n))*)")
_OTHER = re.compile(
    r"AGE-SECRET-KEY-1[0-9A-Z]{40,}|(?i:PrivateKey\s?=\s?)[A-Za-z0-9+/]{43}="
    r"|\{[^{}]*\"kty\"\s*:\s*\"(?:RSA|EC|OKP)\"[^{}]*\"d\"\s*:\s*\"[\w\-]{20,}\"[^{}]*\}"
    r"|\{[^{}]*\"d\"\s*:\s*\"[\w\-]{20,}\"[^{}]*\"kty\"\s*:\s*\"(?:RSA|EC|OKP)\"[^{}]*\}"
)
_FAR = 20_000


def private_keys(text: str) -> Iterator[tuple[int, int]]:
    """The places of private keys, whole or cut: PEM of all kinds, OpenSSH, PGP, SSH2, PuTTY, age, WireGuard, JWK.

    A heading without a key below it, as texts about keys have it, is none.
    """
    found = [match.span() for match in _OTHER.finditer(text)]
    found += [match.span() for match in _PUTTY.finditer(text)]
    begins, ends = list(_BEGIN.finditer(text)), list(_END.finditer(text))
    starts = [begin.start() for begin in begins] + [len(text)]
    for begin, following in zip(begins, starts[1:], strict=True):
        place = begin.end()
        limit = min(place + _FAR, following)
        after = bisect(ends, place, key=re.Match.start)
        end = ends[after] if after < len(ends) and ends[after].start() <= limit else None
        stop = end.start() if end else min(limit, place + 400)
        if not _BODY.search(text, place, stop):
            continue
        if end:
            place = end.end()
        elif rest := _REST.match(text, place):
            place = rest.end()
        found.append((begin.start(), place))
    yield from sorted(found)
