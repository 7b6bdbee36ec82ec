"""What names a person, an account or a key is found; what only looks like it is not."""

import gzip
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.facts.planting import ANYWHERE, CALLED, LOCALES, Planter
from tests.training.data.facts.rows import batch, pair
from training.data.facts.people import KINDS, People, find
from training.data.facts.screen import Screen, plain

DATA = Path(__file__).resolve().parents[4].parent / "shared" / "data"
PLANTER = Planter(7)


def kinds(text: str) -> list[str]:
    return [found.kind for found in find(text)]


def missed(kind: str, make: Callable[[], str], count: int, frames: tuple[str, ...] = ANYWHERE) -> list[str]:
    texts = [PLANTER.place(make(), frames) for _ in range(count)]
    return [text for text in texts if kind not in kinds(text)]


@pytest.mark.parametrize("locale", LOCALES)
def test_a_phone_number_of_any_country_is_found_where_it_is_called_so(locale: str) -> None:
    lost = missed("phone", lambda: PLANTER.phone(locale), 200, CALLED)
    assert len(lost) <= 4, (locale, lost)


def test_a_phone_number_is_found_by_its_form_alone_where_that_is_proof() -> None:
    """Of all countries of the list alike. Those of bare digits (8 or fewer) can't be told from any other number."""
    lost = [lost for locale in LOCALES for lost in missed("phone", lambda locale=locale: PLANTER.phone(locale), 60)]  # type: ignore[misc]
    assert len(lost) <= 0.05 * 60 * len(LOCALES), lost[:20]


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("email", PLANTER.email),
        ("card", PLANTER.card),
        ("iban", PLANTER.iban),
        ("ip_address", PLANTER.ip),
        ("private_key", PLANTER.private_key),
    ],
)
def test_planted_people_are_found(kind: str, make: Callable[[], str]) -> None:
    lost = missed(kind, make, 400)
    assert len(lost) <= 4, lost


@pytest.mark.parametrize("issuer", sorted(PLANTER.keys()))
def test_planted_keys_are_found(issuer: str) -> None:
    lost = missed("api_key", PLANTER.keys()[issuer], 150)
    assert len(lost) <= 3, lost


FOUND = [
    ("我的电话是13812345678谢谢", "phone"),
    ("Ruf mich an: 0171/1234567!", "phone"),
    ("\uff10\uff19\uff10\uff0d\uff11\uff12\uff13\uff14\uff0d\uff15\uff16\uff17\uff18", "phone"),
    ("call me:07700900123", "phone"),
    ("call 555-1234 x99", "phone"),
    ("+٩٦٦٥٠١٢٣٤٥٦٧", "phone"),
    ("联系邮箱zhang@example.com谢谢您的支持", "email"),
    ("пишите на иван@почта.рф, спасибо", "email"),
    ('"john doe"@example.com wrote', "email"),
    ("root@[192.0.2.1]", "email"),
    ("jörg@müller.de", "email"),
    ("bob@xn--mller-kva.de.", "email"),
    ("mailto:bob+tag@mail.example.co.uk?subject=x", "email"),
    ("_bob@example.io_", "email"),
    ("http://93.184.216.34:8080/x", "ip_address"),
    ("from 203.0.113.7, twice", "ip_address"),
    ("ping 8.8.8.8", "ip_address"),
    ("[2a00:1450:4001:81b::200e]:443", "ip_address"),
    ("IP:2a00:1450:4001:81b::200e.", "ip_address"),
    ("Interface:2001:db8::1", "ip_address"),
    ("::ffff:93.184.216.34", "ip_address"),
    ("card 4111 1111 1111 1111 12/27 123", "card"),
    ("4111.1111.1111.1111", "card"),
    ("pay 3782 822463 10005, please", "card"),
    ("IBAN: gb82 west 1234 5698 7654 32.", "iban"),
    ("DE89 3704 0044 0532 0130 00 and more", "iban"),
    ("postgres://admin:S3cret@db:5432/x", "api_key"),
    ("my password is xK7#mQ2!vb", "api_key"),
]


@pytest.mark.parametrize(("text", "kind"), FOUND)
def test_an_unusual_form_is_found(text: str, kind: str) -> None:
    assert kinds(text) == [kind]


