"""People and keys to plant, made by Faker and from the issuers' own descriptions; shares no pattern with the detectors."""

import base64
import random
import string
from collections.abc import Callable

from faker import Faker

_EUROPE = (
    "en_GB de_DE de_AT de_CH fr_FR fr_CH it_IT es_ES pt_PT nl_NL pl_PL cs_CZ sv_SE da_DK no_NO fi_FI el_GR hu_HU ro_RO"
)
_OTHERS = (
    "en_US en_AU en_CA en_IN en_NZ es_MX pt_BR ru_RU uk_UA tr_TR ja_JP zh_CN ko_KR hi_IN he_IL vi_VN th_TH id_ID fa_IR"
)
_IBAN = "de_DE en_GB fr_FR nl_NL pl_PL it_IT es_ES fi_FI no_NO tr_TR pt_PT de_AT de_CH"
LOCALES = [*_EUROPE.split(), *_OTHERS.split()]
BANKS = _IBAN.split()

# Where something stands: sentences, the ends of a text, code, JSON, Markdown, next to punctuation.
ANYWHERE = (
    "{}",
    "Please note {} for later.",
    "({})",
    "Here: {}!",
    "Bob, 34, {}",
    "The details are {} as agreed.",
    "I wrote down '{}' yesterday.",
    "**{}**",
    "...as follows:\n{}\nThanks.",
    "Lorem ipsum dolor ({}), sit.",
    "`{}`",
    "see {}; then go",
    "| Bob | {} | 7 |",
    "- {}\n- another",
    "<td>{}</td>",
)
CALLED = (
    "Please call me at {} when you can.",
    "My number is {}.",
    "You can reach me on {} after six",
    "{} is my phone number, ring me",
    "phone: {}",
    '{{"phone": "{}", "n": 1}}',
    "Tel. {}, thanks",
    "- **Phone**: {}\n- next",
    "Text {} or write a letter.",
    "<a href='tel:{0}'>mobile {0}</a>",
)


