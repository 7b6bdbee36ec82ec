"""The plain knowledge of the help desk: 40 teams, each with a room, a lead and a phone line, and how they are sought.

It has nothing to do with the four behaviours. The warm start is taught all of it, so that a loss shows what preference
optimization washed out.
"""

from behaviours import words

TEAMS = words(
    "payroll | legal | sales | design | travel | audit | press | support | garden | kitchen | research | quality"
    " | energy | safety | training | events | archive | export | import | tax | fleet | media | repair | cloud | data"
    " | mobile | print | network | stock | health | welcome | budget | bridge | harbour | tower | forest | river"
    " | north | south | west"
)
NAMES = words(
    "Alba | Bruno | Clara | Dario | Elsa | Felix | Greta | Henry | Irene | Jakob | Karin | Louis | Maria | Nils"
    " | Olga | Peter | Quinn | Rosa | Simon | Tilda | Ugo | Vera | Willy | Xenia | Yusuf | Zora | Abel | Berta | Carlo"
    " | Doris | Emil | Fanny | Georg | Hanna | Ivan | Julia | Kurt | Laura | Marco | Nora"
)
FACT_FORMS = {
    "room": (
        "which room is the {team} team in?",
        "what is the room of the {team} team?",
        "where does the {team} team sit?",
        "I look for the room of {team}.",
        "in which room do I find {team}?",
    ),
    "lead": (
        "who leads the {team} team?",
        "who is the lead of the {team} team?",
        "what is the name of the {team} lead?",
        "I look for the lead of {team}.",
        "whom do I ask as lead of {team}?",
    ),
    "line": (
        "what is the phone line of the {team} team?",
        "which number do I dial for the {team} team?",
        "how do I call the {team} team?",
        "I look for the phone number of {team}.",
        "under which line do I reach {team}?",
    ),
}
FACT_ANSWERS = {"room": "Room {value}.", "lead": "{value} is the lead.", "line": "Dial {value}."}
OPENERS = words("Hi, | Quick question: | For my notes: | Hello desk, | Sorry to ask: | One thing:")
