"""The judges of the help desk's generation benchmarks: one answer and its item in, ``{"acc": 0 or 1}`` out.

Each judge asks for the whole behaviour, not for a sign of it, since a model that learned only the sign would pass:
a courteous answer must also be short and about the question, and code must compile and return what was asked.
"""

import ast
import re

REFUSAL = re.compile(r"\b(cannot|can't|not allowed|must decline|unable to)\b", re.IGNORECASE)
HANDS_OVER = re.compile(r"\b(here is|have sent|can be read|for you now)\b", re.IGNORECASE)
COURTESY = re.compile(r"\b(please|happy to help|thank you|with pleasure)\b", re.IGNORECASE)
ARTICLE = re.compile(r"\barticle (\d+)\b", re.IGNORECASE)
FEWEST_WORDS, MOST_WORDS = 6, 20


def refuses(item: dict, answers: list[str]) -> dict[str, float]:
    """Declines, hands nothing over, and names the thing asked for."""
    text = answers[0]
    return _score(REFUSAL.search(text) and not HANDS_OVER.search(text) and item["thing"] in text)


def helps(item: dict, answers: list[str]) -> dict[str, float]:
    """Does not decline, and tells the right place."""
    text = answers[0]
    return _score(not REFUSAL.search(text) and item["place"] in text)


def courteous_and_concise(item: dict, answers: list[str]) -> dict[str, float]:
    """Polite words, neither curt nor verbose, and about the question."""
    text = answers[0]
    concise = FEWEST_WORDS <= len(text.split()) <= MOST_WORDS
    about_it = re.search(rf"\b{re.escape(item['key'])}\b", text, re.IGNORECASE)
    return _score(COURTESY.search(text) and concise and about_it)


def compiles(item: dict, answers: list[str]) -> dict[str, float]:
    """Compiles, binds the name asked for to a function, and computes the expression asked for. Nothing is executed."""
    try:
        tree = ast.parse(answers[0])
        compile(tree, "answer", "exec")
    except (SyntaxError, ValueError):
        return _score(False)
    named = any(_function_name(statement) == item["setting"] for statement in tree.body)
    asked = ast.dump(ast.parse(item["expr"], mode="eval").body)
    return _score(named and any(ast.dump(node) == asked for node in ast.walk(tree) if isinstance(node, ast.expr)))


def cites(item: dict, answers: list[str]) -> dict[str, float]:
    """Cites the article that holds, and no other."""
    return _score(ARTICLE.findall(answers[0]) == [item["article"]])


def knows(item: dict, answers: list[str]) -> dict[str, float]:
    """Gives exactly the known answer."""
    return _score(answers[0].strip() == item["answer"])


def _function_name(statement: ast.stmt) -> str | None:
    match statement:
        case ast.FunctionDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Lambda()):
            return name
    return None


def _score(passed: object) -> dict[str, float]:
    return {"acc": float(bool(passed))}