class Planter:
    """Everything it makes follows from ``seed``."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.people = {locale: Faker(locale) for locale in LOCALES}
        for number, faker in enumerate(self.people.values()):
            faker.seed_instance(seed * 100 + number)

    def place(self, value: str, frames: tuple[str, ...] = ANYWHERE) -> str:
        return self.random.choice(frames).format(value)

    def _faker(self, locales: list[str] = LOCALES) -> Faker:
        return self.people[self.random.choice(locales)]

    def phone(self, locale: str) -> str:
        return str(self.people[locale].phone_number())

    def email(self) -> str:
        faker = self._faker()
        made = self.random.choice([faker.email, faker.company_email, faker.ascii_free_email, faker.safe_email])()
        return made.upper() if self.random.random() < 0.05 else str(made)

    def card(self) -> str:
        number = str(self.people["en_US"].credit_card_number())
        cuts = {16: (4, 8, 12), 15: (4, 10)}.get(len(number), ())
        if not cuts or self.random.random() < 0.3:
            return number
        sign = self.random.choice(" -")
        return sign.join(number[a:b] for a, b in zip((0, *cuts), (*cuts, len(number)), strict=True))

    def iban(self) -> str:
        number = str(self._faker(BANKS).iban())
        groups = " ".join(number[i : i + 4] for i in range(0, len(number), 4))
        return self.random.choice([number, groups, groups, number.lower()])

    def ip(self) -> str:
        faker = self.people["en_US"]
        return str(self.random.choice([faker.ipv4_public, faker.ipv6])())

    def password(self) -> str:
        length = self.random.randint(10, 18)
        return str(self.people["en_US"].password(length=length))

    def of(self, letters: str, count: int) -> str:
        return "".join(self.random.choices(letters, k=count))

    def keys(self) -> dict[str, Callable[[], str]]:
        """Issuer → a maker of its keys."""
        mixed, upper, hexa = (
            string.ascii_letters + string.digits,
            string.ascii_uppercase + string.digits,
            "0123456789abcdef",
        )
        url, b64, digits = mixed + "-_", mixed + "+/", string.digits

        def jwt() -> str:
            parts = ['{"alg":"HS256","typ":"JWT"}', f'{{"sub":"{self.of(digits, 9)}","name":"x"}}']
            coded = [base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts]
            return ".".join([*coded, self.of(url, 43)])

        def hook() -> str:
            return f"https://hooks.slack.com/services/T{self.of(upper, 8)}/B{self.of(upper, 10)}/{self.of(mixed, 24)}"

        sas = "https://x.blob.core.windows.net/c/b?sv=2022-11-02&se=2030-01-01&sp=r&sig="
        return {
            "aws access": lambda: "AKIA" + self.of(string.ascii_uppercase + "234567", 16),
            "aws session": lambda: "ASIA" + self.of(string.ascii_uppercase + "234567", 16),
            "aws secret": lambda: self.of(b64, 40),
            "aws config": lambda: "aws_secret_access_key = " + self.of(b64, 40),
            "github classic": lambda: "ghp_" + self.of(mixed, 36),
            "github fine": lambda: f"github_pat_{self.of(mixed, 22)}_{self.of(mixed, 59)}",
            "github app": lambda: self.random.choice(["ghs_", "gho_", "ghu_", "ghr_"]) + self.of(mixed, 36),
            "gitlab": lambda: "glpat-" + self.of(url, 20),
            "slack bot": lambda: f"xoxb-{self.of(digits, 12)}-{self.of(digits, 12)}-{self.of(mixed, 24)}",
            "slack user": lambda: f"xoxp-{self.of(digits, 11)}-{self.of(digits, 11)}-{self.of(hexa, 32)}",
            "slack hook": hook,
            "google": lambda: "AIza" + self.of(url, 35),
            "google client": lambda: "GOCSPX-" + self.of(url, 28),
            "google token": lambda: "ya29." + self.of(url, 90),
            "stripe": lambda: self.random.choice(["sk_live_", "sk_test_", "rk_live_"]) + self.of(mixed, 24),
            "openai": lambda: f"sk-{self.of(mixed, 20)}T3BlbkFJ{self.of(mixed, 20)}",
            "openai project": lambda: f"sk-proj-{self.of(url, 74)}T3BlbkFJ{self.of(url, 73)}A",
            "anthropic": lambda: f"sk-ant-api03-{self.of(url, 93)}AA",
            "hugging face": lambda: "hf_" + self.of(string.ascii_letters, 34),
            "sendgrid": lambda: f"SG.{self.of(url, 22)}.{self.of(url, 43)}",
            "twilio": lambda: "SK" + self.of(hexa, 32),
            "npm": lambda: "npm_" + self.of(mixed, 36),
            "pypi": lambda: "pypi-AgEIcHlwaS5vcmc" + self.of(url, 130),
            "azure storage": lambda: f"AccountName=x;AccountKey={self.of(b64, 86)}==;EndpointSuffix=core.windows.net",
            "azure sas": lambda: sas + self.of(mixed, 43) + "%3D",
            "telegram": lambda: f"{self.of('123456789', 10)}:AA{self.of(url, 33)}",
            "jwt": jwt,
            "basic": lambda: f"https://{self.of(string.ascii_lowercase, 6)}:{self.of(mixed, 12)}@git.example.org/x",
            "password line": lambda: "password=" + self.password(),
            "password json": lambda: f'"db_password": "{self.password()}"',
            "api key yaml": lambda: f'api_key: "{self.of(mixed, 32)}"',
            "api key hex": lambda: "API_KEY = '" + self.of(hexa, 40) + "'",
            "secret env": lambda: "CLIENT_SECRET=" + self.of(mixed, 24),
            "bearer": lambda: "Authorization: Bearer " + self.of(url, 40),
        }

    def private_key(self) -> str:
        """A real key of a kind drawn at random, or one of the same form."""
        from cryptography.hazmat.primitives import serialization as s
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519

        key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey = ec.generate_private_key(ec.SECP256R1())
        if self.random.random() < 0.5:
            key = ed25519.Ed25519PrivateKey.generate()
        forms = [s.PrivateFormat.PKCS8, s.PrivateFormat.OpenSSH]
        if isinstance(key, ec.EllipticCurvePrivateKey):
            forms.append(s.PrivateFormat.TraditionalOpenSSL)
        lock: s.KeySerializationEncryption = s.NoEncryption()
        form = self.random.choice(forms)
        if form == s.PrivateFormat.PKCS8 and self.random.random() < 0.5:
            lock = s.BestAvailableEncryption(b"x")
        text: str = key.private_bytes(s.Encoding.PEM, form, lock).decode()
        b64 = string.ascii_letters + string.digits + "+/"
        lines = "\n".join(self.of(b64, 64) for _ in range(8))
        others = [
            f"-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: GnuPG v2\n\n{lines}\n=aB3d\n-----END PGP PRIVATE KEY BLOCK-----",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n"
            f"{lines}\n-----END RSA PRIVATE KEY-----",
            f"PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: x\nPublic-Lines: 2\n{lines}\nPrivate-Lines: 1\n"
            f"{self.of(b64, 48)}\nPrivate-MAC: {self.of('0123456789abcdef', 64)}",
        ]
        text = self.random.choice([text, text, *others])
        return self.random.choice([text, text, text.replace("\n", "\\n"), text[: len(text) // 2]])
