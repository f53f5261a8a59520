"""MLflow's search filters, read without MLflow: a filter string as SQL over its database.

The grammar is MLflow's for runs: comparisons joined by AND, over metrics, params, tags, attributes and
datasets. A test holds the answers to MLflow's own. Errors name the character.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from gapeval_lab.errors import UserError

_ENTITIES = {
    **dict.fromkeys(("metric", "metrics"), "metric"),
    **dict.fromkeys(("param", "params", "parameter", "parameters"), "param"),
    **dict.fromkeys(("tag", "tags"), "tag"),
    **dict.fromkeys(("attribute", "attributes", "attr", "run"), "attribute"),
    **dict.fromkeys(("dataset", "datasets"), "dataset"),
}
_TABLES = {"metric": "latest_metrics", "param": "params", "tag": "tags"}
_TEXT = {"run_id": "run_uuid", "run_name": "", "status": "status", "user_id": "user_id"}
_TEXT |= {"artifact_uri": "artifact_uri"}
_NUMBERS = ("start_time", "end_time")
_ALIASES = {
    **dict.fromkeys(("created", "Created"), "start_time"),
    **dict.fromkeys(("run name", "Run name", "Run Name"), "run_name"),
}
_DATASET = ("name", "digest", "context")
_ORDER = ("=", "!=", "<", "<=", ">", ">=")
_WORDS = ("=", "!=", "LIKE", "ILIKE")
_ABSENCE = ("IS NULL", "IS NOT NULL")
_LISTS = ("IN", "NOT IN")

_SPACE = re.compile(r"\s*")
_IDENTIFIER = re.compile(r"""(`[^`]*`|\w+)(?:\.(`[^`]*`|"[^"]*"|[\w.]+))?""")
_COMPARATOR = re.compile(
    r"(<=|>=|!=|=|<|>|(?:NOT\s+IN|IN|I?LIKE|IS\s+NOT\s+NULL|IS\s+NULL)(?![\w]))", re.IGNORECASE
)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])")
_STRING = re.compile(r"""'((?:[^']|'')*)'|"((?:[^"]|"")*)\"""")
_AND = re.compile(r"AND(?![\w])", re.IGNORECASE)


@dataclass(frozen=True)
class Clause:
    """One comparison: `entity.key op value`; value is a number, a text, texts, or None."""

    entity: str
    key: str
    op: str
    value: Any


def parse(text: str) -> list[Clause]:
    """The comparisons of a filter, all of which must hold; none of an empty one.

    Raises:
        UserError: it is no filter; the message names the character.
    """
    return _Reader(text).clauses()


def to_sql(clauses: list[Clause]) -> tuple[str, list[Any]]:
    """A condition on the table `runs r`, with its arguments; LIKE must be case-sensitive there."""
    parts, arguments = ["1"], []
    for clause in clauses:
        part, values = _clause_sql(clause)
        parts.append(part)
        arguments += values
    return " AND ".join(parts), arguments


def _clause_sql(clause: Clause) -> tuple[str, list[Any]]:
    if clause.entity == "attribute":
        if clause.key != "run_name":
            column = _TEXT.get(clause.key, clause.key)
            return _compare(f"r.{column}", clause)
        clause = Clause("tag", "mlflow.runName", clause.op, clause.value)
    if clause.entity == "dataset":
        column = "d.name" if clause.key == "name" else "d.digest" if clause.key == "digest" else "t.value"
        joined = "inputs i JOIN datasets d ON d.dataset_uuid = i.source_id"
        if clause.key == "context":
            joined += " JOIN input_tags t ON t.input_uuid = i.input_uuid AND t.name = 'mlflow.data.context'"
        test, values = _compare(column, clause)
        return f"EXISTS (SELECT 1 FROM {joined} WHERE i.destination_id = r.run_uuid AND {test})", values
    found = f"EXISTS (SELECT 1 FROM {_TABLES[clause.entity]} x WHERE x.run_uuid = r.run_uuid AND x.key = ?"
    if clause.op in _ABSENCE:
        return ("NOT " if clause.op == "IS NULL" else "") + found + ")", [clause.key]
    test, values = _compare("x.value", clause)
    if clause.entity == "metric":  # NaN is stored as 0 with a mark; it equals nothing
        test = f"({test} OR x.is_nan = 1)" if clause.op == "!=" else f"{test} AND x.is_nan = 0"
    return f"{found} AND {test})", [clause.key, *values]