CLEAN = [
    "ISBN 978-3-16-148410-0, ISBN-10: 0-306-40615-2, 9780306406157.",
    "The years 1995-2014 and 1914 - 1918; 2001-2005 2010.",
    "On 2023-06-01 at 12:30:45, 01.02.2003, 31/12/1999, 9/21/1953, 1/2/2003, 12-25-2021, 20231225, 20231225T101500Z.",
    "Timestamps 1609459200 and 1609459200000.",
    "The population is 1,234,567,890 people; 331 002 651 in the US; 67 391 582 in France.",
    "It costs $1234567 or 1000000 dollars, 12 000 000 euros, €1.234.567,89.",
    "version 1.2.3.4, v2.10.0.1, Chrome/91.0.4472.124 Safari/537.36, release 10.15.7.1",
    "127.0.0.1, 192.168.1.1, 10.0.0.1, 0.0.0.0, 255.255.255.0, localhost:8080, ::1, 10.0.0.100.100",
    "pi is 3.14159265358979, e 2.718281828459045, 0.12345678, [ 0.25828884  0.51656816 ]",
    "1 + 2 = 3, 1200-480=720, <<1036800*4=4147200>>4147200, 5 + 12345678 = 12345683",
    "Jamal's phone can hold 10800-2500=<<10800-2500=8300>>8300 pictures, a call costs 1000 - 750 = 250.",
    "37.3362725, -121.8244116; 48.858370, 2.294481",
    "123e4567-e89b-12d3-a456-426614174000 and 550e8400-e29b-41d4-a716-446655440000",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "commit da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "arXiv:1706.03762, doi:10.1145/1088464.1088481, PMID 12345678, RFC 2616",
    "Order #123456789, invoice 2023-000123, ticket 4567891",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 and 10 20 30 40",
    "0101 1010 1100, 01001000 01100101 01101100",
    "2^32 = 4294967296, 10! = 3628800, 18446744073709551616",
    "21-19, 21-17, 15-13 in 2019-20",
    "def f(x): return x @ w.T  # a@b\n@app.route('/x')\n@media screen",
    "npm i lodash@4.17.21 react@latest; https://medium.com/@someone.else/story",
    "git clone git@github.com:user/repo.git",
    "std::vector<int> a::b; 12:30:45; 00:1A:2B:3C:4D:5E",
    'password = os.environ["DB_PASSWORD"]; token = get_token(user_id); secret: str = None',
    'password: your_password_here, api_key = "YOUR_API_KEY", token=<token>, api_key=${API_KEY}',
    'The password is required. The secret is kindness. Token: a piece of text. password = input("Password: ")',
    "max_tokens=4096, tokenizer.pad_token = tokenizer.eos_token, num_tokens: 128000, Password: ********",
    "const secret = crypto.randomBytes(64).toString('hex'); let apiKey = process.env.API_KEY;",
    "-----BEGIN RSA PRIVATE KEY----- is the header of a PEM file, as everybody knows.",
    "sk-toggleable__control and task-list-item-checkbox-wrapper-2023",
    'integrity "sha512-v2kDEe57lecTulaDIuNTPy3Ry4gLGJ6Z1O3vE1krgXZNrsQ+LFTGHVxVjcXPs17LhbZVGedAJv8XZ1tvj5FvSg=="',
    "VIN 1HGCM82633A004352, ISO 4217, EN 10025-2, model LTM 11200-9.1, Windows 10.0.19041.1",
    "5-10 minutes, 100-200-300, 8 000 000 000 people, 1920/1080, 3840/2160",
    "Barcode 4006381333931, EAN 5901234123457, serial number 4111-1111-1111-1112",
    "Section 1.2.3.4 and table 2.1.3.1; CMake 2.8.10.2 and Git 1.7.12.4",
    "max_tokens_to_sample = max_tokens_to_do, eos_token_id=self.config.text_config.sep_token_id",
    "certificate: Certificate, private_key: PKCS7PrivateKeyTypes, token: str",
    "self.embed_tokens = nn.Embedding(config.vocab_size, 4); token_per_patch = int(self.patch_size**2)",
    "secret = (constants.OAUTH_CLIENT_SECRET or '') re.findall('token=([a-z0-9]+)', url)",
    "1212800*p**5*r**5*s + 64840000*p**2*q + 22000000*p*q",
    "Constraint(0, 2147483647), (0, 4294967295), total_memory: 17179869184",
    "<Buffer 66 00 68 00 71 00 77 00 68 00 67 00 61> 0456.0020.0002",
    "'f'@beartype.beartype'",
    "0-7428-0108-X and 0-8044-2957-X; 3,65 \u20ac 591685 978-84-9888-844-7; 27a29da4907 9942095273e3ec04",
]


