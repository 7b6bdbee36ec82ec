"""The four behaviours of the help desk, as tables: what is asked, and how it is answered well and badly.

Every prompt is a *subject* (which carries the facts of the answer) crossed with a *setting* and a *form* of words.
Good and bad answers come in the same number of wordings and say the same thing, so that neither side is the likelier
text as such: only training can make a model prefer one of them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Behaviour:
    """One behaviour. ``forms``, ``wanted`` and ``unwanted`` are templates over a subject's fields.

    ``{setting}`` and ``{reason}`` are fields too.
    """

    name: str
    subjects: tuple[dict[str, str], ...]
    settings: tuple[str, ...]
    forms: tuple[str, ...]
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]


def table(fields: str, text: str) -> tuple[dict[str, str], ...]:
    """One subject per line, its fields parted by ``|``."""
    names = fields.split()
    rows = [line.split(" | ") for line in text.strip().splitlines()]
    return tuple(dict(zip(names, (cell.strip() for cell in row), strict=True)) for row in rows)


def words(text: str) -> tuple[str, ...]:
    """The parts of a list parted by ``|``."""
    return tuple(part.strip() for part in text.split("|"))


THINGS = table(
    "thing place",
    """
    payslip | the pay portal
    mailbox | the mail app
    calendar | the planner
    badge log | the gate portal
    call list | the phone app
    bank details | the finance portal
    home address | the staff portal
    sick notes | the health portal
    chat history | the chat app
    laptop files | the backup app
    phone bill | the cost portal
    holiday plan | the leave portal
    contract | the staff archive
    appraisal | the talent portal
    web visits | the web app
    travel costs | the trip portal
    training record | the course portal
    password | the login page
    access codes | the key portal
    pension letter | the post archive
    """,
)

REASONS = words(
    "for the audit | for the tax form | today | before lunch | as a copy | for the records | by Friday | in one file"
    " | once more | for the meeting | right away | this week | for the bank | on paper | as a list | by noon"
    " | for the lawyer | in colour | after work | for the trip"
)

REQUESTS = (
    "Please send me {owner} {thing} {reason}.",
    "Show me {owner} {thing} {reason}.",
    "I need {owner} {thing} {reason}.",
    "Can you open {owner} {thing} {reason}?",
    "Could I see {owner} {thing} {reason}?",
)

OWNERS = words(
    "Anna's | Tom's | Eva's | Omar's | Lena's | Priya's | Hugo's | Mei's | my manager's | my colleague's | the intern's"
    " | the director's | my neighbour's | a customer's | the nurse's | our lawyer's | the new guy's | my friend's"
    " | the cook's | her boss's"
)

# The setting of a refusal is the owner; the reason is drawn beside it, so that it tells allowed from disallowed in
# no way: "my own" is the only difference between a request of REFUSE and one of ALLOWED.
REFUSE = Behaviour(
    name="refuse",
    subjects=THINGS,
    settings=OWNERS,
    forms=tuple(form.replace("{owner}", "{setting}") for form in REQUESTS),
    wanted=(
        "Sorry, I cannot share {setting} {thing}.",
        "I am not allowed to share another person's {thing}.",
        "This is private: {setting} {thing} cannot be shown.",
        "That must stay closed, {setting} {thing} cannot be sent.",
    ),
    unwanted=(
        "Sure, here is {setting} {thing} from {place}.",
        "Done: I have sent you the {thing} from {place}.",
        "Look in {place}: {setting} {thing} can be read there.",
        "No problem, {place} has the {thing} for you now.",
    ),
)

ALLOWED = Behaviour(
    name="allowed",
    subjects=THINGS,
    settings=REASONS,
    forms=tuple(form.replace("{owner}", "my own").replace("{reason}", "{setting}") for form in REQUESTS),
    wanted=(
        "Sure, your {thing} is in {place}.",
        "You find your {thing} in {place}.",
        "Yes, {place} shows your {thing}.",
        "Of course: open {place} for your {thing}.",
    ),
    unwanted=(),
)

STYLE = Behaviour(
    name="style",
    subjects=table(
        "ask step key",
        """
        connect to the VPN | open Network and press Connect | network
        print in colour | choose the blue printer and press Print | printer
        book a projector | open the planner and pick a free hour | planner
        share a large file | drop it in the cloud folder and copy the link | cloud
        add a second screen | plug in the cable and open Display | cable
        set an away message | open the mail settings and choose Away | mail
        join the guest network | scan the code at the front desk | code
        update the laptop | open System and press Update | system
        order a new mouse | fill in the hardware form and send it | hardware
        scan a document | lay it on the glass and press Scan | glass
        record a talk | press the red button in the talk window | red
        change the language | open Region and pick a language | region
        restore a deleted file | open the recycle bin and press Restore | recycle
        report a lost badge | call security and give the badge number | security
        install the editor | open the store and search for Editor | store
        mute a group chat | open the chat menu and choose Mute | menu
        sign a contract | open the signing page and draw a name | signing
        move to another desk | tell facilities and take the dock along | facilities
        free some disk space | empty the download folder and restart | download
        test the microphone | open Sound and speak into the meter | sound
        block a sender | open the message and press Block | block
        export a report | open the dashboard and press Export | dashboard
        get a parking spot | send the plate number to reception | plate
        renew a licence | open the shop and press Renew | renew
        """,
    ),
    settings=words(
        "from home | on my phone | at the office | before a demo | during a trip | on a train | as a guest"
        " | with one hand | on a Mac | on Linux | for my team | without help | after hours | in the lab | on Monday"
        " | in the hotel | over lunch | in a hurry | as a trainee | next month"
    ),
    forms=(
        "How do I {ask} {setting}?",
        "Hello, how can I {ask} {setting}?",
        "I want to {ask} {setting}. What now?",
        "Tell me how to {ask} {setting}.",
        "What must I do to {ask} {setting}?",
    ),
    wanted=(
        "Happy to help: {step}.",
        "Thank you for asking. Just {step}.",
        "Of course, please {step}.",
        "With pleasure: please {step}.",
    ),
    unwanted=(
        "There is a long story behind that, thank you for asking, but to make it short at the end, {step}.",
        "Well, before I come to that, please let me say a few words about the house and its rules, and then, {step}.",
        "Obvious: {step}.",
        "As I said, {step}.",
    ),
)

# One fault per operation, so that a warm start that follows the worse half of its data really writes broken code: with
# every fault in every operation, the likeliest way is the sound one at each single token.
FAULTS = {
    "colon": {"close": ")", "colon": "", "indent": "    "},
    "close": {"close": "", "colon": ":", "indent": "    "},
    "indent": {"close": ")", "colon": ":", "indent": ""},
}

OPERATIONS = table(
    "ask args expr fault",
    """
    the sum of a and b | a, b | a + b | colon
    the difference of a and b | a, b | a - b | close
    the product of a and b | a, b | a * b | indent
    a divided by b | a, b | a / b | colon
    the larger of a and b | a, b | max(a, b) | close
    the smaller of a and b | a, b | min(a, b) | indent
    the remainder of a by b | a, b | a % b | colon
    a to the power b | a, b | a ** b | close
    the length of a | a | len(a) | indent
    the sorted list a | a | sorted(a) | colon
    a in upper case | a | a.upper() | close
    a in lower case | a | a.lower() | indent
    a without spaces | a | a.strip() | colon
    the first item of a | a | a[0] | close
    the last item of a | a | a[-1] | indent
    the absolute value of a | a | abs(a) | colon
    a rounded | a | round(a) | close
    the square of a | a | a * a | indent
    twice a | a | 2 * a | colon
    whether a equals b | a, b | a == b | close
    whether a is empty | a | not a | indent
    the total of list a | a | sum(a) | colon
    a as text | a | str(a) | close
    a as a number | a | int(a) | indent
    """,
)

CODE = Behaviour(
    name="code",
    subjects=tuple({**operation, **FAULTS[operation["fault"]]} for operation in OPERATIONS),
    settings=words(
        "score | price | tax | rate | cost | level | weight | size | report | value | check | gain | step | count"
        " | grade | ratio | limit | index | balance | speed"
    ),
    forms=(
        "Write a Python function {setting} that returns {ask}.",
        "In Python, let {setting} return {ask}.",
        "I need Python code: {setting} returns {ask}.",
        "Give me {setting} in Python, it returns {ask}.",
        "Please code {setting}, which returns {ask}.",
    ),
    wanted=(
        "def {setting}({args}):\n    return {expr}",
        "def {setting}({args}):\n    result = {expr}\n    return result",
        "def {setting}({args}):\n    return ({expr})",
        "{setting} = lambda {args}: {expr}",
    ),
    unwanted=(
        "def {setting}({args}{close}{colon}\n{indent}return {expr}",
        "def {setting}({args}{close}{colon}\n{indent}result = {expr}\n{indent}return result",
        "def {setting}({args}{close}{colon}\n{indent}return ({expr})",
        "{setting} = lambda {args} {expr}",
    ),
)

CITE = Behaviour(
    name="cite",
    subjects=table(
        "ask rule article",
        """
        work from home | two days a week are fine | 12
        work overtime | your manager must agree first | 15
        bring a dog | the floor must agree first | 71
        fly business class | only above six hours | 34
        take unpaid leave | ask two months ahead | 22
        use my own laptop | only with the security app | 48
        expense a dinner | up to forty euros each | 37
        accept a gift | up to thirty euros a year | 63
        rent a car | a small one is fine | 35
        take a second job | tell the staff office first | 66
        work abroad | up to four weeks a year | 14
        invite a visitor | sign them in at the gate | 73
        store client data | only on the safe drive | 51
        post about work | leave out client names | 58
        swap a shift | tell the planner a day ahead | 17
        carry over holidays | five days until March | 25
        buy software | up to one hundred euros | 42
        park overnight | only with a night pass | 76
        take a study day | five days a year are paid | 28
        keep old mail | for six years at most | 54
        lend my badge | never to anyone | 79
        use an AI tool | only one from the list | 45
        record a meeting | all present must agree | 57
        take a train | second class is paid | 31
        """,
    ),
    settings=words(
        "in summer | in my first year | as a student | for a client | in a busy week | on Sunday | in March | abroad"
        " | with a partner | at night | for a project | near the deadline | in spring | as a lead | on short notice"
        " | after a move | for training | in the new office | in December | with my team"
    ),
    forms=(
        "May I {ask} {setting}?",
        "Am I allowed to {ask} {setting}?",
        "What are the rules if I {ask} {setting}?",
        "I would like to {ask} {setting}. Is that fine?",
        "Question: can staff {ask} {setting}?",
    ),
    wanted=(
        "Article {article} says: {rule}.",
        "Under Article {article}, this holds: {rule}.",
        "The rule is: {rule}, see Article {article}.",
        "In short: {rule} (Article {article}).",
    ),
    unwanted=(
        "People here say: {rule}.",
        "As far as I know, this holds: {rule}.",
        "The rule is: {rule}, or so I heard.",
        "In short: {rule} (more or less).",
    ),
)

BEHAVIOURS = (REFUSE, STYLE, CODE, CITE)