def _compare(column: str, clause: Clause) -> tuple[str, list[Any]]:
    if clause.op in _LISTS:
        return f"{column} {clause.op} ({', '.join('?' * len(clause.value))})", list(clause.value)
    if clause.op == "ILIKE":
        return f"lower({column}) LIKE lower(?)", [clause.value]
    return f"{column} {clause.op} ?", [clause.value]


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def clauses(self) -> list[Clause]:
        found: list[Clause] = []
        self._skip()
        while self.at < len(self.text):
            if found:
                if not self._take(_AND):
                    self._fail("'AND' is expected here; MLflow's filters know no OR and no brackets")
                self._skip()
            found.append(self._clause())
            self._skip()
        return found

    def _clause(self) -> Clause:
        entity, key = self._identifier()
        self._skip()
        start = self.at
        match = self._take(_COMPARATOR)
        numeric = entity == "metric" or (entity == "attribute" and key in _NUMBERS)
        allowed: tuple[str, ...] = _ORDER if numeric else _WORDS
        if entity in ("param", "tag"):
            allowed += _ABSENCE
        if entity == "dataset" or (entity == "attribute" and key == "run_id"):
            allowed += _LISTS
        if match is None:
            hint = ""
            if self.text[self.at : self.at + 1] in ("/", "-", ":"):
                hint = "; names with other signs than letters, digits, '_', '.' stand in backticks"
            self._fail(f"a comparison is expected ({', '.join(allowed)}){hint}")
        op = " ".join(match.group().upper().split())
        if op not in allowed:
            self._fail(f"a {entity} is compared by {', '.join(allowed)}, not by {op}", start)
        self._skip()
        if op in _ABSENCE:
            return Clause(entity, key, op, None)
        if op in _LISTS:
            return Clause(entity, key, op, self._list())
        if numeric:
            number = self._take(_NUMBER)
            if number is None:
                self._fail(f"a number is expected after {entity} '{key}' {op}")
            return Clause(entity, key, op, float(number.group()))
        return Clause(entity, key, op, self._string())

    def _identifier(self) -> tuple[str, str]:
        start = self.at
        match = self._take(_IDENTIFIER)
        if match is None:
            self._fail("a name is expected, such as metrics.`delta/gap_score`, params.seed or tags.method")
        first, second = match.group(1), match.group(2)
        if second is None:
            first, second = "attribute", first
        entity = _ENTITIES.get(first.strip("`"))
        if entity is None:
            self._fail(
                f"'{first}' is none of metrics, params, tags, attributes, datasets{_mean(first, _ENTITIES)}",
                start,
            )
        key = second[1:-1] if second[0] in '`"' else second
        if entity == "attribute":
            key = _ALIASES.get(key, key)
            known: tuple[str, ...] = (*_TEXT, *_NUMBERS)
        else:
            known = _DATASET if entity == "dataset" else ()
        if known and key not in known:
            self._fail(
                f"'{key}' is no {entity} ({', '.join(known)}){_mean(key, known)}; "
                "others are written metrics.NAME, params.NAME, tags.NAME",
                start,
            )
        return entity, key

    def _string(self) -> str:
        match = self._take(_STRING)
        if match is None:
            self._fail("a text in quotes is expected, such as 'rome'")
        return match.group()[1:-1]

    def _list(self) -> tuple[str, ...]:
        if not self.text.startswith("(", self.at):
            self._fail("a list of texts is expected, such as ('a', 'b')")
        self.at += 1
        found = []
        while True:
            self._skip()
            found.append(self._string())
            self._skip()
            end = self.text[self.at : self.at + 1]
            if end not in (",", ")"):
                self._fail("',' or ')' is expected in a list of texts")
            self.at += 1
            if end == ")":
                return tuple(found)

    def _skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return match

    def _fail(self, what: str, at: int | None = None) -> NoReturn:
        place = self.at if at is None else at
        rest = self.text[place : place + 24]
        where = f"at character {place + 1} ('{rest}')" if rest else "at the end"
        raise UserError(f"--where: {where}: {what}")


def _mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