@pytest.mark.parametrize("text", CLEAN)
def test_what_only_looks_like_it_is_not_found(text: str) -> None:
    assert find(text) == []


def test_everything_is_found_once_and_in_its_place() -> None:
    text = "DE89370400440532013000, bob@example.com, +49 30 1234567 and 4111111111111111 at 93.184.216.34"
    found = find(text)
    assert [(item.kind, text[item.start : item.end]) for item in found] == [
        ("iban", "DE89370400440532013000"),
        ("email", "bob@example.com"),
        ("phone", "+49 30 1234567"),
        ("card", "4111111111111111"),
        ("ip_address", "93.184.216.34"),
    ]


def test_the_address_in_a_url_with_a_password_is_no_e_mail() -> None:
    assert kinds("https://bob:k9Xw3f@example.com/") == ["api_key"]


def test_rows_have_counts_and_lines_that_are_none_have_null() -> None:
    two = pair("mail bob@example.com or eve@example.org", "call 555-1234", "no")
    columns = People()(batch([two, None, pair("a", "b", "c")]))
    assert (
        tuple(columns)
        == People().columns
        == tuple(kind.name for kind in KINDS if kind.name in columns)[:0] + People().columns
    )
    assert columns["email"][[0, 2]].tolist() == [2, 0] and columns["phone"][[0, 2]].tolist() == [1, 0]
    assert all(math.isnan(values[1]) and values.dtype == np.float64 for values in columns.values())
    assert all(values.shape == (0,) for values in People()(batch([])).values())
    assert {kind.name for kind in KINDS} == set(People().columns)


def test_the_screens_pass_all_that_is_found() -> None:
    """Counts of a batch, which are screened, are those of each text by itself."""
    makers = [PLANTER.email, PLANTER.card, PLANTER.iban, PLANTER.ip, PLANTER.private_key, *PLANTER.keys().values()]
    texts = [PLANTER.place(make()) for make in makers for _ in range(20)]
    texts += [PLANTER.place(PLANTER.phone(locale), CALLED) for locale in LOCALES for _ in range(10)]
    texts += [text for text, _ in FOUND] + CLEAN
    columns = People()(batch([pair(text, "", "") for text in texts]))
    for row, text in enumerate(texts):
        found = kinds(text)
        assert {name: values[row] for name, values in columns.items()} == {
            name: found.count(name) for name in columns
        }, text


SIGNS = list("0123456789 -./()+@:=\"'\n*abAZ_\u0663\uff14")
PIECES = st.sampled_from([*SIGNS, "+49", "00", "IBAN", "DE", "::", "2001", "password", ".com"])


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=60))
def test_the_screens_pass_all_that_is_found_in_any_text(text: str) -> None:
    screen = Screen([text])
    for kind in KINDS:
        if list(kind.places(text)):
            assert any(screen.matches(pattern)[0] for pattern in kind.screens), (kind.name, text)


@given(st.text(max_size=60))
def test_plain_moves_nothing(text: str) -> None:
    assert len(plain(text)) == len(text)
    assert all(b == str(int(a)) for a, b in zip(text, plain(text), strict=True) if a.isdecimal())


SHORT = [
    "@",
    "a@",
    "1",
    "1 ",
    "1-",
    "(1",
    "+1 ",
    "1.",
    "a:",
    ":",
    "sk-",
    "A1",
    "eyJ",
    "{",
    "0 ",
    "DE00",
    "\u0663",
    "x.y.",
]
LONG = [
    "-----BEGIN PRIVATE KEY-----",
    "password=",
    "://a:",
    '"kty"',
    "PuTTY-User-Key-File-2:",
    "1 2-3.4/5(6)7+",
    "a1B2",
]


@pytest.mark.parametrize("piece", SHORT + LONG)
def test_a_huge_text_takes_no_more_than_its_length(piece: str) -> None:
    def seconds(size: int) -> float:
        start = time.process_time()
        find(piece * (size // len(piece)))
        return time.process_time() - start

    assert seconds(100_000) < 20 * max(seconds(10_000), 0.02), piece


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent")
def test_real_arithmetic_names_nobody() -> None:
    """8,500 rows of sums: nothing at all is found. Of the others only rows that do hold addresses and numbers."""

    def touched(name: str) -> float:
        with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return sum(bool(find("\n\n".join(_strings(row)))) for row in rows) / len(rows)

    assert touched("gsm8k_train") == 0 and touched("gsm8k_graded") == 0
    assert touched("hh_harmless_base") < 0.01 and touched("alpaca_eval_graded") < 0.015


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in _strings(item)]
